"""Sources claim files in turn; archives may mix layouts and have many files."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from lungseg import storage
from lungseg.ingest import sources
from lungseg.schema import Record


def replace_listing(names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "list_files", lambda folder: [f"{folder}/{name}" for name in names])


def test_each_source_gets_the_unclaimed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_listing(["a.png", "b.png", "b_mask.png", "c.png"], monkeypatch)
    received: list[list[str]] = []

    def first(folder: str, files: Sequence[str], classes: Sequence[str]) -> list[Record]:
        received.append(list(files))
        return [Record("b", "mine", "/d/b.png", ("/d/b_mask.png",), ("lung",))]

    def second(folder: str, files: Sequence[str], classes: Sequence[str]) -> list[Record]:
        received.append(list(files))
        return [Record(Path(uri).stem, "rest", uri) for uri in files]

    monkeypatch.setattr(sources, "SOURCES", (first, second))
    records = sources.discover("/d")
    assert received == [["/d/a.png", "/d/b.png", "/d/b_mask.png", "/d/c.png"], ["/d/a.png", "/d/c.png"]]
    assert [(record.dataset, record.image_id) for record in records] == [("mine", "b"), ("rest", "a"), ("rest", "c")]
    assert {record.dataset for record in sources.discover("/d", "all")} == {"all"}


def test_archive_may_mix_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["JSRT/JPCLN001.IMG", "SCR/fold1/masks/left lung/JPCLN001.gif", "SCR/fold1/masks/right lung/JPCLN001.gif"]
    names += ["M/CXR_png/MCUCXR_0001_0.png", "M/ManualMask/leftMask/MCUCXR_0001_0.png"]
    names += ["M/ManualMask/rightMask/MCUCXR_0001_0.png", "own/images/1.2.3", "own/masks/1.2.3.png", "own/x.png"]
    replace_listing(names, monkeypatch)
    records = sources.discover("/d")
    assert [(record.dataset, record.image_id[:5], len(record.mask_uris)) for record in records] == [
        ("d", "own_x", 0),
        ("jsrt", "JPCLN", 2),
        ("m", "MCUCX", 2),
        ("own", "1_2_3", 1),
    ]


def test_ignored_files_are_logged_by_kind(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    replace_listing(["images/a.png", "images/Thumbs.db", "__MACOSX/a.png", ".x/a.png", "notes.txt"], monkeypatch)
    with caplog.at_level(logging.INFO, "lungseg"):
        assert len(sources.discover("/d")) == 1
    assert "ignored 1 file of another type and 3 system files" in caplog.text


def test_a_hundred_thousand_files_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    wards = [f"ward{number % 300}" for number in range(30_000)]
    names = [f"{ward}/{kind}/{i:06d}.png" for i, ward in enumerate(wards) for kind in ("images", "masks")]
    names += [f"dicom/1.2.840.{i}" for i in range(30_000)] + [
        f"nlm/CXR_png/CHNCXR_{i:05d}_1.png" for i in range(10_000)
    ]
    replace_listing(sorted(names), monkeypatch)
    start = time.process_time()
    records = sources.discover("/d")
    assert time.process_time() - start < 10
    assert Counter(record.finding for record in records) == {None: 60_000, "abnormal": 10_000}
    assert sum(len(record.mask_uris) for record in records) == 30_000
