#!/usr/bin/env python3
"""Show a study and its predictions: jobs/report.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("report")
