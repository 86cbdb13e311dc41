"""The versions that a result states beside its numbers."""

import importlib.metadata
import platform
from collections.abc import Iterable

from lungseg import __version__


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of lungseg, Python and the named distributions."""
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"lungseg": __version__, "python": platform.python_version(), **installed}
