"""One case of a fuzz test: damaged bytes, how they are read, and what an error message may say."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lungseg.errors import LungsegError

_CLASS_NAME = re.compile(
    r"\b(?!(LungsegError)\b)[A-Za-z.]*[a-z](Error|Exception|Warning)\b|\bPanic|\bTraceback|<class|\bat 0x|NoneType"
)
_MAX_MESSAGE = 1200  # characters


@dataclass(frozen=True)
class Case:
    """A damaged file."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: `make` draws a case from random numbers, `read` does with it what a job does.

    `read` may raise LungsegError; any other exception is a defect.
    """

    name: str
    make: Callable[[Random], Case]
    read: Callable[[Case], None]

    def case(self, number: int) -> Case:
        """Make a case; the same number gives the same case."""
        return self.make(Random(f"{self.name} {number}"))

    def run(self, case: Case) -> None:
        """Read a case; its error must be one for a user."""
        try:
            self.read(case)
        except LungsegError as error:
            check_message(str(error))


def check_message(message: str) -> None:
    """Refuse messages that a user cannot read: class names of exceptions, many lines, control characters."""
    found = _CLASS_NAME.search(message)
    assert not found, f"a name from the program is in the message: {message!r}"
    assert message.count("\n") <= 1, f"more than two lines: {message!r}"
    assert len(message) <= _MAX_MESSAGE, f"{len(message)} characters: {message[:200]!r}"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message), f"control characters: {message!r}"
