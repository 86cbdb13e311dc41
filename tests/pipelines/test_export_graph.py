"""`lungseg export-model --format onnx|openvino`: files that keep the masks of torch, and a gate that refuses others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lungseg
from lungseg import storage
from lungseg.arrays import U8
from lungseg.config.command_line import parse
from lungseg.errors import CheckpointError, InputError, SettingsError
from lungseg.inference.backends import int8
from lungseg.inference.backends.export_gate import ExportGate, Verdict, list_images
from lungseg.inference.backends.quantise import Quantiser
from lungseg.inference.items import open_item
from lungseg.model import checkpoint, sources
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.graph_file import read_metadata
from lungseg.model.onnx_file import OnnxFile, read_onnx
from lungseg.pipelines import export_model, infer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CARD = ["--title", "Small", "--terms", "CC0-1.0", "--data", "noise", "--made-by", "a test"]


@pytest.fixture(scope="module")
def exported(trained: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_model.run([str(trained), "-o", str(path), "--format", "onnx", "--images", str(archive), *CARD])
    return path


@pytest.fixture(scope="module")
def source(trained: Path) -> Checkpoint:
    return checkpoint.find_all(str(trained))[0]


@pytest.fixture(scope="module")
def gate(source: Checkpoint, archive: Path) -> ExportGate:
    return ExportGate(source, list_images(str(archive), source, 8))


@pytest.fixture(scope="module")
def squares(source: Checkpoint, archive: Path) -> U8:
    opened = [open_item(item, source.preprocess).square for item in list_images(str(archive), source, 4)]
    return np.stack(opened)[:, None]  # type: ignore[arg-type]


def test_metadata_has_all_that_a_user_needs(exported: Path, source: Checkpoint) -> None:
    metadata = read_metadata(str(exported))
    assert metadata["card"] == {"title": "Small", "terms": "CC0-1.0", "data": "noise", "made_by": "a test"}
    assert metadata["input"] == {"name": "images", "type": "u8", "shape": ["batch", 1, 64, 64]}
    assert metadata["output"]["classes"] == ["lung"]
    assert metadata["config"]["preprocess"] == source.preprocess.model_dump(mode="json")
    assert metadata["config"]["settings"]["threshold"] == checkpoint.stored_threshold(source)
    assert metadata["config"]["digests"]["model.safetensors"][:16] == source.digest
    assert set(metadata["config"]["trained_on_digests"]) == checkpoint.trained_on(source)
    assert metadata["checks"]["onnxruntime"]["passed"]


def test_onnx_readers_accept_the_file(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key for entry in model.metadata_props} == {"lungseg", "lungseg.sha256"}


def test_the_report_lies_beside_the_file(exported: Path) -> None:
    report = storage.read_json(str(exported.with_name("small.gate.json")))
    assert report["passed"]
    assert report["verdicts"][0]["images"] == 8
    assert report["verdicts"][0]["changed"] <= 1e-4
    assert report["verdicts"][0]["compared"] == 8


def test_the_file_is_a_model_of_its_own(exported: Path, trained: Path, archive: Path) -> None:
    images = [str(path) for path in sorted(archive.glob("*/images/*.png"))]
    expected = lungseg.load(trained, backend="onnxruntime")(images)
    for one, other in zip(lungseg.load(exported)(images), expected, strict=True):
        assert (one.mask == other.mask).all()
        assert one.row["model"] == other.row["model"]
        assert one.row["seen_in_training"] == other.row["seen_in_training"]


def test_torch_refuses_the_file(exported: Path) -> None:
    with pytest.raises(CheckpointError, match="torch cannot run this file"):
        lungseg.load(exported, backend="torch")


@pytest.mark.parametrize("words", [["--backend", "torch"], ["--device", "gpu"], ["--profile"]])
def test_settings_that_need_torch_are_refused_for_the_file(
    exported: Path, archive: Path, tmp_path: Path, words: list[str]
) -> None:
    options = ["--archive", str(archive), "--checkpoint", str(exported), "--out", str(tmp_path)]
    with pytest.raises(CheckpointError, match="torch cannot run this file"):
        infer.run(parse("infer", [*options, *words]))  # type: ignore[arg-type]


def test_openvino_files_are_models_too(trained: Path, archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "small.xml"
    export_model.run([str(trained), "-o", str(path), "--format", "openvino", "--images", str(archive), *CARD])
    image = str(next((archive / "north" / "images").iterdir()))
    expected = lungseg.load(trained, backend="openvino")(image)
    assert (lungseg.load(path)(image).mask == expected.mask).all()
    with pytest.raises(SettingsError, match="reads no OpenVINO files"):
        lungseg.load(path, backend="onnxruntime")
    weights = path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the digest differs"):
        lungseg.load(path)


def planted(exported: Path, path: Path, **changes: Any) -> str:
    """Write the file with other settings in its metadata, and a digest that fits them."""
    file = read_onnx(str(exported))
    metadata = json.loads(json.dumps(file.metadata))
    for name, value in changes.items():
        part, key = name.split("__")
        metadata["config"][part][key] = value
    path.write_bytes(OnnxFile(file.graph, metadata).encode())
    return str(path)


def test_an_intact_file_passes(gate: ExportGate, exported: Path) -> None:
    assert not gate.judge(str(exported), "onnxruntime").problem


@pytest.mark.parametrize("position", [100, 50_000, -1000])
def test_a_damaged_file_is_refused(gate: ExportGate, exported: Path, tmp_path: Path, position: int) -> None:
    content = bytearray(exported.read_bytes())
    content[position] ^= 1
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    assert "damaged" in gate.judge(str(path), "onnxruntime").problem


@pytest.mark.parametrize(
    "changes",
    [
        {"settings__threshold": 0.99},
        {"preprocess__size": 96},
        {"preprocess__geometry": "crop"},
        {"preprocess__histogram": "equalize"},
    ],
)
def test_wrong_metadata_is_refused(changes: dict[str, Any], gate: ExportGate, exported: Path, tmp_path: Path) -> None:
    problem = gate.judge(planted(exported, tmp_path / "wrong.onnx", **changes), "onnxruntime").problem
    assert "differ from those of torch" in problem or "cannot run it with its metadata" in problem


def test_other_weights_are_refused(gate: ExportGate, exported: Path, tmp_path: Path) -> None:
    file = read_onnx(str(exported))
    model = onnx.load_from_string(file.graph)
    bias = model.graph.initializer[-1]
    bias.raw_data = (onnx.numpy_helper.to_array(bias) + np.float32(0.5)).tobytes()
    path = tmp_path / "other.onnx"
    path.write_bytes(OnnxFile(model.SerializeToString(), file.metadata).encode())
    assert "of the pixels of its masks differ" in gate.judge(str(path), "onnxruntime").problem


def test_a_comparison_of_few_images_is_named(
    trained: Path, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in sorted((archive / "south" / "images").iterdir())[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = str(tmp_path / "m.onnx")
    export_model.run([str(trained), "-o", out, "--format", "onnx", "--images", str(tmp_path)])
    assert "1 of 3 X-rays could not be used for the comparison" in caplog.text
    assert "the comparison is of 2 X-rays only: pass more with --images" in caplog.text


def test_an_error_of_the_preparation_is_no_refusal(
    gate: ExportGate, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lungseg.inference.backends.export_gate.open_item", lambda *_: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        gate.judge(str(exported), "onnxruntime")


@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 32, 64), (2, 1, 64, 64)])
def test_results_of_another_shape_are_refused(
    shape: tuple[int, ...], gate: ExportGate, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = "lungseg.inference.backends.export_gate.open_network"
    monkeypatch.setattr(opened, lambda *_: lambda _: np.zeros(shape, np.float32))
    assert "gives an array of" in gate.judge(str(exported), "onnxruntime").problem


def test_a_refused_export_leaves_only_the_report(
    trained: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lungseg.inference.backends.export_gate.MAX_CHANGED", -1.0)
    with pytest.raises(CheckpointError, match=r"not exported: .* of the pixels of its masks differ"):
        export_model.run([str(trained), "-o", str(tmp_path / "m.onnx"), "--format", "onnx", "--images", str(archive)])
    assert [path.name for path in tmp_path.iterdir()] == ["m.gate.json"]
    assert not storage.read_json(str(tmp_path / "m.gate.json"))["passed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "m.onnx", "--format", "onnx"], "pass --images"),
        (["-o", "m", "--format", "onnx", "--images", "x"], "expected a file that ends in .onnx"),
        (["-o", "m", "--int8"], "--int8 and --images are for --format"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], message: str, trained: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        export_model.run([str(trained), *words])


def test_int8_is_calibrated_on_training_images_only(trained: Path, archive: Path, tmp_path: Path) -> None:
    words = [str(trained), "-o", str(tmp_path / "m.onnx"), "--format", "onnx", "--int8", "--images"]
    with pytest.raises(InputError, match="calibrates on images of the training"):
        export_model.run([*words, str(archive / "south" / "images")])


def test_int8_with_ranges_of_black_images_is_refused(gate: ExportGate, exported: Path, tmp_path: Path) -> None:
    file, black = read_onnx(str(exported)), np.zeros((2, 1, 64, 64), np.uint8)
    graph, _ = Quantiser(file.graph, black, tmp_path, threads=1).quantise(lambda _: True)
    path = tmp_path / "m.onnx"
    path.write_bytes(OnnxFile(graph, file.metadata | {"precision": "int8"}).encode())
    verdict = gate.judge(str(path), "onnxruntime")
    assert "of the mean Dice, more than 0.002" in verdict.problem
    assert verdict.dice is not None
    assert verdict.torch_dice is not None
    assert verdict.dice < verdict.torch_dice - 0.02


def test_int8_that_changes_many_pixels_is_refused(
    source: Checkpoint, exported: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Errors that cancel each other on the images of the training need not do so on others."""
    verdict = Verdict("onnxruntime", "1", 1, 0.002, 0.002, 1, 0.95, 0.95, 0.0, "")
    monkeypatch.setattr(ExportGate, "compare", lambda *_: verdict)
    monkeypatch.setattr("lungseg.inference.backends.quantise._KEPT", (0,))
    items = list_images(str(prepared), source, 10)
    with pytest.raises(CheckpointError, match="int8 changes the masks too much"):
        int8.quantise(read_onnx(str(exported)).graph, source, items, tmp_path)


@pytest.mark.slow
def test_int8_keeps_the_accuracy_or_is_refused(
    trained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two depends on the model that this machine trains."""
    monkeypatch.setattr("lungseg.inference.backends.int8._MIN_IMAGES", 1)
    path = tmp_path / "m.onnx"
    words = [str(trained), "-o", str(path), "--format", "onnx", "--int8", "--images", str(prepared)]
    try:
        export_model.run(words)
    except CheckpointError as error:
        assert not path.exists()
        if "int8 changes the masks too much" in str(error):  # in the trial, so that the gate judges nothing
            return
    (verdict, *_) = storage.read_json(str(tmp_path / "m.gate.json"))["verdicts"]
    is_close = verdict["torch_dice"] - verdict["dice"] <= 0.002 and verdict["worst_loss"] <= 0.01
    assert path.exists() == is_close


@pytest.mark.slow
def test_int8_is_exported_where_masks_stay_close(
    trained: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lungseg.inference.backends.int8._MIN_IMAGES", 1)
    monkeypatch.setattr("lungseg.inference.backends.int8._MAX_TRIAL_CHANGED", 0.1)
    for module in ("int8", "export_gate"):  # the tiny network loses more than a real one
        monkeypatch.setattr(f"lungseg.inference.backends.{module}.MAX_MEAN_LOSS", 0.05)
        monkeypatch.setattr(f"lungseg.inference.backends.{module}.MAX_LOSS", 0.2)
    path = tmp_path / "m.onnx"
    export_model.run([str(trained), "-o", str(path), "--format", "onnx", "--int8", "--images", str(prepared)])
    metadata = read_metadata(str(path))
    assert metadata["precision"] == "int8"
    assert (
        sources.model_name([checkpoint.verify(str(path))])
        == f"{checkpoint.find_all(str(trained))[0].config['run']}-int8"
    )
    assert metadata["config"]["digests"]["model.safetensors"][:16] != checkpoint.find_all(str(trained))[0].digest
    (verdict, *_) = storage.read_json(str(tmp_path / "m.gate.json"))["verdicts"]
    assert verdict["torch_dice"] - verdict["dice"] <= 0.05
    assert verdict["changed"] > 0


@pytest.mark.slow
def test_int8_keeps_the_most_sensitive_layer_in_float(exported: Path, squares: U8, tmp_path: Path) -> None:
    quantiser = Quantiser(read_onnx(str(exported)).graph, squares, tmp_path, threads=1)
    answers = iter([False, True])
    graph, kept = quantiser.quantise(lambda _: next(answers))
    assert len(kept) == 1
    nodes = onnx.load_from_string(graph).graph.node
    sources = {name: node.op_type for node in nodes for name in node.output}
    in_float = [
        node.name for node in nodes if node.op_type == "Conv" and "Dequant" not in sources.get(node.input[1], "")
    ]
    assert in_float == list(kept)
