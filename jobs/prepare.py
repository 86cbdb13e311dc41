#!/usr/bin/env python3
"""Turn an archive of X-rays into WebDataset tars: jobs/prepare.py [RECIPE] [--config FILE] [--section.option value ...]."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("prepare")
