"""Inference with a model of several classes: every way to predict gives the same masks, and each is compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import InferSettings, ModelSettings, PreprocessSettings
from lungseg.config.segment import SegmentSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, SettingsError
from lungseg.imaging import codecs, phantom
from lungseg.inference import recompute
from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import PredictOptions
from lungseg.inference.model_selection import find_models, mean_thresholds
from lungseg.inference.segmenter import Segmenter, SegmenterSettings
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import Snapshot, save
from lungseg.model.graph_file import read_metadata
from lungseg.model.network import build_network
from lungseg.pipelines import export_model, infer
from lungseg.predictions.parts import part_files, read_part
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import METADATA
from lungseg.segment_command import run

torch.set_num_threads(1)  # on a busy machine, two threads that wait for each other are ten times slower

U8 = NDArray[np.uint8]
Row = dict[str, Any]
CLASSES = ("right_lung", "left_lung", "heart", "opacity")
THRESHOLDS = {"right_lung": 0.5, "left_lung": 0.5, "heart": 0.45, "opacity": 0.6}
SMALL = ModelSettings(encoder="tu-test_efficientnet", weights="none")


def save_model(run: Path, classes: tuple[str, ...] = CLASSES, seed: int = 2) -> Path:
    """Save an untrained network whose predictions vary."""
    torch.manual_seed(seed)
    network = build_network(SMALL, classes=len(classes)).train()
    for other in range(5):
        network(torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(other)))
    with torch.no_grad():
        network.net.segmentation_head[0].weight.mul_(200.0)
    config = {
        "run": "several",
        "epoch": 1,
        "preprocess": PreprocessSettings(size=64, classes=classes).model_dump(),
        "settings": {"model": SMALL.model_dump()},
        "thresholds": {name: THRESHOLDS.get(name, 0.5) for name in classes},
    }
    records = storage.table_bytes(checkpoint.pa.table({"pixel_digest": [""]}).replace_schema_metadata(METADATA))
    save(str(run / "checkpoint"), Snapshot(dict(network.eval().state_dict()), {}, config, records))
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms in each of two styles, with masks of all classes."""
    folder = tmp_path_factory.mktemp("archive")
    phantom.write_archive(folder, 2, size=128, classes=("heart", "opacity"))
    return folder


def predict(archive: Path, model: Path, out: Path, **changes: Any) -> list[Row]:
    values = {"archive": str(archive), "checkpoint": (str(model),), "out": str(out), "part_size": 3, **changes}
    infer.run(InferSettings(**values))
    return [row for path in part_files(str(out)) for row in read_part(path).to_pylist()]


@pytest.fixture(scope="module")
def predicted(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of the archive, with torch; read-only."""
    from lungseg.pipelines import infer_on_cluster

    out = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer_on_cluster, "predict_on_cluster", lambda job, rows, _: infer.predict_locally(job, rows))
        predict(archive, model, out, backend="torch")
    return out


def rows_of(out: Path) -> list[Row]:
    return [row for path in part_files(str(out)) for row in read_part(path).to_pylist()]


def squares(count: int) -> list[U8]:
    return [phantom.draw(seed, phantom.STYLES[seed % 2], 64)[0] for seed in range(count)]


def test_every_class_of_every_image_is_predicted_and_compared(predicted: Path) -> None:
    rows = rows_of(predicted)
    assert [len(row["classes"]) for row in rows] == [4] * 4
    for row in rows:
        classes = {one["class"]: one for one in row["classes"]}
        assert tuple(classes) == CLASSES
        assert all(one["dice"] is not None for one in classes.values())
        assert row["dice"] is not None
        assert (row["right_lung_px"], row["left_lung_px"]) == tuple(
            classes[name]["area_px"] for name in ("right_lung", "left_lung")
        )
        assert (
            set(row["mask_classes"]) == {"right_lung", "left_lung", "heart", "opacity"} or "lung" in row["mask_classes"]
        )
    assert any(one["area_px"] for row in rows for one in row["classes"])


def test_recomputing_finds_nothing_to_report(predicted: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        recompute.run(str(predicted))
    assert "all values match the stored masks" in caplog.text


def test_the_summary_and_the_csv_have_each_class(predicted: Path) -> None:
    summary = json.loads((predicted / "predictions.json").read_text())
    assert [one["class"] for one in summary["classes"]] == ["both lungs", *CLASSES]
    assert [one["compared"] for one in summary["classes"]] == [4] * 5
    plan = json.loads((predicted / "plan.json").read_text())
    assert (plan["thresholds"], "threshold" in plan) == (THRESHOLDS, False)
    header = (predicted / "predictions.csv").read_text("utf-8-sig").splitlines()[0].split(",")
    assert {"heart_px", "heart_cm2", "heart_dice", "right_lung_dice", "cardiothoracic_ratio"} <= set(header)
    assert len(header) == len(set(header))


def test_the_segmenter_gives_the_masks_of_the_pipeline(predicted: Path, model: Path) -> None:
    row = rows_of(predicted)[0]
    result = Segmenter([str(model)], SegmenterSettings(backend="torch"))(row["source_uri"])
    assert tuple(result.masks) == tuple(result.probabilities) == CLASSES
    for one in row["classes"]:
        expected = codecs.decode_rle(one["mask"], row["height"], row["width"])
        assert (result.masks[one["class"]] == expected).all()
    assert (result.right == result.masks["right_lung"]).all()
    assert (result.mask == (result.masks["right_lung"] | result.masks["left_lung"])).all()
    larger = np.maximum(result.probabilities["right_lung"], result.probabilities["left_lung"])
    assert (result.probability == larger).all()


def test_prepared_data_gives_the_rows_of_the_archive(
    without_ray: None, predicted: Path, archive: Path, model: Path, tmp_path: Path
) -> None:
    preprocess = PreprocessSettings(size=64, classes=CLASSES)
    records = sources.discover(str(archive), classes=CLASSES)
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "data"), preprocess, 8))
    rows = predict(tmp_path / "data", model, tmp_path / "out", backend="torch")
    recompute.run(str(tmp_path / "out"))
    assert len(catalog.find_datasets([str(tmp_path / "data")])) == 2
    for row, other in zip(rows, rows_of(predicted), strict=True):
        assert [one["mask"] for one in row["classes"]] == [one["mask"] for one in other["classes"]]
        assert [one["dice"] for one in row["classes"]] == pytest.approx(
            [one["dice"] for one in other["classes"]], abs=0.05
        )


def test_flip_exchanges_left_and_right(model: Path) -> None:
    (source,) = find_models([str(model)])
    plain = Predictor(source)
    images, mirrored = squares(2), [np.ascontiguousarray(square[:, ::-1]) for square in squares(2)]
    expected = (plain.probabilities(images) + plain.probabilities(mirrored)[:, [1, 0, 2, 3], :, ::-1]) / 2
    flipped = Predictor(source, PredictOptions(tta="flip"))
    np.testing.assert_allclose(flipped.probabilities(images), expected, atol=1e-5)
    result = flipped.probabilities(mirrored)
    np.testing.assert_allclose(result[:, [1, 0, 2, 3], :, ::-1], flipped.probabilities(images), atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_onnx_gives_the_probabilities_of_torch(tta: Any, model: Path) -> None:
    pytest.importorskip("onnxruntime")
    (image,), options = squares(1), PredictOptions(tta=tta)
    torch_result = Segmenter([str(model)], SegmenterSettings(options, "torch"))(image)
    onnx_result = Segmenter([str(model)], SegmenterSettings(options, "onnxruntime"))(image)
    for name in CLASSES:
        np.testing.assert_allclose(onnx_result.probabilities[name], torch_result.probabilities[name], atol=1e-4)


def test_a_model_without_the_other_lung_cannot_be_flipped(tmp_path: Path) -> None:
    alone = save_model(tmp_path, ("right_lung", "heart"))
    with pytest.raises(SettingsError, match="right_lung becomes left_lung, which the model does not segment"):
        Segmenter([str(alone)], SegmenterSettings(PredictOptions(tta="flip")))


def test_models_of_other_classes_are_refused(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path, ("left_lung", "right_lung", "heart", "opacity"), seed=3)
    with pytest.raises(InputError, match=r"pass models of the same classes in the same order"):
        find_models([str(model), str(other)])


def test_an_ensemble_has_the_mean_threshold_of_each_class(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path, seed=3)
    config = next(other.glob("checkpoint/*/config.json"))
    config.write_text(config.read_text().replace("0.45", "0.35"))
    models = find_models([str(model), str(other)])
    assert mean_thresholds(models) == pytest.approx({**THRESHOLDS, "heart": 0.4})
    assert mean_thresholds(models, 0.3) == dict.fromkeys(CLASSES, 0.3)


def test_a_model_of_the_heart_alone_segments_it(archive: Path, tmp_path: Path) -> None:
    heart = save_model(tmp_path, ("heart",))
    path = next(iter(sorted(archive.glob("*/images/*"))))
    result = Segmenter([str(heart)], SegmenterSettings(backend="torch"))(path)
    assert (tuple(result.masks), result.ok, result.flags) == (("heart",), True, ())
    with pytest.raises(SettingsError, match="the model segments heart, not both lungs"):
        _ = result.mask


def test_an_exported_model_keeps_the_masks_of_each_class(model: Path, archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    card = ["--title", "Small", "--terms", "CC0-1.0", "--data", "noise", "--made-by", "a test"]
    path = tmp_path / "small.onnx"
    export_model.run([str(model), "-o", str(path), "--format", "onnx", "--images", str(archive), *card])
    metadata = read_metadata(str(path))
    assert metadata["output"]["classes"] == list(CLASSES)
    assert metadata["config"]["thresholds"] == THRESHOLDS
    (verdict, *_) = json.loads((tmp_path / "small.gate.json").read_text())["verdicts"]
    assert tuple(verdict["classes"]) == CLASSES
    assert verdict["changed"] == max(one["changed"] for one in verdict["classes"].values())
    assert all(one["compared"] == 4 for one in verdict["classes"].values())
    assert mean_thresholds(find_models([str(path)])) == THRESHOLDS


def test_segment_writes_a_mask_of_each_class(model: Path, archive: Path, tmp_path: Path, capsys: Any) -> None:
    paths = tuple(str(path) for path in sorted(archive.glob("*/images/*"))[:2])
    run.run(SegmentSettings(paths=paths, out=str(tmp_path / "out"), model=str(model), backend="torch"))
    shown = capsys.readouterr().out
    assert "heart" in shown
    assert "written to" in shown
    table = storage.read_table(str(tmp_path / "out" / "predictions.parquet")).to_pylist()
    for row in table:
        masks = {one["class"]: codecs.decode_rle(one["mask"], row["height"], row["width"]) for one in row["classes"]}
        for name in CLASSES:
            path = tmp_path / "out" / row[f"{name}_mask_file"]
            assert (codecs.decode(path.read_bytes(), path.name) == 255 * masks[name]).all()
        lungs = codecs.decode((tmp_path / "out" / row["mask_file"]).read_bytes(), "mask")
        assert (lungs == 255 * (masks["right_lung"] | masks["left_lung"])).all()
        assert (tmp_path / "out" / row["overlay_file"]).stat().st_size > 0
    header = (tmp_path / "out" / "predictions.csv").read_text("utf-8-sig").splitlines()[0].split(",")
    assert {"heart_px", "opacity_cm2", "heart_mask_file"} <= set(header)
    assert "heart_dice" not in header
    assert len(header) == len(set(header))


def test_a_result_saves_and_draws_each_class(model: Path, archive: Path, tmp_path: Path) -> None:
    path = next(iter(sorted(archive.glob("*/images/*"))))
    result = Segmenter([str(model)], SegmenterSettings(backend="torch"))(path)
    saved = result.save(tmp_path, name="heart")
    assert saved.endswith(f"{result.row['image_id']}.heart.mask.png")
    assert (codecs.decode(Path(saved).read_bytes(), "mask") == 255 * result.masks["heart"]).all()
    assert (codecs.decode(Path(result.save(tmp_path)).read_bytes(), "mask") == 255 * result.mask).all()
    assert result.areas_px == {
        "right": result.right.sum(),
        "left": result.left.sum(),
        "both": result.mask.sum(),
        **{name: result.masks[name].sum() for name in ("heart", "opacity")},
    }
    assert result.overlay().shape == (*result.mask.shape, 3)
    with pytest.raises(SettingsError, match="pass a mask and a class: right_lung"):
        result.save(tmp_path, name="liver")
