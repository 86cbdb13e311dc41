#!/usr/bin/env python3
"""Show a study and its predictions: jobs/report.py [RECIPE] [--section.option value ...]."""

import sys

from lungseg.pipelines.entry import main

if __name__ == "__main__":
    sys.exit(main("report"))
