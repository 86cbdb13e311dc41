#!/usr/bin/env python3
"""Show a study and its predictions: jobs/report.py [RECIPE] [--config FILE] [--section.option value ...]."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("report")
