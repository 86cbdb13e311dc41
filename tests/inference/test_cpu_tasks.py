"""Open, predict and finish in this process: every problem ends in a row or an error of the part."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.config import InferSettings, PreprocessSettings
from lungseg.errors import TaskResult
from lungseg.imaging import codecs
from lungseg.inference import cpu_tasks
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob, finish_part, open_part
from lungseg.inference.ensemble import Ensemble
from lungseg.inference.inputs import list_items
from lungseg.inference.items import Item, PredictOptions, open_item
from lungseg.inference.part_plan import PlannedPart
from lungseg.ingest import crash_isolation
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest
from lungseg.predictions.parts import StatusCounts
from lungseg.schema import USABLE, Record
from tests.pipelines.odd_inputs import Kind, kinds
from tests.shared_fixtures import steady

SMALL = PreprocessSettings(size=64)
KINDS = kinds()
Row = dict[str, Any]


class CrashOnUnpickling:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def job_of(trained: Path, out: Path, **changes: object) -> InferenceJob:
    model = checkpoint.find_all(str(trained))[0]
    settings = InferSettings.model_validate(
        {"checkpoint": (str(trained),), "out": str(out), "batch_size": 4, **changes}
    )
    return InferenceJob(
        settings, str(out), (model.folder,), "tiny", ensemble_digest([model]), SMALL, {"lung": 0.5}, PredictOptions()
    )


def items_of(archive: Path) -> list[Item]:
    return list(list_items(InferSettings(archive=str(archive)), SMALL))


def part_of(items: list[Item], number: int = 0) -> pa.Table:
    part = PlannedPart.of(number, items, "settings")
    return pa.Table.from_pylist([{"number": number, "items": part.items, "digest": part.digest}])


def run_stages(job: InferenceJob, items: list[Item], number: int = 0) -> TaskResult:
    (row,) = finish_part(PredictPart(job)(open_part(part_of(items, number), job)), job).to_pylist()
    assert row["number"] == number
    return TaskResult.from_json(row["result"])


def rows_of(out: Path) -> list[Row]:
    return [
        row for path in sorted(out.glob("rows/part-*.parquet")) for row in storage.read_table(str(path)).to_pylist()
    ]


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> InferenceJob:
    return job_of(trained, tmp_path / "out")


def test_part_is_one_file_with_rows_in_planned_order(archive: Path, job: InferenceJob) -> None:
    items = items_of(archive)
    written = run_stages(job, items, 7).unwrap()
    out = Path(job.out)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["part-000007.parquet"]
    rows = rows_of(out)
    assert [row["source_uri"] for row in rows] == [item.record.image_uri for item in items]
    for row in rows:
        mask = codecs.decode_rle(row["mask"], row["height"], row["width"])
        assert int(mask.sum()) == row["area_px"] == row["right_lung_px"] + row["left_lung_px"]
        assert mask.shape == codecs.decode(Path(row["source_uri"]).read_bytes(), "").shape
        assert (row["status"], row["model"], row["models"], row["threshold"]) == ("ok", job.model_digest, 1, 0.5)
        assert row["dice"] is not None
        assert row["seconds"] > 0
    assert written["images"] == len(items)
    assert StatusCounts.from_json(written["counts"]).statuses == {"ok": len(items)}
    times = json.loads(written["times"])
    assert all(times[name] > 0 for name in ("open", "predict", "finish"))
    assert times["busy"][0] <= times["busy"][1]


def test_squares_and_probabilities_survive_between_stages(archive: Path, job: InferenceJob) -> None:
    items = items_of(archive)
    opened = open_part(part_of(items), job)
    squares = [open_item(item, SMALL).square for item in items]
    assert [square.tobytes() for square in squares if square is not None] == opened.column("square").to_pylist()
    predicted = PredictPart(job)(opened)
    assert "square" not in predicted.column_names
    ensemble = Ensemble([checkpoint.verify(folder) for folder in job.checkpoints])
    for start in (0, 4):
        expected = ensemble([square for square in squares[start : start + 4] if square is not None], [""] * 4)
        for row, one in zip(predicted.slice(start, 4).to_pylist(), expected, strict=True):
            actual = np.frombuffer(row["probability"], np.uint16).reshape(1, 64, 64) / 65535
            assert np.abs(actual - one.probability).max() <= 0.5 / 65535 + 1e-7


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_rows_do_not_depend_on_batch_size(batch: int, archive: Path, trained: Path, tmp_path: Path) -> None:
    for name, size in (("usual", 4), ("other", batch)):
        run_stages(job_of(trained, tmp_path / name, batch_size=size), items_of(archive))
    usual, other = (rows_of(tmp_path / name) for name in ("usual", "other"))
    assert [row["mask"] for row in other] == [row["mask"] for row in usual]
    for one, two in zip(steady(usual), steady(other), strict=True):
        assert two["doubt"] == pytest.approx(one["doubt"], abs=1e-6)
        last_bits = dict.fromkeys(("mean_probability", "border_entropy", "doubt"), 0)
        assert {**two, **last_bits} == {**one, **last_bits}
        assert two["mean_probability"] == pytest.approx(one["mean_probability"], abs=1e-4)


def expected_of(kind: Kind) -> tuple[str, tuple[str, ...]]:
    """Return the expected status and codes. A reference mask that cannot be used does not prevent prediction."""
    damaged_mask = kind.mask is not None and kind.image == KINDS["mask_of_0_and_1"].image
    return ("ok" if kind.status == "rejected" and damaged_mask else kind.status), kind.codes


def test_every_odd_input_becomes_a_row(job: InferenceJob, tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        for folder, content, suffix in (("images", kind.image, kind.suffix), ("masks", kind.mask, ".png")):
            if content is not None:
                path = tmp_path / "odd" / folder / f"{name}{suffix}"
                path.parent.mkdir(exist_ok=True, parents=True)
                path.write_bytes(content)
        for link, target in kind.links:
            (tmp_path / "odd" / "images" / link).symlink_to(target)
    job = replace(job, key=b"a secret that is long enough")
    written = run_stages(job, items_of(tmp_path / "odd")).unwrap()
    rows = {Path(row["source_uri"]).stem: row for row in rows_of(Path(job.out))}
    assert rows.keys() == KINDS.keys()
    for name, kind in KINDS.items():
        row = rows[name]
        actual = row["status"], tuple(row["codes"])
        assert actual == expected_of(kind), f"{name}: {row['message']}"
        assert (row["mask"] is not None) is (row["status"] in USABLE), name
        assert (row["dice"] is not None) is (kind.status in USABLE and kind.mask is not None), name
    assert StatusCounts.from_json(written["counts"]).statuses.total() == len(KINDS)


def test_decompression_bomb_is_rejected(job: InferenceJob, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(KINDS["bomb_of_50000_px"].image or b"")
    run_stages(job, items_of(path))
    (row,) = rows_of(Path(job.out))
    assert (row["status"], row["mask"]) == ("rejected", None)
    assert row["codes"] == ["too_large"]
    assert row["message"].startswith("bomb.png has more than 268435456 px")


def test_hostile_ids_create_no_files(archive: Path, job: InferenceJob, tmp_path: Path) -> None:
    evil = ["../../evil", "/etc/evil", "..", "a\nb", ""]
    items = [
        replace(item, record=replace(item.record, image_id=name, dataset=f"../{name}", patient_id=name))
        for item, name in zip(items_of(archive), evil, strict=False)
    ]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    run_stages(job, items)
    assert [row["image_id"] for row in rows_of(Path(job.out))] == evil
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert made == {Path(job.out) / "rows" / "part-000000.parquet"}
    assert not list(tmp_path.parent.rglob("*evil*"))


def test_opened_part_leaves_no_marker(archive: Path, job: InferenceJob) -> None:
    seen = []

    def record_marker(*_: Any, **__: Any) -> Any:
        seen.append(storage.read_json(job.marker_path(3)))
        raise RuntimeError("a bug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_tasks, "open_item", record_marker)
        with pytest.raises(RuntimeError, match="a bug"):
            open_part(part_of(items_of(archive), 3), job)
    assert {one["times"] for one in seen} == {1}
    assert not storage.exists(job.marker_path(3))
    open_part(part_of(items_of(archive), 3), job)
    assert not storage.exists(job.marker_path(3))


def test_after_two_crashes_only_the_crashing_image_fails(
    archive: Path, job: InferenceJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_crashing_item(function: Any, items: list[Item]) -> Any:
        return crash_isolation.map_isolated(
            function, [CrashOnUnpickling() if one.record.image_id == "north_01" else one for one in items]
        )

    monkeypatch.setattr(cpu_tasks, "map_isolated", with_crashing_item)
    items = items_of(archive)[:3]
    for crashes in range(crash_isolation.ISOLATE_AFTER):
        assert crash_isolation.mark_started(job.marker_path(0)) == crashes
    run_stages(job, items)
    rows = rows_of(Path(job.out))
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["codes"] == ["crashed"]
    assert rows[1]["message"].startswith("north_01.png or its mask crashed the process that read it")
    assert not storage.exists(job.marker_path(0))
    run_stages(replace(job, out=f"{job.out}/usual"), items)
    usual = rows_of(Path(job.out) / "usual")
    assert [steady(rows)[i] for i in (0, 2)] == [steady(usual)[i] for i in (0, 2)]


@pytest.mark.parametrize("crashes", [0, 1])
def test_after_at_most_one_crash_images_are_not_isolated(
    crashes: int, archive: Path, job: InferenceJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("opened in isolation")

    monkeypatch.setattr(cpu_tasks, "map_isolated", never)
    for _ in range(crashes):
        crash_isolation.mark_started(job.marker_path(0))
    assert open_part(part_of(items_of(archive)), job).num_rows == 8


def test_unwritable_folder_is_an_error_of_the_part(archive: Path, job: InferenceJob) -> None:
    Path(job.out).write_text("a file where the folder should be")
    assert "cannot be written" in str(run_stages(job, items_of(archive), 2).error)
    assert Path(job.out).read_text() == "a file where the folder should be"


def test_full_disk_leaves_no_incomplete_part(archive: Path, job: InferenceJob, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = PredictPart(job)(open_part(part_of(items_of(archive)), job))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    failed = finish_part(predicted, job).column("result")[0].as_py()
    monkeypatch.undo()
    assert "No space left on device" in str(TaskResult.from_json(failed).error)
    assert [path for path in Path(job.out).rglob("*") if path.is_file()] == []
    TaskResult.from_json(finish_part(predicted, job).column("result")[0].as_py()).unwrap()
    assert len(rows_of(Path(job.out))) == 8


def test_input_changed_since_planning_fails(own_archive: Path, job: InferenceJob) -> None:
    items = items_of(own_archive / "north")
    paths = [Path(item.record.image_uri) for item in items]
    shutil.copy(paths[1], paths[0])
    mask = Path(items[2].record.mask_uris[0])
    os.utime(mask, ns=(0, mask.stat().st_mtime_ns + 1))
    paths[3].unlink()
    run_stages(job, items)
    rows = rows_of(Path(job.out))
    codes = [(row["status"], *row["codes"]) for row in rows]
    assert codes == [("failed", "changed"), ("ok",), ("failed", "changed"), ("failed", "unreadable"), ("ok",)]
    assert str(paths[0]) in rows[0]["message"]
    assert str(mask) in rows[2]["message"]
    assert [row["mask"] is None for row in rows] == [True, False, True, True, False]


def test_file_missing_at_planning_is_not_predicted(own_archive: Path, job: InferenceJob) -> None:
    path = own_archive / "north" / "images" / "north_00.png"
    content = path.read_bytes()
    listing = own_archive / "list.csv"
    listing.write_text(f"image\n{path}\n")
    path.unlink()
    items = items_of(listing)
    path.write_bytes(content)
    run_stages(job, items)
    (row,) = rows_of(Path(job.out))
    assert row["codes"] == ["changed"]
    assert "did not exist when the job was planned" in row["message"]


def test_damaged_reference_mask_skips_only_the_comparison(own_archive: Path, job: InferenceJob) -> None:
    mask = own_archive / "north" / "masks" / "north_00.png"
    mask.write_bytes(mask.read_bytes()[:60])
    run_stages(job, items_of(own_archive / "north"))
    first, *others = rows_of(Path(job.out))
    assert (first["status"], first["dice"], first["hd95_px"]) == ("ok", None, None)
    assert first["mask"] is not None
    assert first["codes"] == ["undecodable"]
    assert all(row["dice"] is not None and row["codes"] == [] for row in others)


def test_damaged_tar_fails_only_its_samples(own_prepared: Path, job: InferenceJob) -> None:
    items = items_of(own_prepared)
    tar = own_prepared / "north" / "north-000000.tar"
    content = bytearray(tar.read_bytes())
    assert items[0].row is not None
    content[items[0].row["image_offset"] + 100] ^= 0xFF
    tar.write_bytes(content)
    run_stages(job, items)
    rows = rows_of(Path(job.out))
    assert [row["status"] for row in rows] == ["failed"] + ["ok"] * 7
    assert rows[0]["codes"] == ["shard"]
    assert "is damaged (wrong checksum)" in rows[0]["message"]


def test_part_without_usable_images_is_written(job: InferenceJob, tmp_path: Path) -> None:
    items = [Item(Record(name, "north", str(tmp_path / name)), stats=(None,)) for name in ("a.png", "b.png")]
    written = run_stages(job, items).unwrap()
    assert StatusCounts.from_json(written["counts"]).statuses == {"failed": 2}
    assert [row["mask"] for row in rows_of(Path(job.out))] == [None, None]


def test_part_is_given_up_after_too_many_crashes(archive: Path, job: InferenceJob) -> None:
    for _ in range(crash_isolation.MAX_CRASHES + 1):
        crash_isolation.mark_started(job.marker_path(4))
    error = run_stages(job, items_of(archive)[:2], 4).error
    assert "part-000004.parquet: 6 workers died while they processed it" in str(error)
    assert run_stages(job, items_of(archive)[:2], 4).error is None
