#!/usr/bin/env python3
"""Segment an archive into Parquet rows: jobs/infer.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("infer")
