"""Records to encoded tar members, in threads and in an isolated process."""

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
    """A string that kills the process that unpickles it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def plan_of(records: list[Record]) -> ShardPlan:
    return ShardPlan("/out/north", "north-000000", tuple(records), SMALL, 8)


def north(archive: Path) -> list[Record]:
    return [record for record in sources.discover(str(archive)) if record.dataset == "north"]


def encoded(records: list[Record], isolated: bool = False) -> list[EncodedSample]:
    return list(encode_samples(plan_of(records), None, Stopwatch(), isolated))


def test_members_are_image_mask_and_json(archive: Path) -> None:
    for sample in encoded(north(archive)):
        assert sample.record.status == "ok"
        native = codecs.decode(storage.read_bytes(sample.record.image_uri), "x")
        assert sample.record.phash == duplicates.fingerprint(native)
        assert set(sample.members) == {"image", "mask", "json"}
        assert codecs.decode(sample.members["image"], "x").shape == (64, 64)


def test_uris_give_the_same_members_as_paths(archive: Path) -> None:
    by_path, by_uri = encoded(north(archive)), encoded(sources.discover((archive / "north").as_uri(), "north"))
    assert [sample.members for sample in by_uri] == [sample.members for sample in by_path]


def test_record_that_kills_its_process_fails_alone(archive: Path) -> None:
    records = north(archive)
    with_deadly = [records[0], replace(records[1], finding=Deadly("x")), *records[2:]]
    samples, expected = encoded(with_deadly, isolated=True), encoded(records)
    assert [sample.record.status for sample in samples] == ["ok", "failed", "ok", "ok", "ok"]
    assert samples[1].record.codes == ("crashed",)
    assert samples[1].record.message.startswith("north_01.png or its mask crashed the process")
    assert samples[1].members == {}
    assert [sample.members for i, sample in enumerate(samples) if i != 1] == [
        sample.members for i, sample in enumerate(expected) if i != 1
    ]


def test_nested_stage_is_not_counted_twice() -> None:
    watch = Stopwatch()
    with watch.time("outer"):
        time.sleep(0.02)
        with watch.time("inner"):
            time.sleep(0.05)
    assert watch.seconds["inner"] >= 0.05
    assert 0.02 <= watch.seconds["outer"] < 0.05 + watch.seconds["inner"]


def test_read_ahead_is_limited(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [replace(record, image_id=f"{record.image_id}_{i}") for i in range(4) for record in north(archive)]
    read_uris: list[str] = []

    def read(uri: str) -> bytes:
        read_uris.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr(storage, "read_bytes", read)
    samples = encode_samples(plan_of(records), None, Stopwatch())
    next(samples)
    time.sleep(0.3)
    assert 2 * (READ_THREADS + 1) == len(read_uris) < 2 * len(records)
    assert len(list(samples)) == len(records) - 1
    assert len(read_uris) == 2 * len(records)


def test_unreadable_file_becomes_a_failed_record(archive: Path) -> None:
    records = north(archive)
    missing = replace(records[1], image_uri=f"{records[1].image_uri}.gone")
    samples = encoded([records[0], missing, *records[2:]])
    assert [sample.record.status for sample in samples] == ["ok", "failed", "ok", "ok", "ok"]
    assert "cannot be read" in samples[1].record.message
