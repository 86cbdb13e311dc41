import json
from pathlib import Path

import pytest

from lungseg.config import PrepareSettings, PreprocessSettings
from lungseg.data import datasets, manifest, sources
from lungseg.data.shard_plan import plan_shards
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines import prepare
from lungseg.storage import read_table

SMALL = PreprocessSettings(size=64)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def test_over_a_cluster_as_in_one_process(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(source=str(archive), out=str(tmp_path / "ray"), preprocess=SMALL, images_per_shard=3)
    prepare.run(settings)
    plans = plan_shards(
        manifest.refuse_same_ids(sources.discover(str(archive))), str(tmp_path / "alone"), SMALL, per_shard=3
    )
    datasets.write_datasets(plans)
    made = _bytes(tmp_path / "ray")
    assert made
    assert made == _bytes(tmp_path / "alone")
    for one in ("dataset.json", "index.parquet"):
        for path in (tmp_path / "ray").rglob(one):
            assert path.read_bytes() == (tmp_path / "alone" / path.relative_to(tmp_path / "ray")).read_bytes()


def test_again_after_damage_mends_only_what_is_damaged(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(source=str(archive), out=str(tmp_path), preprocess=SMALL, images_per_shard=3)
    prepare.run(settings)
    before, tars = _bytes(tmp_path), sorted(tmp_path.rglob("*.tar"))
    untouched = {path: path.stat().st_mtime_ns for path in tars[1:]}
    tars[0].write_bytes(tars[0].read_bytes()[:1024])
    prepare.run(settings)
    assert _bytes(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tars[1:]} == untouched


def test_broken_inputs_are_rows_not_ends(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    images = sorted(own_archive.rglob("images/*"))
    images[0].write_bytes(b"not a picture")
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[2].write_bytes(b"")
    prepare.run(PrepareSettings(source=str(own_archive), out=str(tmp_path), preprocess=SMALL))
    rows = [row for path in sorted(tmp_path.rglob("manifest.parquet")) for row in read_table(str(path)).to_pylist()]
    assert len(rows) == len(images)
    assert sum(row["status"] == "rejected" and row["reason"].startswith("undecodable") for row in rows) == 3
    counts = [json.loads(path.read_text())["counts"] for path in tmp_path.rglob("dataset.json")]
    assert sum(sum(count.values()) for count in counts) == len(images)


def test_any_pair_of_folders(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    folder = next(path.parent for path in sorted(archive.rglob("images")))
    settings = PrepareSettings(
        images=str(folder / "images"), masks=str(folder / "masks"), dataset="pair", out=str(tmp_path), preprocess=SMALL
    )
    prepare.run(settings)
    info = json.loads((tmp_path / "pair" / "dataset.json").read_text())
    assert info["samples"] == info["with_mask"] == len(list((folder / "images").iterdir()))


def test_phantoms_are_drawn(ray_cluster: None, tmp_path: Path) -> None:
    prepare.run(PrepareSettings(phantoms=2, out=str(tmp_path), preprocess=SMALL))
    found = sorted(json.loads(path.read_text())["dataset"] for path in tmp_path.glob("*/dataset.json"))
    assert found == ["phantom-montgomery", "phantom-shenzhen"]


def test_no_archive_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="pass --source FOLDER"):
        prepare.run(PrepareSettings(out=str(tmp_path)))


def test_a_place_that_cannot_be_written_is_one_line(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written") as raised:
        prepare.run(PrepareSettings(source=str(archive), out=str(tmp_path / "file"), preprocess=SMALL))
    assert "\n" not in str(raised.value)
