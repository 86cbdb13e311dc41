#!/usr/bin/env python3
"""Segment an archive into Parquet rows: jobs/infer.py [RECIPE] [--section.option value ...]."""

import sys

from lungseg.pipelines.entry import main

if __name__ == "__main__":
    sys.exit(main("infer"))
