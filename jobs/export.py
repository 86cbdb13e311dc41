#!/usr/bin/env python3
"""Turn predictions into masks, overlays, COCO or DICOM files: jobs/export.py --help lists recipes and settings."""

from lungseg.cli import run_command

if __name__ == "__main__":
    run_command("export")
