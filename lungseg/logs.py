"""One logging set-up, called by an entry point, never on import."""

import logging
import sys


def configure(level: int = logging.INFO, of: str = "") -> None:
    """Send lungseg's log records to standard error, one line each, with the time of day and `of` whom they are.

    Other libraries keep their own set-up. Calling it again changes the level only.
    """
    root = logging.getLogger("lungseg")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"%(asctime)s {of}%(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(level)
