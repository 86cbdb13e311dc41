#!/usr/bin/env python3
"""Train and test the runs of a study: jobs/train.py [RECIPE] [--config FILE] [--section.option value ...]."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("train")
