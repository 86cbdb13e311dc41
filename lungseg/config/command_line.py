"""From a job's command line, `[RECIPE] [--config FILE] [--section.option value ...]`, to its settings."""

import argparse
import difflib
import inspect
import logging
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lungseg.config.options import describe, flatten, nest, options_of
from lungseg.config.recipes import DATA_OPTIONS, DATA_RECIPES, RECIPES, Job
from lungseg.config.shared import JobSettings
from lungseg.errors import SettingsError

logger = logging.getLogger(__name__)

_MIN_SIMILARITY = 0.65  # of a suggested name, 0 to 1
_MAX_VALUES = 10_000  # of a file of settings; the largest list names the folders of datasets
_HELP_WIDTH = 110  # longest line of help, however wide the terminal


def parse(job: Job, args: Sequence[str]) -> JobSettings:
    """Return the settings of a recipe, changed by those of the file, changed by the options.

    Without a recipe, a job whose data is named takes the recipe for such data, and a job with nothing named the demo.

    Raises:
        SettingsError: an unknown recipe, option or key, or an invalid value; one line.

    """
    recipe, words = _split_recipe(job, args)
    options, path = _read_options(job, recipe, words)
    from_file = _read_file(job, path) if path else {}
    recipe = recipe or _choose_recipe(job, {**from_file, **options}, complete=bool(path))
    start = RECIPES[job][recipe][1] if recipe else type(RECIPES[job]["demo"][1])()
    names = flatten(start.model_dump()).keys()
    try:
        return type(start).model_validate(nest({**flatten(start.model_dump()), **from_file, **options}))
    except ValidationError as error:
        name, message = describe(error, names)
        source = f"{path}: " if name in from_file and name not in options else ""
        raise SettingsError(f"{source}{message}; see {_command(job, recipe)} --help") from None


def help_text(job: Job, args: Sequence[str]) -> str:
    """Return the recipes, and every setting with its default in the named recipe."""
    recipe, _ = _split_recipe(job, [word for word in args if word not in ("-h", "--help")])
    return _parser(job, recipe).format_help()


def to_yaml(job: Job, settings: JobSettings) -> str:
    """Return all settings as YAML that `--config` reads back."""
    import yaml

    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# All settings of one run. To repeat it: lungseg {job} --config FILE\n{text}"


def _split_recipe(job: Job, args: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe, "" when none is named, and the remaining words."""
    if not args or args[0].startswith("-"):
        return "", list(args)
    if args[0] not in RECIPES[job]:
        known = ", ".join(RECIPES[job])
        near = difflib.get_close_matches(args[0], RECIPES[job], 1)
        advice = f"did you mean {near[0]}?" if near else f"pass one of {known}, or options only"
        if not near and os.path.exists(args[0]):
            options = " or ".join(f"--{name.replace('_', '-')}" for name in DATA_OPTIONS[job])
            advice += f"; a path needs its option, {options}"
        raise SettingsError(f"lungseg {job} has no recipe {args[0]!r}: {advice}")
    return args[0], list(args[1:])


def _choose_recipe(job: Job, given: Mapping[str, Any], complete: bool) -> str:
    """Choose a recipe for a command that names none, and log it; "" for a file that holds all settings."""
    if complete:
        return ""
    named = [name for name in DATA_OPTIONS[job] if given.get(name)]
    if not named:
        logger.info("no recipe and no data named: running the demo; lungseg %s --help lists the recipes", job)
        return "demo"
    chosen = DATA_RECIPES[job]
    logger.info("no recipe named: using %s for --%s; lungseg %s --help lists the recipes", chosen, named[0], job)
    return chosen


def _read_options(job: Job, recipe: str, words: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the options that were given, by dotted name, and the path of the file of settings."""
    parser = _parser(job, recipe)
    see = f"see {_command(job, recipe)} --help"
    try:
        values, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error.argument_name}: {error.message}; {see}") from None
    if unknown:
        word = unknown[0].split("=")[0]
        if word in RECIPES[job]:
            raise SettingsError(f"recipe {word} after an option: the recipe comes first, as {_command(job, word)}")
        known = [option.name for options in options_of(RECIPES[job]["demo"][1]).values() for option in options]
        raise SettingsError(f"unknown option {word}{_near(word, known) if word.startswith('-') else ''}; {see}")
    given = vars(values)
    return given, given.pop("config", "")


def _read_file(job: Job, path: str) -> dict[str, Any]:
    """Return the settings of a YAML file by dotted name."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {(error.strerror or 'unreadable').lower()}: check the path") from None
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError) as error:
        # Its constructors of dates and numbers raise other exceptions than YAMLError.
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise SettingsError(f"--config {path}: not YAML{line}: pass a file as --dry-run prints it") from None
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path}: expected names and values, as --dry-run prints them")
    if _has_more_values(content, _MAX_VALUES):
        raise SettingsError(f"--config {path}: more than {_MAX_VALUES} values: pass a file as --dry-run prints it")
    values = flatten(content)
    known = flatten(RECIPES[job]["demo"][1].model_dump()).keys()
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        other = _job_of(values)
        if other:
            raise SettingsError(
                f"--config {path}: settings of lungseg {other}, not of lungseg {job}: pass another file"
            )
        raise SettingsError(f"--config {path}: lungseg {job} has no setting {unknown}{_near(unknown, known)}")
    return values


def _job_of(values: Mapping[str, Any]) -> Job | None:
    """Return the job that has all these settings, if there is one."""
    return next((job for job in RECIPES if values.keys() <= flatten(RECIPES[job]["demo"][1].model_dump()).keys()), None)


def _near(word: str, known: Iterable[str]) -> str:
    """Suggest the known names with the same last part, else the name that is nearest as a whole or in that part."""

    def similarity(name: str) -> float:
        pairs = (word, name), (_last_part(word), _last_part(name))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    names = list(known)
    near = [name for name in names if _last_part(name) == _last_part(word)]
    near = near or [name for name in [max(names, key=similarity)] if similarity(name) >= _MIN_SIMILARITY]
    return f": did you mean {' or '.join(near)}?" if near else ""


def _last_part(name: str) -> str:
    """Return the last part of an option or setting, such as `size` of --preprocess.size and --preprocess.no-size."""
    return name.rpartition(".")[2].removeprefix("--").removeprefix("no-").replace("_", "-")


def _has_more_values(content: Any, limit: int) -> bool:
    """Return whether a tree has more than `limit` values; aliases of YAML may make it very large, or endless."""
    remaining, count = [content], 0
    while remaining and count <= limit:
        value = remaining.pop()
        count += 1
        if isinstance(value, Mapping):
            remaining += value.values()
        elif isinstance(value, list | tuple | set):
            remaining += value
    return count > limit


def _command(job: Job, recipe: str) -> str:
    return " ".join(filter(None, (f"lungseg {job}", recipe)))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wrap help without breaking words such as tu-tf_efficientnet_lite0 at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _parser(job: Job, recipe: str) -> argparse.ArgumentParser:
    """Build the parser of a job; defaults are shown in help only and are not set by it."""
    shown = recipe or DATA_RECIPES[job]
    settings = RECIPES[job][shown][1]
    width = min(shutil.get_terminal_size().columns - 2, _HELP_WIDTH)
    parser = argparse.ArgumentParser(
        prog=f"lungseg {job}",
        usage=f"lungseg {job} [RECIPE] [--config FILE] [--section.option value ...]",
        description=_description(job, shown, width),
        formatter_class=lambda prog: _HelpFormatter(prog, max_help_position=30, width=width),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    general = parser.add_argument_group("every job")
    general.add_argument("--help", "-h", action="store_true", help="print this text and exit")
    general.add_argument(
        "--config", metavar="FILE", help="YAML file of settings, as --dry-run prints it; options override it"
    )
    for section, options in options_of(settings).items():
        part = getattr(settings, section) if section else settings
        title = f"--{section}.*".replace("_", "-") if section else "this job"
        summary = textwrap.fill(inspect.cleandoc(part.__doc__ or "").splitlines()[0], width - 2)
        group = parser.add_argument_group(title, summary if section else None)
        for option in options:
            option.add_to(general if option.path in (("dry_run",), ("strict",)) else group)
    return parser


def _description(job: Job, shown: str, width: int) -> str:
    """Return what the job does and the list of recipes, wrapped."""
    recipes = RECIPES[job]
    column = max(map(len, recipes)) + 4
    lines = textwrap.wrap(" ".join((recipes["demo"][1].__doc__ or "").split()), width)
    lines += ["", "recipes:"]
    for name, (promise, _) in recipes.items():
        indent = " " * column
        lines += textwrap.wrap(promise, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=indent)
    without = f"Without RECIPE: {DATA_RECIPES[job]} if your data is named, demo if nothing is."
    defaults = f"The defaults below are those of {shown}; lungseg {job} RECIPE --help shows those of another recipe."
    lines += ["", *textwrap.wrap(without, width), *textwrap.wrap(defaults, width)]
    return "\n".join(lines)
