#!/usr/bin/env python3
"""Adapt trained models to the images of another hospital: jobs/adapt.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("adapt")
