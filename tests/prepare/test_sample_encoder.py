"""Records packed alone, by threads and apart: the same members, and one that ends its process ends nothing else."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.config import PreprocessSettings
from lungseg.dataset import duplicates
from lungseg.imaging import codecs
from lungseg.ingest import sources
from lungseg.prepare.sample_encoder import READ_THREADS, EncodedSample, Stopwatch, encode_samples
from lungseg.prepare.shard_plan import ShardPlan
from lungseg.schema import Record

SMALL = PreprocessSettings(size=64)


class Deadly(str):
    """A name that ends the process to which it is sent."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def plan_of(records: list[Record]) -> ShardPlan:
    return ShardPlan("/out/north", "north-000000", tuple(records), SMALL, 8)


def north(archive: Path) -> list[Record]:
    return [record for record in sources.discover(str(archive)) if record.dataset == "north"]


def packed(records: list[Record], apart: bool = False) -> list[EncodedSample]:
    return list(encode_samples(plan_of(records), None, Stopwatch(), apart))


def test_members_are_what_a_sample_is_made_of(archive: Path) -> None:
    for one in packed(north(archive)):
        assert one.record.status == "ok"
        native = codecs.decode(storage.read_bytes(one.record.image_uri), "x")
        assert one.record.phash == duplicates.fingerprint(native), "what the leakage audit compares"
        assert set(one.members) == {"image", "mask", "json"}
        assert codecs.decode(one.members["image"], "x").shape == (64, 64)


def test_files_behind_uris_are_packed_the_same_and_in_order(archive: Path) -> None:
    here, there = packed(north(archive)), packed(sources.discover((archive / "north").as_uri(), "north"))
    assert [one.members for one in there] == [one.members for one in here]


def test_a_record_that_ends_its_process_fails_alone(archive: Path) -> None:
    records = north(archive)
    hurt = [records[0], replace(records[1], finding=Deadly("x")), *records[2:]]
    found, expected = packed(hurt, apart=True), packed(records)
    assert [one.record.status for one in found] == ["ok", "failed", "ok", "ok", "ok"]
    assert found[1].record.reason.startswith("crashed: north_01.png or its mask ended the process")
    assert found[1].members == {}
    assert [one.members for i, one in enumerate(found) if i != 1] == [
        one.members for i, one in enumerate(expected) if i != 1
    ]


def test_a_stage_inside_another_counts_for_itself() -> None:
    watch = Stopwatch()
    with watch.time("outer"):
        time.sleep(0.02)
        with watch.time("inner"):
            time.sleep(0.05)
    assert watch.seconds["inner"] >= 0.05
    assert 0.02 <= watch.seconds["outer"] < 0.05 + watch.seconds["inner"]


def test_files_are_read_ahead_but_not_all_at_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [replace(one, image_id=f"{one.image_id}_{i}") for i in range(4) for one in north(archive)]
    read: list[str] = []

    def noted(uri: str) -> bytes:
        read.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr(storage, "read_bytes", noted)
    samples = encode_samples(plan_of(records), None, Stopwatch())
    next(samples)
    time.sleep(0.3)
    assert 2 * (READ_THREADS + 1) == len(read) < 2 * len(records)
    assert len(list(samples)) == len(records) - 1
    assert len(read) == 2 * len(records)


def test_a_file_that_cannot_be_read_is_a_failed_record(archive: Path) -> None:
    records = north(archive)
    missing = replace(records[1], image_uri=f"{records[1].image_uri}.gone")
    found = packed([records[0], missing, *records[2:]])
    assert [one.record.status for one in found] == ["ok", "failed", "ok", "ok", "ok"]
    assert "cannot be read" in found[1].record.reason
