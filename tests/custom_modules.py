"""The module of docs/building-on-lungseg.md, and other modules of own code, for tests."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lungseg.model import custom_code

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "building-on-lungseg.md"


def documented_module() -> str:
    """Return the source of mylab/methods.py as the page shows it."""
    (source,) = re.findall(r"```python\n(# mylab/methods\.py\n.*?)```", _PAGE.read_text(), re.DOTALL)
    return str(source)


@contextmanager
def importable(folder: Path, sources: dict[str, str]) -> Iterator[None]:
    """Write modules, by dotted name, into a folder and make them importable inside the block."""
    for name, source in sources.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    packages = {name.split(".")[0] for name in sources}
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = before
        for module in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[module]
        custom_code.source_digest.cache_clear()
