"""Start fuzz cases in another process, and report what is wrong: errors, crashes, hangs, memory."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MAX_CRASHES = 5


def first_of_today() -> int:
    """Return the number of the first case, so that each day runs other cases; the fast tests run those from 0 on."""
    return 1000 * (1 + date.today().toordinal() % 10_000)


def problems(folder: Path, counts: dict[str, int], first: int = 0) -> list[str]:
    """Run `counts[kind]` cases of each kind, from number `first` on; describe each failure.

    The files of failed cases are in the folder. After a crash or a hang the remaining cases run in a new process.
    """
    remaining = {kind: (first, count) for kind, count in counts.items()}
    found = []
    for _ in range(_MAX_CRASHES):
        crashed = _run(folder, remaining)
        if not crashed:
            break
        kind, number = crashed
        found.append(f"{kind} case {number}: the process crashed, or did not end, see stacks.txt")
        kinds = [*remaining]
        start, count = remaining[kind]
        rest = {other: remaining[other] for other in kinds[kinds.index(kind) + 1 :]}
        remaining = {kind: (number + 1, start + count - number - 1), **rest}
    lines = (folder / "failures.jsonl").read_text().splitlines()
    return found + ["{kind} case {number}: {problem}".format(**json.loads(line)) for line in lines]


def _run(folder: Path, jobs: dict[str, tuple[int, int]]) -> tuple[str, int] | None:
    """Run jobs in one process; return kind and number of the case that ended it, if one did."""
    words = [str(word) for kind, (first, count) in jobs.items() for word in (kind, first, count)]
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return None
    current = folder / "current"
    assert current.exists(), f"no case was started: {done.stderr[-3000:]}"
    kind, _, number = current.read_text().rpartition(" ")
    return kind, int(number)
