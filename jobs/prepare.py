#!/usr/bin/env python3
"""Turn an archive of X-rays into WebDataset tars: jobs/prepare.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("prepare")
