"""Write results to standard output."""

import os
import sys


def write_output(text: str) -> None:
    """Write a text to standard output; a reader that closes it early, such as head, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
