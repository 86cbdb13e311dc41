"""An archive of unusual inputs: each gets one row with the expected status and codes, and the job continues."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lungseg.config import PrepareSettings, PreprocessSettings
from lungseg.pipelines import prepare
from lungseg.storage import read_table
from tests.pipelines.odd_inputs import Kind, kinds

KINDS = kinds()
SMALL = PreprocessSettings(size=64)
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, dict[str, Any]]:
    """All kinds of input, prepared as one archive: the rows by kind, and the summary."""
    archive, out = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("out")
    for name, kind in KINDS.items():
        for folder, content, suffix in (("images", kind.image, kind.suffix), ("masks", kind.mask, ".png")):
            if content is not None:
                path = archive / folder / f"{name}{suffix}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        for link, target in kind.links:
            (archive / "images" / link).symlink_to(target)
    key = out / "key"
    key.write_text("a secret that is long enough")
    settings = PrepareSettings(source=str(archive), out=str(out / "data"), preprocess=SMALL, patient_key=str(key))
    prepare.run(settings)
    (path,) = (out / "data").glob("*/manifest.parquet")
    rows = {Path(row["image_uri"]).stem: row for row in read_table(str(path)).to_pylist()}
    return rows, json.loads((out / "data" / "summary.json").read_text())


def test_there_are_sixty_different_kinds() -> None:
    assert len(KINDS) >= 60
    assert len({(kind.image or b"") + (kind.mask or b"") for kind in KINDS.values()}) > 0.9 * len(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_kind_gets_its_status_and_codes(name: str, results: tuple[Rows, dict[str, Any]]) -> None:
    row, kind = results[0][name], KINDS[name]
    assert (row["status"], tuple(row["codes"])) == (kind.status, kind.codes), row["message"]
    if kind.status in ("ok", "repaired"):
        assert row["pixel_digest"]
        assert row["phash"]
        assert row["height"] > 0


def test_counts_add_up(results: tuple[Rows, dict[str, Any]]) -> None:
    rows, summary = results
    assert len(rows) == len(KINDS) == summary["inputs"] == sum(summary["counts"].values())
    assert summary["counts"] == {**dict.fromkeys(summary["counts"], 0), **Counter(k.status for k in KINDS.values())}
    expected: Counter[tuple[str, str]] = Counter((kind.status, code) for kind in KINDS.values() for code in kind.codes)
    (dataset,) = summary["datasets"].values()
    assert {(status, code): n for status, codes in dataset["codes"].items() for code, n in codes.items()} == expected


def test_kinds_are_both_usable_and_unusable() -> None:
    def usable(kind: Kind) -> bool:
        return kind.status in ("ok", "repaired")

    assert 15 < sum(usable(kind) for kind in KINDS.values()) < len(KINDS) - 30
