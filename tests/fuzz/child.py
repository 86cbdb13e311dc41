"""Run fuzz cases in a process of its own, so that a crash, a hang or too much memory is found and named.

python -m tests.fuzz.child FOLDER MODULE.KIND FIRST COUNT [MODULE.KIND FIRST COUNT ...]
"""

import faulthandler
import importlib
import json
import re
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

from tests.fuzz.cases import Case, Kind

MAX_SECONDS, MAX_MIB = 10, 1024
"""Limits of one case: CPU time, and memory above that at its start."""
_WATCHDOG_S = 60  # by the clock: other work on the machine may slow a case down, but not as much
_HARD_MIB = 6144  # address space above that at the start: protects the machine


def find_kind(name: str) -> Kind:
    """Find a kind by the name of its module and its own, as image_kinds.png."""
    module, _, own = name.partition(".")
    kinds: tuple[Kind, ...] = importlib.import_module(f"tests.fuzz.{module}").KINDS
    return next(kind for kind in kinds if kind.name == own)


def main(folder: Path, jobs: list[tuple[str, int, int]]) -> None:
    """Run the cases; append each failure to failures.jsonl. `current` names the case that is running."""
    warnings.simplefilter("error")
    # As in pyproject.toml: pycocotools decodes run lengths through a C buffer without NumPy 2's copy keyword.
    warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
    _limit_address_space()
    with (folder / "failures.jsonl").open("a") as failures, (folder / "stacks.txt").open("a") as stacks:
        for name, first, count in jobs:
            kind = find_kind(name)
            kind.case(first)  # writes the intact files, which is not part of a case
            for number in range(first, first + count):
                (folder / "current").write_text(f"{name} {number}")
                faulthandler.dump_traceback_later(_WATCHDOG_S, exit=True, file=stacks)
                problem = run(kind, number, folder)
                faulthandler.cancel_dump_traceback_later()
                if problem:
                    failures.write(json.dumps({"kind": name, "number": number, "problem": problem}) + "\n")
                    failures.flush()
    (folder / "current").unlink(missing_ok=True)


def run(kind: Kind, number: int, folder: Path) -> str:
    """Run one case; return what is wrong, and write the file of a failure."""
    case = Case("not made", b"")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the memory
    before, began = _memory("VmRSS"), time.process_time()
    problem = ""
    try:
        case = kind.case(number)
        kind.run(case)
    except BaseException:
        problem = traceback.format_exc()
    seconds, mib = time.process_time() - began, (_memory("VmHWM") - before) / 1024
    if mib > MAX_MIB:
        problem += f"\n{mib:.0f} MiB of memory, expected {MAX_MIB} at most ({seconds:.1f} s)"
    if seconds > MAX_SECONDS:
        problem += f"\n{seconds:.1f} s, expected {MAX_SECONDS} s at most"
    if problem:
        (folder / f"{kind.name.replace('/', '-')}-{number}-{case.name}").write_bytes(case.content)
    return problem


def _memory(field: str) -> int:
    """Return a field of the process's memory, KiB."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) if match else 0


def _limit_address_space() -> None:
    limit = (_memory("VmSize") << 10) + (_HARD_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    words = sys.argv[2:]
    main(Path(sys.argv[1]), [(words[i], int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 3)])
