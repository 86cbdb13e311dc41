"""The plan of an inference: which images lie in which part file, and whether a part that is there is of it."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lungseg import storage
from lungseg.data.manifest import counted_codes
from lungseg.data.shards import digest_bytes
from lungseg.data.sources.names import below
from lungseg.engine.items import Item
from lungseg.errors import InputError
from lungseg.schema import PREDICTIONS, STATUSES, USABLE, table

logger = logging.getLogger(__name__)

_READERS = 8  # threads that look at parts; in a bucket, reading is waiting
_SHOWN = 3
_STRANGE = "not as jobs/infer.py writes it"


@dataclass(frozen=True)
class Part:
    """A part of the plan: its items as JSON, and the digest of these and of all settings that show in a row."""

    number: int
    items: str
    images: int
    digest: str

    @classmethod
    def of(cls, number: int, items: Sequence[Item], settings: str) -> "Part":
        """Plan one part; settings: their digest."""
        text = json.dumps([item.to_dict() for item in items])
        return cls(number, text, len(items), storage.digest([settings, text]))


@dataclass(frozen=True)
class Account:
    """What became of images: how many by status, how many by (status, reason code), and the first that failed."""

    statuses: Counter[str]
    reasons: Counter[tuple[str, str]]
    examples: tuple[str, ...] = ()

    @classmethod
    def empty(cls) -> "Account":
        """Account for nothing yet."""
        return cls(Counter(), Counter())

    @classmethod
    def of(cls, rows: pa.Table) -> "Account":
        """Account for the rows of a part."""
        account = cls.empty()
        examples: list[str] = []
        names = ("status", "error", "source_uri")
        for status, error, uri in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
            account.statuses[status] += 1
            account.reasons.update((status, code) for code in counted_codes(status, error or ""))
            if status not in USABLE and len(examples) < _SHOWN:
                examples.append(f"{storage.name_of(uri)}: {error}")
        return cls(account.statuses, account.reasons, tuple(examples))

    def add(self, other: "Account") -> "Account":
        """Join two accounts."""
        examples = (*self.examples, *other.examples)[:_SHOWN]
        return Account(self.statuses + other.statuses, self.reasons + other.reasons, examples)

    def lost(self) -> int:
        """Count the images that have no mask."""
        return sum(count for status, count in self.statuses.items() if status not in USABLE)

    def counts(self) -> dict[str, int]:
        """Count images by status, those statuses that there are."""
        return {status: self.statuses[status] for status in STATUSES if self.statuses[status]}

    def reasons_told(self) -> list[dict[str, Any]]:
        """Count images by status and reason code, as predictions.json tells it."""
        return [
            {"status": status, "reason": code, "images": count}
            for (status, code), count in sorted(self.reasons.items())
        ]

    def told(self) -> str:
        """Name the reasons of what is lost, the most frequent first."""
        lost = [(code, count) for (status, code), count in self.reasons.most_common() if status not in USABLE]
        return ", ".join(f"{count} {code}" for code, count in lost)

    def to_json(self) -> str:
        """Write it."""
        reasons = [[*key, count] for key, count in sorted(self.reasons.items())]
        return json.dumps({"statuses": self.statuses, "reasons": reasons, "examples": self.examples})

    @classmethod
    def from_json(cls, text: str) -> "Account":
        """Read what `to_json` wrote."""
        found = json.loads(text)
        reasons = Counter({(status, code): count for status, code, count in found["reasons"]})
        return cls(Counter(found["statuses"]), reasons, tuple(found["examples"]))


def part_path(out: str, number: int) -> str:
    """Name a part's file."""
    return storage.join(out, f"part-{number:06d}.parquet")


def part_files(out: str) -> list[str]:
    """List the part files that there are; those of predictions in a folder below are not among them."""
    paths = storage.list_files(out, (".parquet",))
    return [path for path in paths if below(out, path).startswith("part-") and "/" not in below(out, path)]


def claim(out: str, plan: dict[str, Any]) -> None:
    """Take an output folder for a plan, or find it taken for the same one.

    Raises:
        InputError: it holds predictions of another plan.

    """
    path = storage.join(out, "plan.json")
    if not storage.exists(path):
        strangers = part_files(out) if storage.exists(out) else []
        if strangers:
            raise InputError(f"{out} holds {storage.name_of(strangers[0])} but no plan.json: pass another --out")
        storage.write_json(path, plan)
        return
    found = _read_paper(path, f"what its parts are of cannot be told: pass another --out, or delete {out}")
    if found.get("digest") != plan["digest"]:
        changed = [name for name, value in plan.items() if name != "digest" and found.get(name) != value]
        what = ", ".join(changed) or "the archive's files"
        raise InputError(f"{out} holds predictions of another plan ({what} changed): pass another --out, or delete it")


def _read_paper(path: str, advice: str) -> dict[str, Any]:
    """Read plan.json or predictions.json; of one that is damaged, say what mends it."""
    content = storage.read_bytes(path)  # a bucket that does not answer has damaged nothing
    try:
        whole = "schema" in json.loads(content)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: {_STRANGE}: {advice}")
    return storage.read_json(path, content)


def claim_device(out: str, device: str) -> None:
    """Note where the models compute, which decides what precision `auto` is, or find the same noted.

    Raises:
        InputError: parts that are there were computed elsewhere.

    """
    path = storage.join(out, "plan.json")
    plan = storage.read_json(path)
    before = plan.get("device", device)
    if before != device and part_files(out):
        raise InputError(
            f"{out} holds parts computed on {before} (--precision auto), this start would use {device}: pass --device "
            f"{'cpu' if before == 'cpu' else 'gpu'}, or another --out"
        )
    storage.write_json(path, {**plan, "device": device})


def write_part(path: str, rows: list[dict[str, Any]], digest: str) -> Account:
    """Write a part's file, whole or not at all; it says of which plan it is, and what became of its rows."""
    content = table(rows, PREDICTIONS)
    account = Account.of(content)
    said = {"lungseg.part": digest, "lungseg.rows": str(len(rows)), "lungseg.account": account.to_json()}
    storage.write_table(path, content.replace_schema_metadata({**(content.schema.metadata or {}), **said}))
    return account


def finished(out: str, parts: Sequence[Part]) -> dict[int, Account]:
    """Find the parts that are there, whole and as planned; one with files that could not be read is made again.

    So is one that predictions.json of an earlier end tells otherwise: somebody changed it.

    Raises:
        InputError: a part is of another plan, or there are parts that this plan does not have.

    """
    there = set(part_files(out))
    strangers = there - {part_path(out, part.number) for part in parts}
    if strangers:
        raise InputError(f"{min(strangers)} is of another plan: pass another --out, or delete it")
    left = [part for part in parts if part_path(out, part.number) in there]
    told = told_digests(out)

    def look(part: Part) -> Account | None:
        path = part_path(out, part.number)
        return _look(path, part, told.get(storage.name_of(path)))

    with ThreadPoolExecutor(_READERS) as pool:
        accounts = pool.map(look, left)
        return {part.number: account for part, account in zip(left, accounts, strict=True) if account is not None}


def told_digests(out: str) -> dict[str, str]:
    """Say which SHA-256 predictions.json tells of each part, by name; of none where no inference has ended here.

    Raises:
        InputError: it is there, and is not what an inference wrote.

    """
    path = storage.join(out, "predictions.json")
    if not storage.exists(path):
        return {}
    advice = "delete it, and run the same jobs/infer.py"
    try:
        return {str(part["name"]): str(part["sha256"]) for part in _read_paper(path, advice)["parts"]}
    except (KeyError, TypeError):
        raise InputError(f"{path}: {_STRANGE}: {advice}") from None


def reopen(out: str, parts: Sequence[Part]) -> None:
    """Take back what tells that an inference has ended, before these parts are made: what tells of them is not true.

    One that was found changed is deleted first: else a job that is killed now would find it untold of, and keep it.
    """
    told = told_digests(out)
    for part in parts:
        path = part_path(out, part.number)
        digest = told.get(storage.name_of(path))
        if digest and storage.exists(path) and digest_bytes(storage.read_bytes(path)) != digest:
            storage.delete(path)
    storage.delete(storage.join(out, "predictions.json"))


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


def _look(path: str, part: Part, told: str | None) -> Account | None:
    content = storage.read_bytes(path)
    try:
        rows = read_part(path, content)
    except InputError as error:
        logger.warning("made again: %s", error)
        return None
    said = rows.schema.metadata
    if said.get(b"lungseg.part", b"").decode() != part.digest:
        raise InputError(f"{path} is of another plan: pass another --out, or delete it")
    account = Account.of(rows)
    whole = rows.num_rows == part.images == int(said[b"lungseg.rows"])
    if told is not None and told != digest_bytes(content):
        logger.warning("made again: %s is not the file that predictions.json tells of", path)
        return None
    again = account.statuses["failed"] or any(code == "unreadable" for _, code in account.reasons)
    return account if whole and not again else None
