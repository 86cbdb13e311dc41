"""Logging setup; entry points call it, importing lungseg does not."""

import logging
import sys


def configure(level: int = logging.INFO, prefix: str = "") -> None:
    """Send lungseg's log records to standard error, one line each: time of day, `prefix`, message.

    Other libraries keep their own setup. A second call changes the level only.
    """
    root = logging.getLogger("lungseg")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(level)
