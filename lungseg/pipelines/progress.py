"""One line of progress: rewritten in place on a terminal, said now and then in a job's log."""

import logging
import sys
import time

_LOG_EVERY_S = 10.0
_TERMINAL_EVERY_S = 0.2


class ProgressLine:
    """Shows how far a piece of work is."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._terminal = sys.stderr.isatty()
        # A terminal shows the first state at once; a log waits, as short work needs no line.
        self._last = time.monotonic() - (_TERMINAL_EVERY_S if self._terminal else 0.0)

    def show(self, text: str) -> None:
        """Show the newest state, if the last one has stood long enough."""
        now = time.monotonic()
        if now - self._last < (_TERMINAL_EVERY_S if self._terminal else _LOG_EVERY_S):
            return
        self._last = now
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            self._logger.info("%s", text)

    def say(self, text: str) -> None:
        """Say what stays: a line of its own."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._logger.info("%s", text)
