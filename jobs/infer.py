#!/usr/bin/env python3
"""Segment an archive into Parquet rows: jobs/infer.py [RECIPE] [--config FILE] [--section.option value ...]."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("infer")
