#!/usr/bin/env python3
"""Train and test the runs of a study: jobs/train.py [RECIPE] [--section.option value ...]."""

import sys

from lungseg.pipelines.entry import main

if __name__ == "__main__":
    sys.exit(main("train"))
