"""From a job's command line to its pipeline, and from an error to an exit status."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lungseg import logs
from lungseg.errors import LungsegError, SettingsError
from lungseg.recipes import Job, parse

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def run_command(job: Job) -> NoReturn:
    """Run a job as the command that this process is, and end the process with its status."""
    status = main(job)
    if status == INTERRUPTED:
        # Runs may be in the midst of a call to Ray, which Ray's own end at exit would answer by ending with status 1.
        # The processes of a Ray that this one started end with it, whichever way it ends.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def main(job: Job, args: Sequence[str] | None = None) -> int:
    """Run a job; return 0, 1 (the work cannot be done), 2 (the settings are wrong) or 130 (interrupted)."""
    logs.configure()
    try:
        settings = parse(job, sys.argv[1:] if args is None else args)
        if settings.dry_run:
            sys.stdout.write(settings.model_dump_json(indent=1) + "\n")
            return 0
        # Imported only now: torch and ray take seconds, which --help and a wrong option need not.
        importlib.import_module(f"lungseg.pipelines.{job}").run(settings)
    except LungsegError as error:
        kind = "settings" if isinstance(error, SettingsError) else "error"
        logger.error("%s: %s", kind, error)
        return error.exit_status
    except KeyboardInterrupt:
        logger.error("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    return 0
