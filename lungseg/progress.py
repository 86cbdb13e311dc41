"""Progress of a job: one line that is rewritten on a terminal, and a line from time to time in a log."""

import logging
import shutil
import sys
import threading
import time

_LOG_INTERVAL_S = 30.0
_MAX_LOG_INTERVAL_S = 60.0  # of jobs that run for hours
_TERMINAL_INTERVAL_S = 0.2
_BAR_WIDTH = 24  # characters
_TURN_S = 3.0  # how long one of several runs stays at the front of the line


class ProgressLine:
    """Shows the progress of a job. Thread-safe."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._is_terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        # A terminal shows the first state at once. A log waits: a short job needs no line.
        self._last_update = self._started - (_TERMINAL_INTERVAL_S if self._is_terminal else 0.0)

    def update(self, text: str, share: float | None = None) -> None:
        """Show the current state, unless the last one was shown a moment ago.

        share: of the work that is done, 0 to 1; a terminal shows it as a bar.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._last_update < self._interval(now):
                return
            self._last_update = now
            if self._is_terminal:
                text = f"{_draw_bar(share)} {text}" if share is not None else text
                # A line that wraps cannot be rewritten.
                sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
                sys.stderr.flush()
            else:
                self._logger.info("%s", text)

    def log(self, text: str, level: int = logging.INFO) -> None:
        """Log a line of its own, which is not rewritten."""
        with self._lock:
            if self._is_terminal:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._logger.log(level, "%s", text)

    def close(self) -> None:
        """Remove the line from a terminal before something else is printed."""
        if self._is_terminal:
            with self._lock:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()

    def _interval(self, now: float) -> float:
        if self._is_terminal:
            return _TERMINAL_INTERVAL_S
        return min(_MAX_LOG_INTERVAL_S, max(_LOG_INTERVAL_S, (now - self._started) / 10))


def _draw_bar(share: float) -> str:
    done = round(_BAR_WIDTH * min(max(share, 0.0), 1.0))
    bar = "━" * done + "─" * (_BAR_WIDTH - done)
    try:
        bar.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * done + "." * (_BAR_WIDTH - done)
    return bar


class SharedProgressLine:
    """One progress line for several runs, each under its name. Thread-safe."""

    def __init__(self, logger: logging.Logger) -> None:
        self._line = ProgressLine(logger)
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self.closed = threading.Event()
        """Set when the job ends. Ray ends with it, and a later call to Ray would end the process."""

    def update(self, name: str, text: str) -> None:
        """Show the current state of one run beside the others; the runs take turns at the front."""
        with self._lock:
            self._states[name] = text
            states = [f"{run}: {state}" for run, state in sorted(self._states.items())]
        turn = int(time.monotonic() / _TURN_S) % len(states)
        self._line.update(" | ".join([*states[turn:], *states[:turn]]))

    def log(self, name: str, text: str, level: int = logging.INFO) -> None:
        """Log a line about one run, which is not rewritten."""
        self._line.log(f"{name}: {text}", level)

    def remove(self, name: str) -> None:
        """Stop showing a run."""
        with self._lock:
            self._states.pop(name, None)
