"""Read the Parquet parts that an inference wrote."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.errors import InputError
from lungseg.ingest.file_names import relative_path
from lungseg.ingest.reason_codes import counted_codes
from lungseg.schema import PREDICTIONS, STATUSES, USABLE

_SHOWN = 3


_STRANGE = "not as jobs/infer.py writes it"


@dataclass(frozen=True)
class StatusCounts:
    """What became of images: how many by status, how many by (status, reason code), and the first that failed."""

    statuses: Counter[str]
    codes: Counter[tuple[str, str]]
    examples: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> "StatusCounts":
        """Account for nothing yet."""
        return cls(Counter(), Counter())

    @classmethod
    def from_rows(cls, rows: pa.Table) -> "StatusCounts":
        """Account for the rows of a part."""
        account = cls.empty()
        examples: list[str] = []
        names = ("status", "codes", "message", "source_uri")
        for status, codes, message, uri in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
            account.statuses[status] += 1
            counted = counted_codes(status, codes)
            account.codes.update((status, code) for code in counted)
            if status not in USABLE and len(examples) < _SHOWN:
                examples.append(f"{storage.name_of(uri)}: {message} ({', '.join(counted)})")
        return cls(account.statuses, account.codes, tuple(examples))

    def add(self, other: "StatusCounts") -> "StatusCounts":
        """Join two accounts."""
        examples = (*self.examples, *other.examples)[:_SHOWN]
        return StatusCounts(self.statuses + other.statuses, self.codes + other.codes, examples)

    def without_mask(self) -> int:
        """Count the images that have no mask."""
        return sum(count for status, count in self.statuses.items() if status not in USABLE)

    def counts(self) -> dict[str, int]:
        """Count images by status, those statuses that there are."""
        return {status: self.statuses[status] for status in STATUSES if self.statuses[status]}

    def code_counts(self) -> list[dict[str, Any]]:
        """Count images by status and reason code, as predictions.json tells it."""
        return [
            {"status": status, "code": code, "images": count} for (status, code), count in sorted(self.codes.items())
        ]

    def describe_without_mask(self) -> str:
        """Name the reasons of what is lost, the most frequent first."""
        lost = [(code, count) for (status, code), count in self.codes.most_common() if status not in USABLE]
        return ", ".join(f"{count} {code}" for code, count in lost)

    def to_json(self) -> str:
        """Write it."""
        codes = [[*key, count] for key, count in sorted(self.codes.items())]
        return json.dumps({"statuses": self.statuses, "codes": codes, "examples": self.examples})

    @classmethod
    def from_json(cls, text: str) -> "StatusCounts":
        """Read what `to_json` wrote."""
        found = json.loads(text)
        codes = Counter({(status, code): count for status, code, count in found["codes"]})
        return cls(Counter(found["statuses"]), codes, tuple(found["examples"]))


def part_path(out: str, number: int) -> str:
    """Name a part's file."""
    return storage.join(out, f"part-{number:06d}.parquet")


def part_files(out: str) -> list[str]:
    """List the part files that there are; those of predictions in a folder below are not among them."""
    paths = storage.list_files(out, (".parquet",))
    names = ((path, relative_path(out, path)) for path in paths)
    return [path for path, name in names if name.startswith("part-") and "/" not in name]


def read_inference_json(path: str, advice: str) -> dict[str, Any]:
    """Read plan.json or predictions.json; of one that is damaged, say what mends it."""
    content = storage.read_bytes(path)  # a bucket that does not answer has damaged nothing
    try:
        whole = "schema" in json.loads(content)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: {_STRANGE}: {advice}")
    return storage.read_json(path, content)


def recorded_digests(out: str) -> dict[str, str]:
    """Say which SHA-256 predictions.json tells of each part, by name; of none where no inference has ended here.

    Raises:
        InputError: it is there, and is not what an inference wrote.

    """
    path = storage.join(out, "predictions.json")
    if not storage.exists(path):
        return {}
    advice = "delete it, and run the same jobs/infer.py"
    try:
        return {str(part["name"]): str(part["sha256"]) for part in read_inference_json(path, advice)["parts"]}
    except (KeyError, TypeError):
        raise InputError(f"{path}: {_STRANGE}: {advice}") from None


def read_part(path: str, content: bytes | None = None) -> pa.Table:
    """Read a part's rows; `content` where its bytes were read before.

    Raises:
        InputError: it is not there, is damaged, or has other columns than a part.

    """
    rows = storage.read_table(path, content)
    odd = set(map(_kind, PREDICTIONS)) ^ set(map(_kind, rows.schema))
    if odd:
        raise InputError(
            f"{path}: {min(name for name, _ in odd)} is not a column of it, or of another type, than infer wrote: "
            "delete it, and run the same jobs/infer.py"
        )
    return rows


def _kind(field: pa.Field) -> tuple[str, pa.DataType]:
    """Name and type of a column; of a list what is in it, which Parquet gives another name."""
    return field.name, field.type.value_type if pa.types.is_list(field.type) else field.type
