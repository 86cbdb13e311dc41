"""The description of the package, which pyproject.toml can only take from a file as it is."""

import re
from pathlib import Path

from setuptools import setup

_LOCAL_PICTURE = re.compile(r"!\[[^]]*\]\((?!https?://)[^)]*\)\n*")
_LOCAL_LINK = re.compile(r"\[([^]]*)\]\((?!https?://)[^)]*\)")
_NOTE = "\nThe pages that this text names are in the folder `docs` of the source distribution.\n"


def describe(readme: str) -> str:
    """Return the README for a package index, which has no files beside it: local links as text, no local pictures."""
    return _LOCAL_LINK.sub(r"\1", _LOCAL_PICTURE.sub("", readme)) + _NOTE


setup(
    long_description=describe(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
