"""From what was opened to rows of predictions: batches over gaps, masks measured and compared, and what has none."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import ModelSettings, PostprocessSettings, PreprocessSettings
from lungseg.dataset import catalog
from lungseg.imaging import codecs
from lungseg.imaging.geometry import plan_geometry, restore
from lungseg.inference import mask_shape
from lungseg.inference.ensemble import Ensemble, predict
from lungseg.inference.items import Item, OpenedImage, Prediction, open_item, prepared_item
from lungseg.inference.rows import COMPARED, compare, make_row
from lungseg.ingest import sources
from lungseg.metrics import segmentation
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import Snapshot, save
from lungseg.model.network import build_network
from lungseg.schema import PREDICTIONS, SCHEMA, Record, table

torch.set_num_threads(1)  # two threads that wait for each other are ten times slower on a busy machine

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Row = dict[str, Any]
SMALL = PreprocessSettings(size=64)
MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
MADE = {"threshold": 0.5, "model": "0123456789abcdef"}
AS_IT_IS = PostprocessSettings(lungs=False, holes=False)
PREDICTED_ONLY = set(PREDICTIONS.names) - {
    *("image_id", "dataset", "patient_id", "source_uri", "mask_uris", "status", "codes", "message", "height", "width"),
    *("threshold", "model", "seconds"),
}


class Counting:
    """Stands in for the models: a picture's probability is its grey; notes what it is asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, squares: Sequence[U8], digests: Sequence[str]) -> list[Prediction]:
        self.batches.append(list(digests))
        pairs = zip(squares, digests, strict=True)
        return [Prediction(square.astype(np.float32) / 255, 1, digest == "seen") for square, digest in pairs]


def pictures(usable: Sequence[bool]) -> list[OpenedImage]:
    """Make opened items, each of a grey of its own, with gaps where one is not usable."""
    geometry = plan_geometry(64, 64, SMALL)
    return [
        OpenedImage(Record(str(i), "north", f"/{i}.png", pixel_digest=str(i)), np.full((64, 64), i, np.uint8), geometry)
        if good
        else OpenedImage(Record(str(i), "north", f"/{i}.png", status="failed", codes=("unreadable",)))
        for i, good in enumerate(usable)
    ]


def drawn(mask: U8, reference: U8 | None = None) -> tuple[OpenedImage, Prediction]:
    """Make an opened item, and a prediction that is sure of this mask u8[64,64]."""
    record = Record("a", "north", "/a.png", ("/m.png",), ("lung",), "p", height=64, width=64)
    counts = None if reference is None else codecs.encode_rle(reference)
    opened = OpenedImage(record, mask * np.uint8(255), plan_geometry(64, 64, SMALL), counts)
    return opened, Prediction(np.where(mask == 1, 0.9, 0.1).astype(np.float32), 1, False)


def lungs() -> U8:
    mask = np.zeros((64, 64), np.uint8)
    mask[15:50, 8:24] = mask[15:50, 40:56] = 1
    return mask


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Ensemble:
    """An untrained network, whose checkpoint says it was trained on the first prepared picture."""
    folder = str(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    network = build_network(MODEL)
    data = catalog.open_dataset(catalog.find_datasets([str(prepared)])[0])
    config = {
        "run": "test",
        "epoch": 1,
        "preprocess": data.preprocess.model_dump(),
        "settings": {"model": MODEL.model_dump()},
    }
    learnt = data.index.slice(0, 1).select(["image_id", "dataset", "pixel_digest"])
    learnt = learnt.replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    save(folder, Snapshot(dict(network.state_dict()), {}, config, learnt))
    return Ensemble([checkpoint.find_all(f"{folder}/epoch-0001")[0]])


def opened_from(archive: Path) -> list[OpenedImage]:
    return [open_item(Item(record), SMALL) for record in sources.discover(str(archive))]


def rows_of(
    ensemble: Ensemble, opened: Sequence[OpenedImage], batch: int = 4, asked: PostprocessSettings = AS_IT_IS
) -> list[Row]:
    found = predict(ensemble, opened, batch)
    return [make_row(one, predicted, MADE, asked) for one, predicted in zip(opened, found, strict=True)]


def mask_of(row: Row) -> U8:
    return codecs.decode_rle(row["mask"], row["height"], row["width"])


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 8))
def test_batches_are_filled_over_gaps_and_every_picture_gets_its_own(usable: list[bool], batch: int) -> None:
    models, opened = Counting(), pictures(usable)
    found = predict(models, opened, batch)  # type: ignore[arg-type]
    assert len(found) == len(usable)
    assert [one is not None for one in found] == usable
    for i, one in enumerate(found):
        assert one is None or (one.probability == np.float32(i) / np.float32(255)).all()
    sizes = [len(asked) for asked in models.batches]
    assert all(size == batch for size in sizes[:-1])
    assert all(0 < size <= batch for size in sizes)
    assert [digest for asked in models.batches for digest in asked] == [str(i) for i, good in enumerate(usable) if good]


def test_the_time_of_a_batch_is_shared_by_its_pictures() -> None:
    found = predict(Counting(), pictures([True, True, False, True]), 3)  # type: ignore[arg-type]
    seconds = [one.seconds for one in found if one is not None]
    assert len(seconds) == 3
    assert seconds[0] > 0
    assert len(set(seconds)) == 1


def test_rows_have_exactly_the_columns_and_fit_the_schema(archive: Path, ensemble: Ensemble) -> None:
    opened = [*opened_from(archive), *pictures([False])]
    rows = rows_of(ensemble, opened)
    assert all(list(row) == PREDICTIONS.names for row in rows)
    found = table(rows, PREDICTIONS)
    assert found.schema.equals(PREDICTIONS, check_metadata=True)
    assert found.column("image_id").to_pylist() == [one.record.image_id for one in opened]


def test_every_column_is_described_in_files_too(tmp_path: Path) -> None:
    path = str(tmp_path / "part.parquet")
    storage.write_table(path, table([], PREDICTIONS))
    for schema in (PREDICTIONS, storage.read_table(path).schema):
        assert schema.names == PREDICTIONS.names
        assert all((field.metadata or {}).get(b"description", b"").strip() for field in schema)


def test_masks_are_the_same_whatever_the_batch(archive: Path, ensemble: Ensemble) -> None:
    opened = opened_from(archive)
    found = predict(ensemble, opened, 1)
    # The untrained network's median, so that there is something to see.
    levels = [float(np.median(one.probability)) for one in found if one is not None]
    made = {**MADE, "threshold": sum(levels) / len(levels)}
    one, many = (
        [make_row(a, b, made, AS_IT_IS) for a, b in zip(opened, predict(ensemble, opened, batch), strict=True)]
        for batch in (1, 5)
    )
    assert any(0 < row["area_px"] < row["height"] * row["width"] for row in one)
    for first, second in zip(one, many, strict=True):
        assert np.mean(mask_of(first) != mask_of(second)) < 1e-3
        assert first["mean_probability"] == pytest.approx(second["mean_probability"], abs=1e-4)


def test_only_the_picture_that_the_model_was_trained_on_is_seen(
    archive: Path, prepared: Path, ensemble: Ensemble
) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(prepared)])[0])
    first = data.index.column("image_id")[0].as_py()
    rows = rows_of(ensemble, opened_from(archive))
    assert [row["image_id"] for row in rows if row["seen_in_training"]] == [first]
    assert {row["models"] for row in rows} == {1}


def test_a_row_says_whose_it_is_and_what_made_it(archive: Path, ensemble: Ensemble) -> None:
    opened = opened_from(archive)
    for one, row in zip(opened, rows_of(ensemble, opened), strict=True):
        record = one.record
        assert row["image_id"] == record.image_id
        assert (row["dataset"], row["patient_id"]) == (record.dataset, record.patient_id)
        assert (row["source_uri"], row["mask_uris"]) == (record.image_uri, list(record.mask_uris))
        assert (row["height"], row["width"]) == (record.height, record.width)
        assert (row["status"], row["codes"], row["message"]) == ("ok", [], "")
        assert (row["threshold"], row["model"]) == (MADE["threshold"], MADE["model"])
        assert json.loads(row["geometry"]) == asdict(plan_geometry(record.height, record.width, SMALL))
        assert row["seconds"] > one.seconds > 0


def test_only_masks_of_lungs_are_named_in_a_row() -> None:
    opened, predicted = drawn(lungs())
    two = replace(opened.record, mask_uris=("/heart.png", "/left.png"), mask_classes=("heart", "lung"))
    row = make_row(replace(opened, record=two), predicted, MADE, AS_IT_IS)
    assert row["mask_uris"] == ["/left.png"]


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (40, 90)])
@pytest.mark.parametrize("way", ["pad", "crop"])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_the_mask_is_where_the_restored_probability_reaches_the_threshold(
    threshold: float, way: str, size: tuple[int, int]
) -> None:
    geometry = plan_geometry(*size, PreprocessSettings.model_validate({"size": 64, "geometry": way}))
    probability = cv2.GaussianBlur(np.random.default_rng(1).random((64, 64)).astype(np.float32), (9, 9), 3)
    probability = (probability - probability.min()) / np.ptp(probability)
    record = Record("a", "north", "/a.png", height=size[0], width=size[1])
    opened = OpenedImage(record, np.zeros((64, 64), np.uint8), geometry)
    row = make_row(opened, Prediction(probability, 1, False), {**MADE, "threshold": threshold}, AS_IT_IS)
    expected = (restore(probability, geometry) >= threshold).astype(np.uint8)
    assert 0 < expected.mean() < 1
    assert (mask_of(row) == expected).all()
    inside = probability[geometry.content()]
    assert row["mean_probability"] == pytest.approx(inside[inside >= np.float32(threshold)].mean(), abs=1e-6)
    described = mask_shape.describe(expected)
    assert {name: row[name] for name in described} == described


def test_padding_is_no_part_of_what_the_model_is_sure_of() -> None:
    geometry = plan_geometry(32, 64, SMALL)
    probability = np.full((64, 64), 0.99, np.float32)
    probability[geometry.content()] = 0.6
    record = Record("a", "north", "/a.png", height=32, width=64)
    opened = OpenedImage(record, np.zeros((64, 64), np.uint8), geometry)
    row = make_row(opened, Prediction(probability, 1, False), MADE, AS_IT_IS)
    assert row["mean_probability"] == pytest.approx(0.6)


def test_an_empty_mask_is_a_row_like_any_other() -> None:
    row = make_row(*drawn(np.zeros((64, 64), np.uint8), lungs()), MADE, AS_IT_IS)
    assert (row["status"], row["area_px"], row["components"], row["bbox"]) == ("ok", 0, 0, [])
    assert (row["mean_probability"], row["hd95_px"], row["assd_px"]) == (None, None, None)
    assert (row["dice"], row["iou"]) == (0, 0)
    assert not mask_of(row).any()
    assert table([row], PREDICTIONS).num_rows == 1


def test_what_post_processing_changed_is_in_the_row() -> None:
    mask = lungs()
    mask[60, 2:5] = 1  # a speck of 3
    mask[30, 12:16] = 0  # a hole of 4
    asked = PostprocessSettings(specks=0.01, lungs=False)
    row = make_row(*drawn(mask), MADE, asked)
    assert (row["components_before"], row["components"]) == (3, 2)
    assert (row["removed_px"], row["added_px"]) == (3, 4)
    assert (mask_of(row) == lungs()).all()
    assert row["area_px"] == lungs().sum()


def test_without_post_processing_nothing_was_changed() -> None:
    mask = lungs()
    mask[60, 2:5] = 1
    row = make_row(*drawn(mask), MADE, AS_IT_IS)
    assert (row["components_before"], row["components"]) == (3, 3)
    assert (row["removed_px"], row["added_px"]) == (0, 0)


@given(
    arrays(np.uint8, (16, 16), elements=st.integers(0, 1)),
    st.builds(PostprocessSettings, specks=st.just(0.1), holes=st.booleans(), smooth=st.sampled_from([0.0, 0.03])),
)
def test_what_was_removed_and_added_makes_up_the_difference(coarse: U8, asked: PostprocessSettings) -> None:
    mask = np.kron(coarse, np.ones((4, 4), np.uint8))
    row = make_row(*drawn(mask), MADE, asked)
    assert row["area_px"] == int(mask.sum()) - row["removed_px"] + row["added_px"]
    assert row["removed_px"] == np.count_nonzero((mask == 1) & (mask_of(row) == 0))


def test_what_is_compared_is_the_mask_after_post_processing() -> None:
    mask = lungs()
    mask[2:6, 28:34] = 1
    left, cleaned = (
        make_row(*drawn(mask, lungs()), MADE, asked)
        for asked in (AS_IT_IS, PostprocessSettings(specks=0.05, lungs=False, holes=False))
    )
    assert left["dice"] < 1 == cleaned["dice"]
    assert (cleaned["iou"], cleaned["pixel_accuracy"], cleaned["hd95_px"], cleaned["assd_px"]) == (1, 1, 0, 0)


def test_figures_against_a_reference_are_those_of_the_metrics() -> None:
    reference = np.roll(lungs(), 3, axis=0)
    row = make_row(*drawn(lungs(), reference), MADE, AS_IT_IS)
    counts = segmentation.count_pixels(lungs(), reference)
    assert (row["iou"], row["dice"]) == (segmentation.iou(counts), segmentation.dice(counts))
    assert row["pixel_accuracy"] == segmentation.pixel_accuracy(counts)
    assert (row["hd95_px"], row["assd_px"]) == segmentation.surface_distances(lungs(), reference)
    assert 0 < row["dice"] < 1 < row["hd95_px"]


def test_an_empty_reference_is_compared_and_none_is_not() -> None:
    nothing = np.zeros((64, 64), np.uint8)
    assert make_row(*drawn(lungs(), nothing), MADE, AS_IT_IS)["dice"] == 0
    without = make_row(*drawn(lungs()), MADE, AS_IT_IS)
    assert [without[name] for name in COMPARED] == [None] * len(COMPARED)
    assert compare(lungs(), None) == dict.fromkeys(COMPARED)
    assert without["mask"] is not None


def test_the_row_of_an_unusable_image_says_why_and_holds_no_figure() -> None:
    record = Record(
        "a", "north", "/a.png", ("/m.png",), ("lung",), status="rejected", codes=("too_large",), message="9 GB"
    )
    row = make_row(OpenedImage(record, seconds=0.25), None, MADE, AS_IT_IS)
    assert list(row) == PREDICTIONS.names
    assert (row["status"], row["codes"], row["message"], row["seconds"]) == ("rejected", ["too_large"], "9 GB", 0.25)
    assert (row["image_id"], row["source_uri"], row["mask_uris"]) == ("a", "/a.png", ["/m.png"])
    assert (row["threshold"], row["model"]) == (MADE["threshold"], MADE["model"])
    assert {name for name, value in row.items() if value is None} == PREDICTED_ONLY


def test_what_was_repaired_stays_repaired() -> None:
    opened, predicted = drawn(lungs())
    repaired = replace(opened.record, status="repaired", codes=("mask_resized",), message="by half")
    row = make_row(replace(opened, record=repaired), predicted, MADE, AS_IT_IS)
    assert (row["status"], row["codes"], row["message"]) == ("repaired", ["mask_resized"], "by half")


@pytest.mark.parametrize(("harm", "code"), [("another size", "mask_size"), ("gone", "unreadable")])
def test_a_reference_that_cannot_be_used_leaves_the_image_predicted_and_says_so(
    harm: str, code: str, own_archive: Path, ensemble: Ensemble
) -> None:
    before = rows_of(ensemble, opened_from(own_archive))
    records = sources.discover(str(own_archive))
    mask = Path(records[2].mask_uris[0])
    if harm == "gone":
        mask.unlink()
    else:
        cv2.imwrite(str(mask), np.full((40, 40), 255, np.uint8))
    after = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    assert (after[2]["status"], after[2]["codes"][0]) == ("ok", code)
    assert [after[2][name] for name in COMPARED] == [None] * len(COMPARED)
    assert [row["mask"] for row in after] == [row["mask"] for row in before]
    assert all(row["dice"] is not None for i, row in enumerate(after) if i != 2)


def test_bad_files_are_rows_and_their_neighbours_are_not_moved(own_archive: Path, ensemble: Ensemble) -> None:
    records = sources.discover(str(own_archive))
    before = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    Path(records[1].image_uri).write_bytes(b"torn")
    Path(records[3].image_uri).unlink()
    after = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    assert [row["image_id"] for row in after] == [row["image_id"] for row in before]
    assert (after[1]["status"], after[1]["mask"]) == ("rejected", None)
    assert (after[3]["status"], after[3]["codes"][0]) == ("failed", "unreadable")
    for i, (row, same) in enumerate(zip(before, after, strict=True)):
        if i not in (1, 3):
            assert np.mean(mask_of(row) != mask_of(same)) < 1e-3
            assert same["status"] == "ok"


def test_prepared_data_has_the_masks_of_its_pictures(archive: Path, prepared: Path, ensemble: Ensemble) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(prepared)])[0])
    samples = [open_item(prepared_item(data.folder, row), SMALL) for row in data.index.to_pylist()]
    raw = {one.record.image_id: one for one in opened_from(archive)}
    rows = rows_of(ensemble, samples)
    others = rows_of(ensemble, [raw[row["image_id"]] for row in rows])
    assert len(rows) == data.index.num_rows > 0
    for row, other in zip(rows, others, strict=True):
        assert (row["mask"], row["geometry"]) == (other["mask"], other["geometry"])
        assert row["mask_uris"] == []
        assert row["source_uri"].endswith(f".tar#{row['image_id']}")
        assert row["dice"] == pytest.approx(other["dice"], abs=0.02)


def test_a_damaged_tar_is_a_row_not_an_end(own_prepared: Path, ensemble: Ensemble) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(own_prepared)])[0])
    items = [prepared_item(data.folder, row) for row in data.index.to_pylist()]
    shutil.copyfile(items[-1].tar, items[0].tar)
    rows = rows_of(ensemble, [open_item(item, SMALL) for item in items])
    assert (rows[0]["status"], rows[0]["codes"][0], rows[0]["mask"]) == ("failed", "shard", None)
    assert rows[-1]["status"] == "ok"
    assert table(rows, PREDICTIONS).num_rows == len(items)


def test_a_row_without_a_column_is_a_bug_that_is_told() -> None:
    row = make_row(*drawn(lungs()), MADE, AS_IT_IS)
    del row["seconds"]
    with pytest.raises(KeyError, match="seconds"):
        table([row], PREDICTIONS)


def test_a_row_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    row = make_row(*drawn(lungs(), lungs()), MADE, AS_IT_IS)
    path = str(tmp_path / "part.parquet")
    storage.write_table(path, table([row], PREDICTIONS))
    (found,) = storage.read_table(path).to_pylist()
    assert found == row
