"""The plan of an inference, made by a thread while its first parts are predicted.

The parts are in a temporary file, compressed to about 150 bytes an image. Memory holds 80 bytes a part.
"""

import os
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from itertools import islice

from lungseg import storage
from lungseg.errors import InputError
from lungseg.inference.inputs import describe_reference
from lungseg.inference.items import Item
from lungseg.inference.part_plan import PlannedPart


class PlanStream:
    """Parts of `part_size` items, in the order of the items. settings: digest of the settings.

    All methods raise the error that ended the listing, if one did.
    """

    def __init__(self, items: Iterator[Item], part_size: int, settings: str) -> None:
        self._items, self._part_size, self._settings = items, part_size, settings
        self._file = tempfile.TemporaryFile(prefix="lungseg-plan-")  # noqa: SIM115  # as long as this object
        self._ends, self._sizes, self._digests = array("Q", [0]), array("L"), list[str]()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._is_complete = False
        self.images = 0
        self.reference = ""
        threading.Thread(target=self._run, name="plan", daemon=True).start()

    def __len__(self) -> int:
        """Return the number of parts so far."""
        return len(self._digests)

    @property
    def is_complete(self) -> bool:
        """Whether all images were listed."""
        self._raise_error()
        return self._is_complete

    @property
    def digest(self) -> str:
        """Digest of all parts so far."""
        return storage.digest(self._digests)

    def wait(self, parts: int, seconds: float | None = None) -> None:
        """Return when there are this many parts, when all images are listed, or after some seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while len(self) < parts and not self._is_complete and self._error is None:
                rest = None if end is None else end - time.monotonic()
                if rest is not None and rest <= 0:
                    break
                self._changed.wait(rest)
        self._raise_error()

    def part(self, number: int) -> PlannedPart:
        """Read a part that was planned."""
        start, end = self._ends[number], self._ends[number + 1]
        items = os.pread(self._file.fileno(), end - start, start)
        return PlannedPart(number, items, self._sizes[number], self._digests[number])

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while items := list(islice(self._items, self._part_size)):
                self.reference = self.reference or describe_reference(items)
                self._add(PlannedPart.of(len(self), items, self._settings))
        except Exception as error:  # raised where the plan is used
            self._error = error
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def _add(self, part: PlannedPart) -> None:
        try:
            os.pwrite(self._file.fileno(), part.items, self._ends[-1])
        except OSError as error:
            folder = tempfile.gettempdir()
            raise InputError(f"{folder}: cannot store the plan ({error.strerror}): free disk space") from None
        with self._changed:
            self._ends.append(self._ends[-1] + len(part.items))
            self._sizes.append(part.images)
            self._digests.append(part.digest)
            self.images += part.images
            self._changed.notify_all()
