"""The exceptions that lungseg raises for causes a user can fix, and how they cross Ray.

LungsegError
├── SettingsError        a setting that is unknown, malformed or cannot work (exit status 2)
├── InputError           a file, folder or dataset that is missing or cannot be used
│   ├── ImageError       one image or mask; carries the reason code for its row
│   ├── ShardError       a prepared dataset that is damaged, incomplete or written by another run
│   └── CheckpointError  a model folder that is damaged, incomplete or not a checkpoint
└── ResourceError        the cluster cannot provide the requested resources
                         (exit status 1 for all but SettingsError)

A message states what failed, what was found, what was expected and what to do, on one or two lines. An exception
outside this tree is a bug and keeps its traceback.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_MAX_MESSAGE = 1000  # characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LungsegError(Exception):
    """A failure that a user can fix; its message says how."""

    exit_status = 1

    def __str__(self) -> str:
        """Return the message, without characters that would control a terminal."""
        return printable(super().__str__())


class SettingsError(LungsegError):
    """A setting is unknown, malformed, or conflicts with another setting."""

    exit_status = 2


class InputError(LungsegError):
    """A file, folder or dataset is missing or cannot be used."""


class ImageError(InputError):
    """One image or mask cannot be used; `code` is the reason code of its row (`lungseg.ingest.reason_codes`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = printable(message)

    def __str__(self) -> str:
        """Return the message; `code` has the code."""
        return self.message


class ShardError(InputError):
    """A prepared dataset is damaged, incomplete, or written by another run than expected."""


class CheckpointError(InputError):
    """A model folder is damaged, incomplete, or not a checkpoint."""


class ResourceError(LungsegError):
    """The cluster cannot provide the requested resources."""


@dataclass(frozen=True)
class TaskResult:
    """The value of a task in another process, or the LungsegError that ended it.

    A task returns its error, because an exception raised in a task comes back wrapped by Ray and is retried. Objects
    travel pickled; rows of Ray Data carry `to_json()` in a string column named `result`, with a value of JSON types.
    """

    value: Any = None
    error: LungsegError | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], *args: Any) -> "TaskResult":
        """Call a function and keep its value or LungsegError; any other exception is raised."""
        try:
            return cls(function(*args))
        except LungsegError as error:
            return cls(error=error)

    def unwrap(self) -> Any:
        """Return the value.

        Raises:
            LungsegError: the task failed; class, message and exit status are those of the task.

        """
        if self.error is not None:
            raise self.error
        return self.value

    def to_json(self) -> str:
        """Encode for a string column."""
        if self.error is None:
            return json.dumps({"value": self.value})
        return json.dumps({"error": type(self.error).__name__, "args": self.error.args})

    @classmethod
    def from_json(cls, text: str) -> "TaskResult":
        """Decode what `to_json` wrote."""
        content = json.loads(text)
        if "error" not in content:
            return cls(content["value"])
        classes = {kind.__name__: kind for kind in _tree(LungsegError)}
        return cls(error=classes.get(content["error"], LungsegError)(*content["args"]))


def _tree(kind: type[LungsegError]) -> Iterator[type[LungsegError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def unwrapped(error: BaseException) -> BaseException:
    """Return the exception that a task or a Ray Train worker raised, without Ray's wrappers."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)  # of a Ray task; of a train worker
        if not isinstance(inner, BaseException):
            return error
        error = inner


def printable(text: str) -> str:
    """Escape control characters, which names and values from files may contain, and shorten a very long text."""
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def with_name(name: str, message: str) -> str:
    """Return a message that names its file."""
    return message if name in message else f"{name}: {message}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or a substitute where it has none."""
    return next(iter(str(error).strip().splitlines()), "no details known")
