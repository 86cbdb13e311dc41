"""The commands of `lungseg`, the text of `lungseg --help`, and the nearest command to a mistyped one."""

import difflib
from collections.abc import Mapping, Sequence

JOB_COMMANDS: Mapping[str, str] = {
    "prepare": "turn an archive of X-rays into data for training",
    "train": "train models, and test them within and across hospitals",
    "adapt": "adapt models to another hospital's X-rays, without masks",
    "infer": "segment an archive of any size into Parquet rows",
    "export": "turn predictions into masks, overlays, COCO or DICOM files",
    "report": "show a study and its predictions in tables and an HTML page",
    "bench": "measure each stage and name the one that limits the speed",
}
"""What each job does. `jobs/NAME.py` is the same job for `ray job submit`."""

DAILY_COMMANDS: Mapping[str, str] = {
    "segment": "turn files, folders and zip archives into masks and a table",
}

MODEL_COMMANDS: Mapping[str, str] = {
    "models": "list installed and downloaded models with their terms",
    "export-model": "write a trained model as a folder that others can load",
}
"""`lungseg.pipelines` has a module for each of them."""

OTHER_COMMANDS: Mapping[str, str] = {
    **MODEL_COMMANDS,
    "completion": "print a script for completion in bash, zsh or fish",
}

_ALL = (*DAILY_COMMANDS, *JOB_COMMANDS, *OTHER_COMMANDS)
_MIN_SIMILARITY = 0.6  # of a suggested command, 0 to 1


def overview(version: str) -> str:
    """Return the text of `lungseg --help`."""
    return f"""lungseg {version}: lung segmentation in frontal chest X-rays

usage: lungseg COMMAND [settings]

to segment X-rays, as in lungseg segment xrays/ -o out:
{_lines(DAILY_COMMANDS)}

jobs, in the order of a study:
{_lines(JOB_COMMANDS)}

other commands:
{_lines(OTHER_COMMANDS)}

lungseg COMMAND --help explains a command. lungseg --version prints the version.
A job can be stopped at any moment; the same command continues.
"""


def wants_help(words: Sequence[str]) -> bool:
    """Return whether the words of a command ask for help."""
    return not {"-h", "--help"}.isdisjoint(words)


def unknown_command(word: str) -> str:
    """Return one sentence about a command that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(word, _ALL, 1, _MIN_SIMILARITY)
    suggestion = f"did you mean lungseg {near[0]}?" if near else "lungseg --help lists the commands"
    return f"no command {word!r}: {suggestion}"


def _lines(commands: Mapping[str, str]) -> str:
    width = max(map(len, _ALL)) + 2
    return "\n".join(f"  {name:<{width}}{summary}" for name, summary in commands.items())
