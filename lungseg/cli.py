"""From a job's command line to its pipeline, and from an error to an exit status."""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from lungseg import logs
from lungseg.config import command_line
from lungseg.config.recipes import Job
from lungseg.errors import LungsegError, SettingsError

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended
TERMINATED = 143  # and for one that SIGTERM ended, as `ray job stop`, Kubernetes and systemd do


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a job in the way in which Ctrl-C does."""


def run_command(job: Job) -> NoReturn:
    """Run a job as the command that this process is, and end the process with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    status = main(job)
    if status in (INTERRUPTED, TERMINATED):
        # Runs may be in the midst of a call to Ray, which Ray's own end at exit would answer by ending with status 1.
        # The processes of a Ray that this one started end with it, whichever way it ends.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def main(job: Job, args: Sequence[str] | None = None) -> int:
    """Run a job; return 0, 1 (the work cannot be done), 2 (the settings are wrong), 130 (interrupted) or 143."""
    logs.configure()
    try:
        words = sys.argv[1:] if args is None else args
        if command_line.wants_help(words):
            return _print(command_line.help_text(job, words))
        settings = command_line.parse(job, words)
        if settings.dry_run:
            return _print(command_line.to_yaml(job, settings))
        # Imported only now: torch and ray take seconds, which --help and a wrong option need not.
        importlib.import_module(f"lungseg.pipelines.{job}").run(settings)
    except LungsegError as error:
        kind = "settings" if isinstance(error, SettingsError) else "error"
        logger.error("%s: %s", kind, error)
        return error.exit_status
    except KeyboardInterrupt as end:
        terminated = isinstance(end, _TerminatedError)
        logger.error(
            "%s: the same command continues where this one stopped", "terminated" if terminated else "interrupted"
        )
        return TERMINATED if terminated else INTERRUPTED
    return 0


def _print(text: str) -> int:
    """Print to standard output; a reader that closes it early, such as head, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _terminate(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second one would cut off the line that says so
    raise _TerminatedError
