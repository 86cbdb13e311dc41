#!/usr/bin/env python3
"""Fit a model's normalisation to another hospital's pictures: jobs/adapt.py [RECIPE] [--config FILE] [--section.option value ...]."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("adapt")
