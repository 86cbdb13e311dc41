"""Command-line options of a settings class: one option per field, `--section.option` for a nested one."""

import argparse
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lungseg.config.shared import JobSettings, Settings, format_value
from lungseg.errors import SettingsError

_TYPE_NAMES = {int: "INT", float: "FLOAT", str: "TEXT"}
_EXPECTED = {"int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number"} | {
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}


@dataclass(frozen=True)
class Option:
    """One field; path: the names of its section, if any, and of the field itself."""

    path: tuple[str, ...]
    annotation: Any
    help: str
    default: Any

    @property
    def name(self) -> str:
        """The option as it is typed."""
        return "--" + ".".join(self.path).replace("_", "-")

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return self.annotation is bool

    @property
    def names(self) -> tuple[str, ...]:
        """The option as it is typed and, for a flag, its negation."""
        *sections, last = self.name.removeprefix("--").split(".")
        return (self.name, "--" + ".".join([*sections, f"no-{last}"])) if self.is_flag else (self.name,)

    @property
    def choices(self) -> tuple[str, ...]:
        """All values that the option takes, if they are words of a fixed list."""
        return _choices(self.annotation)

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Add the option to a group of an argparse parser."""
        default = "" if self.default in ("", (), None) else f" (default: {format_value(self.default)})"
        text, dest = (self.help + default).replace("%", "%%"), ".".join(self.path)
        if self.is_flag:
            group.add_argument(*self.names, dest=dest, action=_Flag, nargs=0, help=text)
        else:
            nargs: Any = "*" if get_origin(self.annotation) is tuple else None
            read = _none_or_text if type(None) in get_args(self.annotation) else str
            metavar = _type_name(self.annotation)
            group.add_argument(self.name, dest=dest, nargs=nargs, type=read, metavar=metavar, help=text)


class _Flag(argparse.Action):
    """Store True for `--section.x` and False for `--section.no-x`."""

    def __call__(self, _parser: Any, namespace: Any, _values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def _none_or_text(word: str) -> str | None:
    return None if word == "none" else word


def require_options(values: Mapping[str, object]) -> None:
    """Check that options are set; values: by what to pass, such as `--archive FOLDER (images)`.

    Raises:
        SettingsError: options are missing; the message names all of them.

    """
    missing = [text for text, value in values.items() if not value]
    if missing:
        raise SettingsError(f"pass {' and '.join(missing)}")


def options_of(settings: JobSettings) -> dict[str, list[Option]]:
    """List the options by section ("" first) with the values of these settings as defaults."""
    by_section: dict[str, list[Option]] = {"": []}
    for option in _walk(settings, ()):
        by_section.setdefault(".".join(option.path[:-1]), []).append(option)
    return by_section


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"optim.lr": 1} into {"optim": {"lr": 1}}."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        *sections, last = dotted.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"optim": {"lr": 1}} into {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def describe(error: ValidationError, names: Iterable[str]) -> tuple[str, str]:
    """Return the dotted name of the first invalid setting ("" for a rule between several) and one line about it."""
    errors = error.errors()
    dotted = _name_of(errors[0], names)
    same = [one for one in errors if _name_of(one, names) == dotted]
    first = next((one for one in same if one["type"] != "literal_error" and one["type"] not in _EXPECTED), None)
    if first and first["type"] == "value_error":
        return dotted, str(first["ctx"]["error"])
    option = f"--{dotted.replace('_', '-')} {format_value(same[0]['input'])}"
    if first:
        return dotted, f"{option}: {first['msg'][0].lower()}{first['msg'][1:]}"
    expected = [one["ctx"]["expected"] if one["type"] == "literal_error" else _EXPECTED[one["type"]] for one in same]
    return dotted, f"{option}: expected {' or '.join(dict.fromkeys(expected))}"


def _name_of(error: ErrorDetails, names: Iterable[str]) -> str:
    """Return the longest known name that begins the error's location, which may go on with an index or a type."""
    location = [str(part) for part in error["loc"]]
    prefixes = {".".join(location[:length]) for length in range(1, len(location) + 1)}
    return max(prefixes.intersection(names), key=len, default="")


def _walk(settings: Settings, prefix: tuple[str, ...]) -> Iterator[Option]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _walk(value, (*prefix, name))
        else:
            yield Option((*prefix, name), field.annotation, " ".join((field.description or "").split()), value)


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the words of a Literal, or of a list of them."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(args)
    return _choices(args[0]) if origin in (Annotated, tuple) else ()


def _type_name(annotation: Any) -> str:
    """Return how help shows the values of a type, such as `auto|INT`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, tuple):
        return _type_name(args[0])
    if origin is Literal:
        return "|".join(args)
    if origin in (Union, types.UnionType):
        return "|".join("none" if arg is type(None) else _type_name(arg) for arg in args)
    return _TYPE_NAMES[annotation]
