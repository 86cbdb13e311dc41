"""Read the Parquet parts and the JSON files that lungseg infer wrote."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lungseg import storage
from lungseg.arrow import pa
from lungseg.errors import InputError, with_name
from lungseg.ingest.file_names import relative_path
from lungseg.ingest.reason_codes import NOT_IMAGES, counted_codes
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import STATUSES, USABLE
from lungseg.storage.json_files import JsonFields, parse_json
from lungseg.storage.table_formats import PREDICTION_TABLE, check_table

_MAX_EXAMPLES = 3
_WRONG_FORMAT = "not in the format that lungseg infer writes"


class PartFields(JsonFields):
    """A part in predictions.json."""

    name: str
    sha256: str


_PARTS = TypeAdapter(list[PartFields])


@dataclass(frozen=True)
class StatusCounts:
    """Number of images by status and by (status, reason code), and of those with a mask by flag.

    flagged: images with a mask and a flag. examples: messages of the first images without a mask.
    """

    statuses: Counter[str]
    codes: Counter[tuple[str, str]]
    examples: tuple[str, ...] = ()
    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0

    @classmethod
    def empty(cls) -> "StatusCounts":
        """Return counts of 0 images."""
        return cls(Counter(), Counter())

    @classmethod
    def from_rows(cls, rows: pa.Table) -> "StatusCounts":
        """Count the rows of a part."""
        counts = cls.empty()
        examples: list[str] = []
        flagged = zip(rows.column("status").to_pylist(), rows.column("flags").to_pylist(), strict=True)
        flags = [set(names or ()) for status, names in flagged if status in USABLE]
        names = ("status", "codes", "message", "source_uri")
        for status, codes, message, uri in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
            counts.statuses[status] += 1
            reasons = counted_codes(status, codes)
            counts.codes.update((status, code) for code in reasons)
            if status not in USABLE and len(examples) < _MAX_EXAMPLES:
                examples.append(f"{with_name(storage.name_of(uri), message or '')} ({', '.join(reasons)})")
        by_flag = Counter(name for names in flags for name in names)
        return cls(counts.statuses, counts.codes, tuple(examples), by_flag, sum(map(bool, flags)))

    def add(self, other: "StatusCounts") -> "StatusCounts":
        """Return the sum of both counts."""
        examples = (*self.examples, *other.examples)[:_MAX_EXAMPLES]
        return StatusCounts(
            self.statuses + other.statuses,
            self.codes + other.codes,
            examples,
            self.flags + other.flags,
            self.flagged + other.flagged,
        )

    def not_predicted(self) -> int:
        """Count the images that have no mask."""
        return sum(count for status, count in self.statuses.items() if status not in USABLE)

    def lost_images(self) -> int:
        """Count the images that have no mask; masks that no image uses do not count."""
        unmatched = sum(count for (_, code), count in self.codes.items() if code in NOT_IMAGES)
        return self.not_predicted() - unmatched

    def predicted(self) -> int:
        """Count the images that have a mask."""
        return self.statuses.total() - self.not_predicted()

    def counts(self) -> dict[str, int]:
        """Count images by status, without the statuses that no image has."""
        return {status: self.statuses[status] for status in STATUSES if self.statuses[status]}

    def code_counts(self) -> list[dict[str, Any]]:
        """Count images by status and reason code, in the format of predictions.json."""
        return [
            {"status": status, "code": code, "images": count} for (status, code), count in sorted(self.codes.items())
        ]

    def describe_not_predicted(self) -> str:
        """List the reason codes of images without a mask, the most frequent first."""
        reasons = [(code, count) for (status, code), count in self.codes.most_common() if status not in USABLE]
        return ", ".join(f"{count} {code}" for code, count in reasons)

    def describe_flagged(self) -> str:
        """List the flags, the most frequent first."""
        return ", ".join(f"{count} {flag}" for flag, count in self.flags.most_common())

    def to_json(self) -> str:
        """Serialize to JSON."""
        codes = [[*key, count] for key, count in sorted(self.codes.items())]
        flags = {"flags": self.flags, "flagged": self.flagged}
        return json.dumps({"statuses": self.statuses, "codes": codes, "examples": self.examples, **flags})

    @classmethod
    def from_json(cls, text: str) -> "StatusCounts":
        """Restore the output of `to_json`."""
        values = json.loads(text)
        codes = Counter({(status, code): count for status, code, count in values["codes"]})
        examples, flags = tuple(values["examples"]), Counter(values["flags"])
        return cls(Counter(values["statuses"]), codes, examples, flags, values["flagged"])


def rows_folder(out: str) -> str:
    """Return the folder of the parts. It holds nothing else, so that tools read it as one table of Parquet files."""
    return storage.join(out, "rows")


def part_path(out: str, number: int) -> str:
    """Return the path of a part."""
    return storage.join(rows_folder(out), f"part-{number:06d}.parquet")


def part_files(out: str) -> list[str]:
    """List the parts of a predictions folder; none where it has no rows yet."""
    folder = rows_folder(out)
    paths = storage.list_files(folder, (".parquet",)) if storage.exists(folder) else []
    names = ((path, relative_path(folder, path)) for path in paths)
    return [path for path, name in names if name.startswith("part-") and "/" not in name]


def read_inference_json(path: str, advice: str) -> dict[str, Any]:
    """Read plan.json or predictions.json; advice: what the error for a damaged file tells the user to do."""
    content = storage.read_bytes(path)  # outside the try: a bucket that does not respond is not a damaged file
    try:
        value = parse_json(content, path)
    except InputError:
        value = None
    if not isinstance(value, dict) or "schema" not in value:
        raise InputError(f"{path}: {_WRONG_FORMAT}: {advice}")
    return storage.read_json(path, content)


def recorded_digests(out: str) -> dict[str, str]:
    """Return the SHA-256 of each part by file name from predictions.json; empty without predictions.json.

    Raises:
        InputError: predictions.json is damaged.

    """
    path = storage.join(out, "predictions.json")
    if not storage.exists(path):
        return {}
    advice = "delete it and run the same lungseg infer command again"
    parts = read_inference_json(path, advice).get("parts")
    try:
        return {part.name: part.sha256 for part in _PARTS.validate_python(parts)}
    except ValidationError:
        raise InputError(f"{path}: {_WRONG_FORMAT}: {advice}") from None


def read_part(path: str, content: bytes | None = None) -> pa.Table:
    """Read the rows of a part; content: its bytes, if they were read before.

    Raises:
        InputError: the part is missing or damaged, or its columns are not those of PREDICTIONS.

    """
    rows = storage.read_table(path, content)
    different = set(map(_name_and_type, PREDICTIONS)) ^ set(map(_name_and_type, rows.schema))
    if different:
        raise InputError(
            f"{path}: column {min(name for name, _ in different)} is missing, unknown or of another type: another "
            "version of lungseg wrote the file, or it was changed; run the same lungseg infer command again"
        )
    check_table(rows, path, PREDICTION_TABLE)
    return rows


def _name_and_type(field: pa.Field) -> tuple[str, pa.DataType]:
    """Return name and type of a column. For a list, the item type: Parquet renames the item field."""
    return field.name, field.type.value_type if pa.types.is_list(field.type) else field.type
