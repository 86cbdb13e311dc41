"""Every error that lungseg raises for a reason a user can mend.

LungsegError
├── SettingsError      a setting that is unknown, malformed or cannot work (exit status 2)
├── InputError         a file, folder or data set that is missing or cannot be used
│   ├── ImageError     one image or mask; carries a reason code for its row
│   ├── ShardError     a prepared data set that is torn, incomplete or of another make
│   └── CheckpointError  a model folder that is torn or not one at all
└── ResourceError      the cluster cannot place what was asked for
                       (exit status 1 for all but SettingsError)

Messages say what, found, expected, do, on one or two lines. An error outside this tree is a bug and keeps its
traceback.
"""


class LungsegError(Exception):
    """A failure that a user can mend; its text says how."""

    exit_status = 1


class SettingsError(LungsegError):
    """A setting is unknown, malformed, or cannot work with the others."""

    exit_status = 2


class InputError(LungsegError):
    """A file, folder or data set is missing or cannot be used."""


class ImageError(InputError):
    """One image or mask cannot be used; `reason` is the code that its row carries."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Put the code before the sentence."""
        return f"{self.reason}: {self.message}"


class ShardError(InputError):
    """A prepared data set is torn, incomplete, or of another make than expected."""


class CheckpointError(InputError):
    """A model folder is torn, incomplete, or not one at all."""


class ResourceError(LungsegError):
    """The cluster cannot place what was asked for."""
