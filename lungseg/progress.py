"""One line of progress: rewritten in place on a terminal, said now and then in a job's log."""

import logging
import shutil
import sys
import threading
import time

_LOG_EVERY_S = 10.0
_LOG_AT_MOST_EVERY_S = 60.0  # work of hours says less often how far it is
_TERMINAL_EVERY_S = 0.2
_TURN_S = 3.0  # of one of several runs at the front of the terminal's line


class ProgressLine:
    """Shows how far a piece of work is; from any thread."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        # A terminal shows the first state at once; a log waits, as short work needs no line.
        self._last = self._began - (_TERMINAL_EVERY_S if self._terminal else 0.0)

    def show(self, text: str) -> None:
        """Show the newest state, if the last one has stood long enough."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < self._every(now):
                return
            self._last = now
            if self._terminal:
                # A line that wraps could not be rewritten.
                sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
                sys.stderr.flush()
            else:
                self._logger.info("%s", text)

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Say what stays: a line of its own."""
        with self._lock:
            if self._terminal:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._logger.log(level, "%s", text)

    def _every(self, now: float) -> float:
        if self._terminal:
            return _TERMINAL_EVERY_S
        return min(_LOG_AT_MOST_EVERY_S, max(_LOG_EVERY_S, (now - self._began) / 10))


class SharedLine:
    """One progress line of several runs, each by its name."""

    def __init__(self, logger: logging.Logger) -> None:
        self._line = ProgressLine(logger)
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self.closed = threading.Event()
        """Set where the job is at its end, and with it Ray: whoever asks Ray for something then is ended too."""

    def show(self, name: str, text: str) -> None:
        """Show the newest state of one of them, beside the others'; they take turns at the front."""
        with self._lock:
            self._states[name] = text
            states = [f"{one}: {state}" for one, state in sorted(self._states.items())]
        turn = int(time.monotonic() / _TURN_S) % len(states)
        self._line.show(" | ".join([*states[turn:], *states[:turn]]))

    def say(self, name: str, text: str, level: int = logging.INFO) -> None:
        """Say of one of them what stays."""
        self._line.say(f"{name}: {text}", level)

    def end(self, name: str) -> None:
        """Show one no more."""
        with self._lock:
            self._states.pop(name, None)
