"""Which parts of a plan are predicted, in which order; finished parts of an earlier run are kept."""

from array import array
from collections.abc import Iterator
from typing import Any

from lungseg.inference import part_plan
from lungseg.inference.part_plan import PlannedPart
from lungseg.inference.plan_stream import PlanStream
from lungseg.predictions.parts import StatusCounts, part_files, part_path

_FIRST_WAIT_S = 10.0  # most archives are listed completely by then, and are predicted without a break
_WINDOW_IMAGES = 1 << 20  # images whose items are in memory at the same time, compressed


class Schedule:
    """Parts to predict, in windows that bound the memory. The plan may grow meanwhile.

    kept: counts of the rows of finished parts so far. kept_parts: their number.
    """

    def __init__(self, out: str, plan: dict[str, Any], stream: PlanStream, part_size: int) -> None:
        self._out, self._plan, self._stream = out, plan, stream
        self._window = max(1, _WINDOW_IMAGES // part_size)
        self._scanned, self._todo, self._retried = 0, array("L"), array("L")
        self._is_claimed = False
        self.kept, self.kept_parts = StatusCounts.empty(), 0
        stream.wait(1)
        if part_plan.claim_settings(out, plan):
            stream.wait(part_plan.ALL)  # the complete plan is known: compare it before anything is predicted
        else:
            stream.wait(part_plan.ALL, _FIRST_WAIT_S)
        self._scan()
        if self.remaining or not self.is_complete:
            part_plan.discard_outdated(out, [*self._todo, *self._retried])

    @property
    def is_complete(self) -> bool:
        """Whether all images of the archive are planned."""
        return self._stream.is_complete

    @property
    def images(self) -> int:
        """Number of images planned so far."""
        return self._stream.images

    @property
    def parts(self) -> int:
        """Number of parts planned so far."""
        return len(self._stream)

    @property
    def remaining(self) -> int:
        """Number of parts that are planned so far and not finished."""
        return len(self._todo) + len(self._retried)

    def windows(self) -> Iterator[list[PlannedPart]]:
        """Yield the parts to predict. Parts with files that could not be read come last: they may fail again."""
        while True:
            self._scan()
            if self._is_claimed:
                self._todo, self._retried = self._todo + self._retried, array("L")
            if not self._todo:
                if self._is_claimed:
                    return
                self._stream.wait(self._scanned + 1)
                continue
            numbers, self._todo = self._todo[: self._window], self._todo[self._window :]
            yield [self._stream.part(number) for number in numbers]

    def _scan(self) -> None:
        """Look for the finished ones among newly planned parts; claim the folder when the plan is complete."""
        is_complete, end = self.is_complete, self.parts
        if is_complete and not self._is_claimed:
            stream = self._stream
            full = {**self._plan, "images": stream.images, "reference": stream.reference, "digest": stream.digest}
            part_plan.claim(self._out, full)
            part_plan.require_own_parts(self._out, end)
            self._is_claimed = True
        if self._scanned == end:
            return
        present = set(part_files(self._out))
        for start in range(self._scanned, end, self._window):
            numbers = range(start, min(end, start + self._window))
            candidates = [number for number in numbers if part_path(self._out, number) in present]
            kept = part_plan.find_finished(self._out, [self._stream.part(number) for number in candidates])
            for counts in kept.values():
                self.kept = self.kept.add(counts)
            self.kept_parts += len(kept)
            self._retried.extend(number for number in candidates if number not in kept)
            self._todo.extend(set(numbers).difference(candidates))
        self._todo = array("L", sorted(self._todo))
        self._scanned = end
