"""From the command line of `lungseg` or of a job to its pipeline, and from an error to an exit status."""

import functools
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, cast

from lungseg import __version__, logs
from lungseg.config.overview import JOB_COMMANDS, MODEL_COMMANDS, overview, unknown_command, wants_help
from lungseg.errors import LungsegError, SettingsError
from lungseg.standard_output import write_output

if TYPE_CHECKING:
    from lungseg.config.recipes import Job

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended
TERMINATED = 143  # and for one that SIGTERM ended, as `ray job stop`, Kubernetes and systemd do


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which ends a job in the way in which Ctrl-C does."""


def run() -> NoReturn:
    """Run the command `lungseg` that this process is, and end the process with its status."""
    _run_process(functools.partial(dispatch, sys.argv[1:]))


def run_command(job: "Job") -> NoReturn:
    """Run a job as the command that this process is, and end the process with its status."""
    _run_process(functools.partial(main, job, sys.argv[1:]))


def dispatch(words: Sequence[str]) -> int:
    """Run the command that the words after `lungseg` name; return its exit status, as `main` does."""
    name, *rest = words or ["--help"]
    if name in JOB_COMMANDS:
        return main(cast("Job", name), rest)
    others = {"segment": _run_segment} | {
        command: functools.partial(_run_model_command, command) for command in MODEL_COMMANDS
    }
    return _guarded(functools.partial(others.get(name, functools.partial(_print_about, name)), rest))


def main(job: "Job", args: Sequence[str]) -> int:
    """Run a job; return 0, 1 (the work cannot be done), 2 (the settings are wrong), 130 (interrupted) or 143."""
    return _guarded(functools.partial(_run_job, job, args))


def _run_job(job: "Job", args: Sequence[str]) -> None:
    from lungseg.config import command_line  # the settings of all jobs, which `segment` does not need

    if wants_help(args):
        return write_output(command_line.help_text(job, args))
    settings = command_line.parse(job, args)
    if settings.dry_run:
        return write_output(command_line.to_yaml(job, settings))
    # Imported only now: torch and ray take seconds, which --help and a wrong option need not.
    importlib.import_module(f"lungseg.pipelines.{job}").run(settings)
    return None


def _run_model_command(name: str, args: Sequence[str]) -> None:
    importlib.import_module(f"lungseg.pipelines.{name.replace('-', '_')}").run(args)


def _run_segment(args: Sequence[str]) -> None:
    from lungseg.config.segment import parse_segment, segment_help

    if wants_help(args):
        return write_output(segment_help())
    settings = parse_segment(args)
    importlib.import_module("lungseg.segment_command.run").run(settings)
    return None


def _print_about(name: str, rest: Sequence[str]) -> None:
    """Print help, version or completion of the command itself.

    Raises:
        SettingsError: there is no such command.

    """
    if name in ("-h", "--help", "help"):
        write_output(overview(__version__))
    elif name in ("-V", "--version"):
        write_output(f"lungseg {__version__}\n")
    elif name == "completion":
        from lungseg.config.completion import completion_script

        write_output(completion_script(rest[0] if rest else ""))
    else:
        raise SettingsError(unknown_command(name))


def _guarded(work: Callable[[], None]) -> int:
    """Do the work; log an error that the user can fix in one line; return the exit status."""
    logs.configure()
    try:
        work()
    except LungsegError as error:
        kind = "settings" if isinstance(error, SettingsError) else "error"
        logger.error("%s: %s", kind, error)
        return error.exit_status
    except KeyboardInterrupt as end:
        terminated = isinstance(end, _TerminatedError)
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # after a progress line
        advice = next(iter(getattr(end, "__notes__", ())), "the same command continues where this one stopped")
        logger.error("%s: %s", "terminated" if terminated else "interrupted", advice)
        return TERMINATED if terminated else INTERRUPTED
    return 0


def _run_process(command: Callable[[], int]) -> NoReturn:
    signal.signal(signal.SIGTERM, _terminate)
    status = command()
    if status in (INTERRUPTED, TERMINATED):
        # Runs may be in the midst of a call to Ray, which Ray's own end at exit would answer by ending with status 1.
        # The processes of a Ray that this one started end with it, however it ends.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _terminate(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second one would cut off the line that says so
    raise _TerminatedError
