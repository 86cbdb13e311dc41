#!/usr/bin/env python3
"""Train and test the runs of a study: jobs/train.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("train")
