"""Rows of predictions: batches, measurements, metrics, and rows of images without a mask."""

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
from lungseg.imaging import codecs, phantom
from lungseg.imaging.geometry import plan_geometry, restore
from lungseg.imaging.run_lengths import Runs
from lungseg.inference import mask_shape, recompute
from lungseg.inference.comparison import COMPARED, compare
from lungseg.inference.ensemble import Ensemble
from lungseg.inference.items import Item, OpenedImage, Prediction, open_item, prepared_item
from lungseg.inference.prediction import predict
from lungseg.inference.rows import make_row
from lungseg.ingest import sources
from lungseg.ingest.reason_codes import RESULT_FLAGS
from lungseg.metrics import segmentation
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import Snapshot, save
from lungseg.model.network import build_network
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import SCHEMA, Record, table

torch.set_num_threads(1)  # on a busy machine, two threads that wait for each other are ten times slower

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Row = dict[str, Any]
SMALL = PreprocessSettings(size=64)
MODEL = ModelSettings(encoder="tu-test_efficientnet", weights="none")
SHARED = {"threshold": 0.5, "model_name": "lungs", "model": "0123456789abcdef"}
NO_POSTPROCESSING = PostprocessSettings(lungs=False, holes=False)
PREDICTED_ONLY = set(PREDICTIONS.names) - {
    *(
        "image_id",
        "dataset",
        "patient_id",
        "source_uri",
        "mask_uris",
        "mask_values",
        "status",
        "codes",
        "message",
        "flags",
        "height",
        "width",
    ),
    *("threshold", "model_name", "model", "seconds"),
}


class RecordingModel:
    """Stub of an ensemble: the probability of a pixel is its grey level. Records the digests of each batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, squares: Sequence[U8], digests: Sequence[str]) -> list[Prediction]:
        self.batches.append(list(digests))
        pairs = zip(squares, digests, strict=True)
        return [Prediction(square[None].astype(np.float32) / 255, 1, digest == "seen") for square, digest in pairs]


def fake_images(usable: Sequence[bool]) -> list[OpenedImage]:
    """Create opened images, each with another grey level, some of them unusable."""
    geometry = plan_geometry(64, 64, SMALL)
    return [
        OpenedImage(Record(str(i), "north", f"/{i}.png", pixel_digest=str(i)), np.full((64, 64), i, np.uint8), geometry)
        if good
        else OpenedImage(Record(str(i), "north", f"/{i}.png", status="failed", codes=("unreadable",)))
        for i, good in enumerate(usable)
    ]


def opened_and_predicted(mask: U8, reference: U8 | None = None) -> tuple[OpenedImage, Prediction]:
    """Create an opened image, and a prediction that gives this mask u8[64,64]."""
    record = Record("a", "north", "/a.png", ("/m.png",), ("lung",), "p", height=64, width=64)
    counts = {} if reference is None else {"lung": codecs.encode_rle(reference)}
    opened = OpenedImage(record, mask * np.uint8(255), plan_geometry(64, 64, SMALL), counts)
    return opened, Prediction(np.where(mask == 1, 0.9, 0.1).astype(np.float32)[None], 1, False)


def lungs() -> U8:
    mask = np.zeros((64, 64), np.uint8)
    mask[15:50, 8:24] = mask[15:50, 40:56] = 1
    return mask


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Ensemble:
    """An untrained network. Its checkpoint lists the first prepared image as a training image."""
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
    trained = data.index.slice(0, 1).select(["image_id", "dataset", "pixel_digest"])
    trained = trained.replace_schema_metadata({"lungseg.schema": str(SCHEMA)})
    save(folder, Snapshot(dict(network.state_dict()), {}, config, storage.table_bytes(trained)))
    return Ensemble([checkpoint.find_all(f"{folder}/epoch-0001")[0]])


def opened_from(archive: Path) -> list[OpenedImage]:
    return [open_item(Item(record), SMALL) for record in sources.discover(str(archive))]


def rows_of(
    ensemble: Ensemble, opened: Sequence[OpenedImage], batch: int = 4, settings: PostprocessSettings = NO_POSTPROCESSING
) -> list[Row]:
    predictions = predict(ensemble, opened, batch)
    return [make_row(*pair, SHARED, settings) for pair in zip(opened, predictions, strict=True)]


def mask_of(row: Row) -> U8:
    return codecs.decode_rle(row["mask"], row["height"], row["width"])


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 8))
def test_batches_skip_unusable_images_and_keep_order(usable: list[bool], batch: int) -> None:
    models, opened = RecordingModel(), fake_images(usable)
    predictions = predict(models, opened, batch)  # type: ignore[arg-type]
    assert len(predictions) == len(usable)
    assert [prediction is not None for prediction in predictions] == usable
    for i, prediction in enumerate(predictions):
        assert prediction is None or (prediction.probability == np.float32(i) / np.float32(255)).all()
    sizes = [len(digests) for digests in models.batches]
    assert all(size == batch for size in sizes[:-1])
    assert all(0 < size <= batch for size in sizes)
    assert [digest for digests in models.batches for digest in digests] == [
        str(i) for i, good in enumerate(usable) if good
    ]


def test_time_of_a_batch_is_divided_among_its_images() -> None:
    predictions = predict(RecordingModel(), fake_images([True, True, False, True]), 3)  # type: ignore[arg-type]
    seconds = [prediction.seconds for prediction in predictions if prediction is not None]
    assert len(seconds) == 3
    assert seconds[0] > 0
    assert len(set(seconds)) == 1


def test_rows_match_the_schema(archive: Path, ensemble: Ensemble) -> None:
    opened = [*opened_from(archive), *fake_images([False])]
    rows = rows_of(ensemble, opened)
    assert all(list(row) == PREDICTIONS.names for row in rows)
    predictions = table(rows, PREDICTIONS)
    assert predictions.schema.equals(PREDICTIONS, check_metadata=True)
    assert predictions.column("image_id").to_pylist() == [one.record.image_id for one in opened]


def test_files_describe_every_column(tmp_path: Path) -> None:
    path = str(tmp_path / "part.parquet")
    storage.write_table(path, table([], PREDICTIONS))
    for schema in (PREDICTIONS, storage.read_table(path).schema):
        assert schema.names == PREDICTIONS.names
        assert all((field.metadata or {}).get(b"description", b"").strip() for field in schema)


def test_masks_do_not_depend_on_batch_size(archive: Path, ensemble: Ensemble) -> None:
    opened = opened_from(archive)
    predictions = predict(ensemble, opened, 1)
    # The median of the untrained network, so that masks are neither empty nor full.
    levels = [float(np.median(prediction.probability)) for prediction in predictions if prediction is not None]
    shared = {**SHARED, "threshold": sum(levels) / len(levels)}
    one, many = (
        [
            make_row(a, b, shared, NO_POSTPROCESSING)
            for a, b in zip(opened, predict(ensemble, opened, batch), strict=True)
        ]
        for batch in (1, 5)
    )
    assert any(0 < row["area_px"] < row["height"] * row["width"] for row in one)
    for first, second in zip(one, many, strict=True):
        assert np.mean(mask_of(first) != mask_of(second)) < 1e-3
        assert first["mean_probability"] == pytest.approx(second["mean_probability"], abs=1e-4)


def test_only_training_images_are_marked_as_seen(archive: Path, prepared: Path, ensemble: Ensemble) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(prepared)])[0])
    first = data.index.column("image_id")[0].as_py()
    rows = rows_of(ensemble, opened_from(archive))
    assert [row["image_id"] for row in rows if row["seen_in_training"]] == [first]
    assert {row["models"] for row in rows} == {1}


def test_row_has_the_flags_of_its_image(archive: Path, ensemble: Ensemble) -> None:
    (first, *_) = opened_from(archive)
    flagged = replace(first, record=replace(first.record, flags=("not_chest_like",)))
    (row,) = rows_of(ensemble, [flagged])
    assert (row["status"], row["flags"][0]) == ("ok", "not_chest_like")
    assert set(row["flags"][1:]) <= RESULT_FLAGS


@pytest.mark.parametrize(
    ("probability", "flags"),
    [(0.0, ["lungs_empty"]), (0.6, ["lungs_uncertain"]), (0.95, [])],
)
def test_row_has_the_flags_of_its_mask(archive: Path, probability: float, flags: list[str]) -> None:
    opened = opened_from(archive)[0]
    _, lungs = phantom.draw(3, "shenzhen", 64)
    square = np.where(lungs == 1, probability, 0.01).astype(np.float32)
    whole = replace(opened, geometry=plan_geometry(64, 64, PreprocessSettings(size=64)), references={})
    row = make_row(
        whole,
        Prediction(square[None], 1, False),
        {"threshold": 0.5, "model_name": "m", "model": "m"},
        PostprocessSettings(),
    )
    assert row["status"] == "ok"
    assert [flag for flag in row["flags"] if flag in RESULT_FLAGS] == flags


def test_row_has_ids_and_model(archive: Path, ensemble: Ensemble) -> None:
    opened = opened_from(archive)
    for one, row in zip(opened, rows_of(ensemble, opened), strict=True):
        record = one.record
        assert row["image_id"] == record.image_id
        assert (row["dataset"], row["patient_id"]) == (record.dataset, record.patient_id)
        assert (row["source_uri"], row["mask_uris"]) == (record.image_uri, list(record.mask_uris))
        assert (row["height"], row["width"]) == (record.height, record.width)
        assert (row["status"], row["codes"], row["message"]) == ("ok", [], "")
        assert (row["threshold"], row["model"]) == (SHARED["threshold"], SHARED["model"])
        assert json.loads(row["geometry"]) == asdict(plan_geometry(record.height, record.width, SMALL))
        assert row["seconds"] > one.seconds > 0


def test_row_lists_only_lung_masks() -> None:
    opened, predicted = opened_and_predicted(lungs())
    two = replace(opened.record, mask_uris=("/heart.png", "/left.png"), mask_classes=("heart", "lung"))
    row = make_row(replace(opened, record=two), predicted, SHARED, NO_POSTPROCESSING)
    assert (row["mask_uris"], row["mask_classes"]) == (["/left.png"], None)
    sides = replace(two, mask_classes=("right_lung", "left_lung"))
    row = make_row(replace(opened, record=sides), predicted, SHARED, NO_POSTPROCESSING)
    assert (row["mask_uris"], row["mask_classes"]) == (["/heart.png", "/left.png"], ["right_lung", "left_lung"])


@pytest.mark.parametrize("size", [(64, 64), (200, 150), (40, 90)])
@pytest.mark.parametrize("way", ["pad", "crop"])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_mask_is_where_restored_probability_reaches_the_threshold(
    threshold: float, way: str, size: tuple[int, int]
) -> None:
    geometry = plan_geometry(*size, PreprocessSettings.model_validate({"size": 64, "geometry": way}))
    probability = cv2.GaussianBlur(np.random.default_rng(1).random((64, 64)).astype(np.float32), (9, 9), 3)
    probability = (probability - probability.min()) / np.ptp(probability)
    record = Record("a", "north", "/a.png", height=size[0], width=size[1])
    opened = OpenedImage(record, np.zeros((64, 64), np.uint8), geometry)
    row = make_row(
        opened, Prediction(probability[None], 1, False), {**SHARED, "threshold": threshold}, NO_POSTPROCESSING
    )
    expected = (restore(probability, geometry) >= threshold).astype(np.uint8)
    assert 0 < expected.mean() < 1
    assert (mask_of(row) == expected).all()
    inside = probability[geometry.content()]
    assert row["mean_probability"] == pytest.approx(inside[inside >= np.float32(threshold)].mean(), abs=1e-6)
    runs = Runs.from_mask(expected)
    described = mask_shape.describe(runs, runs)
    assert {name: row[name] for name in described} == described


def test_row_has_areas_in_cm2_where_the_spacing_is_known() -> None:
    opened, predicted = opened_and_predicted(lungs())
    row = make_row(replace(opened, record=replace(opened.record, spacing_mm=5.0)), predicted, SHARED, NO_POSTPROCESSING)
    assert row["area_cm2"] == pytest.approx(row["area_px"] * 0.25)
    assert row["right_lung_cm2"] + row["left_lung_cm2"] == pytest.approx(row["area_cm2"])
    assert make_row(opened, predicted, SHARED, NO_POSTPROCESSING)["area_cm2"] is None


def test_padding_does_not_count_for_confidence() -> None:
    geometry = plan_geometry(32, 64, SMALL)
    probability = np.full((64, 64), 0.99, np.float32)
    probability[geometry.content()] = 0.6
    record = Record("a", "north", "/a.png", height=32, width=64)
    opened = OpenedImage(record, np.zeros((64, 64), np.uint8), geometry)
    row = make_row(opened, Prediction(probability[None], 1, False), SHARED, NO_POSTPROCESSING)
    assert row["mean_probability"] == pytest.approx(0.6)


def test_empty_mask_gives_a_valid_row() -> None:
    row = make_row(*opened_and_predicted(np.zeros((64, 64), np.uint8), lungs()), SHARED, NO_POSTPROCESSING)
    assert (row["status"], row["area_px"], row["components"], row["bbox"]) == ("ok", 0, 0, [])
    assert (row["mean_probability"], row["hd95_px"], row["assd_px"]) == (None, None, None)
    assert (row["dice"], row["iou"]) == (0, 0)
    assert not mask_of(row).any()
    assert table([row], PREDICTIONS).num_rows == 1


def test_row_counts_changes_of_postprocessing() -> None:
    mask = lungs()
    mask[60, 2:5] = 1  # a speck of 3
    mask[30, 12:16] = 0  # a hole of 4
    settings = PostprocessSettings(specks=0.01, lungs=False)
    row = make_row(*opened_and_predicted(mask), SHARED, settings)
    assert (row["components_before"], row["components"]) == (3, 2)
    assert (row["removed_px"], row["added_px"]) == (3, 4)
    assert (mask_of(row) == lungs()).all()
    assert row["area_px"] == lungs().sum()


def test_disabled_postprocessing_changes_nothing() -> None:
    mask = lungs()
    mask[60, 2:5] = 1
    row = make_row(*opened_and_predicted(mask), SHARED, NO_POSTPROCESSING)
    assert (row["components_before"], row["components"]) == (3, 3)
    assert (row["removed_px"], row["added_px"]) == (0, 0)


@given(
    arrays(np.uint8, (16, 16), elements=st.integers(0, 1)),
    st.builds(PostprocessSettings, specks=st.just(0.1), holes=st.booleans(), smooth=st.sampled_from([0.0, 0.03])),
)
def test_removed_and_added_pixels_explain_the_area(coarse: U8, settings: PostprocessSettings) -> None:
    mask = np.kron(coarse, np.ones((4, 4), np.uint8))
    row = make_row(*opened_and_predicted(mask), SHARED, settings)
    assert row["area_px"] == int(mask.sum()) - row["removed_px"] + row["added_px"]
    assert row["removed_px"] == np.count_nonzero((mask == 1) & (mask_of(row) == 0))


def test_metrics_use_the_mask_after_postprocessing() -> None:
    mask = lungs()
    mask[2:6, 28:34] = 1
    left, cleaned = (
        make_row(*opened_and_predicted(mask, lungs()), SHARED, settings)
        for settings in (NO_POSTPROCESSING, PostprocessSettings(specks=0.05, lungs=False, holes=False))
    )
    assert left["dice"] < 1 == cleaned["dice"]
    assert (cleaned["iou"], cleaned["pixel_accuracy"], cleaned["hd95_px"], cleaned["assd_px"]) == (1, 1, 0, 0)


def test_row_metrics_match_the_metrics_package() -> None:
    reference = np.roll(lungs(), 3, axis=0)
    row = make_row(*opened_and_predicted(lungs(), reference), SHARED, NO_POSTPROCESSING)
    counts = segmentation.count_pixels(lungs(), reference)
    assert (row["iou"], row["dice"]) == (segmentation.iou(counts), segmentation.dice(counts))
    assert row["pixel_accuracy"] == segmentation.pixel_accuracy(counts)
    assert (row["hd95_px"], row["assd_px"]) == segmentation.surface_distances(lungs(), reference)
    assert 0 < row["dice"] < 1 < row["hd95_px"]


def test_empty_reference_is_compared_and_missing_one_is_not() -> None:
    nothing = np.zeros((64, 64), np.uint8)
    assert make_row(*opened_and_predicted(lungs(), nothing), SHARED, NO_POSTPROCESSING)["dice"] == 0
    without = make_row(*opened_and_predicted(lungs()), SHARED, NO_POSTPROCESSING)
    assert [without[name] for name in COMPARED] == [None] * len(COMPARED)
    assert compare(Runs.from_mask(lungs()), None) == dict.fromkeys(COMPARED)
    assert without["mask"] is not None


def test_row_of_unusable_image_has_reasons_and_no_metrics() -> None:
    record = Record(
        "a", "north", "/a.png", ("/m.png",), ("lung",), status="rejected", codes=("too_large",), message="9 GB"
    )
    row = make_row(OpenedImage(record, seconds=0.25), None, SHARED, NO_POSTPROCESSING)
    assert list(row) == PREDICTIONS.names
    assert (row["status"], row["codes"], row["message"], row["seconds"]) == ("rejected", ["too_large"], "9 GB", 0.25)
    assert (row["image_id"], row["source_uri"], row["mask_uris"]) == ("a", "/a.png", ["/m.png"])
    assert (row["threshold"], row["model"]) == (SHARED["threshold"], SHARED["model"])
    assert {name for name, value in row.items() if value is None} == PREDICTED_ONLY


def test_repaired_images_stay_repaired() -> None:
    opened, predicted = opened_and_predicted(lungs())
    repaired = replace(opened.record, status="repaired", codes=("mask_resized",), message="by half")
    row = make_row(replace(opened, record=repaired), predicted, SHARED, NO_POSTPROCESSING)
    assert (row["status"], row["codes"], row["message"]) == ("repaired", ["mask_resized"], "by half")


@pytest.mark.parametrize(("harm", "code"), [("another size", "mask_size"), ("gone", "unreadable")])
def test_unusable_reference_does_not_prevent_prediction(
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


def test_bad_files_become_rows_without_effect_on_others(own_archive: Path, ensemble: Ensemble) -> None:
    records = sources.discover(str(own_archive))
    before = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    Path(records[1].image_uri).write_bytes(b"truncated")
    Path(records[3].image_uri).unlink()
    after = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    assert [row["image_id"] for row in after] == [row["image_id"] for row in before]
    assert (after[1]["status"], after[1]["mask"]) == ("rejected", None)
    assert (after[3]["status"], after[3]["codes"][0]) == ("failed", "unreadable")
    for i, (row, same) in enumerate(zip(before, after, strict=True)):
        if i not in (1, 3):
            assert np.mean(mask_of(row) != mask_of(same)) < 1e-3
            assert same["status"] == "ok"


def test_prepared_data_gives_the_masks_of_the_images(archive: Path, prepared: Path, ensemble: Ensemble) -> None:
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


def test_damaged_tar_becomes_a_row(own_prepared: Path, ensemble: Ensemble) -> None:
    data = catalog.open_dataset(catalog.find_datasets([str(own_prepared)])[0])
    items = [prepared_item(data.folder, row) for row in data.index.to_pylist()]
    shutil.copyfile(items[-1].tar, items[0].tar)
    rows = rows_of(ensemble, [open_item(item, SMALL) for item in items])
    assert (rows[0]["status"], rows[0]["codes"][0], rows[0]["mask"]) == ("failed", "shard", None)
    assert rows[-1]["status"] == "ok"
    assert table(rows, PREDICTIONS).num_rows == len(items)


def test_missing_column_raises_key_error() -> None:
    row = make_row(*opened_and_predicted(lungs()), SHARED, NO_POSTPROCESSING)
    del row["seconds"]
    with pytest.raises(KeyError, match="seconds"):
        table([row], PREDICTIONS)


def test_row_survives_a_parquet_file(tmp_path: Path) -> None:
    row = make_row(*opened_and_predicted(lungs(), lungs()), SHARED, NO_POSTPROCESSING)
    path = str(tmp_path / "part.parquet")
    storage.write_table(path, table([row], PREDICTIONS))
    (predictions,) = storage.read_table(path).to_pylist()
    assert predictions == row


def test_values_of_label_files_are_kept_in_rows(own_archive: Path, ensemble: Ensemble) -> None:
    records = sources.discover(str(own_archive))
    before = rows_of(ensemble, [open_item(Item(record), SMALL) for record in records])
    for path in own_archive.rglob("masks/*.png"):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert label is not None
        label[label == 255] = 2
        label[:8, :8] = 3
        cv2.imwrite(str(path), label)
    labelled = [replace(record, mask_values=("2",)) for record in records]
    rows = rows_of(ensemble, [open_item(Item(record), SMALL) for record in labelled])
    assert [row["mask_values"] for row in rows] == [["2"]] * len(rows)
    assert [row["dice"] for row in rows] == [row["dice"] for row in before]
    shared = {name: rows[0][name] for name in SHARED}
    assert recompute.check_row(rows[0], shared, SMALL, recompute.Samples()) == []
