#!/usr/bin/env python3
"""Turn an archive of X-rays into WebDataset tars: jobs/prepare.py [RECIPE] [--section.option value ...]."""

import sys

from lungseg.pipelines.entry import main

if __name__ == "__main__":
    sys.exit(main("prepare"))
