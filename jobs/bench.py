#!/usr/bin/env python3
"""Measure the stages of training and inference: jobs/bench.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("bench")
