"""Backends: the masks of torch, in any batch and with any number of threads, chosen once for a folder."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lungseg
from lungseg import cli, storage
from lungseg.config.command_line import parse
from lungseg.errors import CheckpointError, InputError, SettingsError
from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.inference.backends import RUNTIMES, Runtime, available_threads, open_network, selection
from lungseg.inference.backends.selection import choose_backend
from lungseg.inference.ensemble import Ensemble, Predictor
from lungseg.inference.items import PredictOptions
from lungseg.inference.job_backend import claim_backend, recorded_backend
from lungseg.inference.runtime_ensemble import RuntimeEnsemble
from lungseg.model import checkpoint, onnx_cache, sources
from lungseg.model.checkpoint import Checkpoint, stored_threshold
from lungseg.model.onnx_cache import find_or_export
from lungseg.model.onnx_file import Check, ExportError, OnnxFile, parse_onnx
from lungseg.pipelines import infer

pytest.importorskip("onnxruntime")


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def model(trained: Path) -> Checkpoint:
    return checkpoint.find_all(str(trained))[0]


@pytest.fixture
def squares(model: Checkpoint) -> list[np.ndarray]:
    drawn = [phantom.draw(seed, "montgomery", 80)[0] for seed in range(5)]
    return [prepare_image(image, model.preprocess)[0] for image in drawn]


def test_probabilities_are_those_of_torch(model: Checkpoint, squares: list[np.ndarray], runtime: Runtime) -> None:
    images = np.stack(squares)[:, None]
    expected = Predictor(model)(images)
    result = open_network(find_or_export(model).path, runtime)(images)
    assert result.shape == expected.shape == (5, 1, 64, 64)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-4
    threshold = stored_threshold(model)
    assert ((result >= threshold) != (expected >= threshold)).mean() <= selection.MAX_CHANGED


def test_probabilities_do_not_depend_on_batch_or_threads(
    model: Checkpoint, squares: list[np.ndarray], runtime: Runtime
) -> None:
    path, images = find_or_export(model).path, np.stack(squares)[:, None]
    together = open_network(path, runtime, threads=1)(images)
    network = open_network(path, runtime, threads=2)
    alone = np.concatenate([network(image[None]) for image in images])
    assert np.abs(alone - together).max() < 1e-6
    assert (network(images[:2]) == network(images[:2])).all()


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_ensembles_predict_as_with_torch(study: Path, squares: list[np.ndarray], runtime: Runtime, tta: str) -> None:
    models = checkpoint.find_all(str(study))
    digests = ["new", *sorted(checkpoint.trained_on(models[0]))[:4]]
    expected = Ensemble(models, PredictOptions(tta=tta))(squares, digests)  # type: ignore[arg-type]
    options = PredictOptions(tta=tta, backend=runtime)  # type: ignore[arg-type]
    result = RuntimeEnsemble(models, options)(squares, digests)
    for one, other in zip(result, expected, strict=True):
        assert (one.models, one.seen_in_training) == (other.models, other.seen_in_training)
        assert np.abs(one.probability - other.probability).max() < 1e-4


def test_a_model_is_converted_once(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_or_export(model)
    monkeypatch.setattr("lungseg.model.onnx_export.export_graph", lambda *_: pytest.fail("converted again"))
    assert find_or_export(model) == first


def test_conversion_is_deterministic(model: Checkpoint) -> None:
    from lungseg.model.onnx_export import export_graph

    assert export_graph(model) == find_or_export(model).file.graph


def test_a_damaged_file_in_the_cache_is_replaced(model: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    found = find_or_export(model)
    path, content = Path(found.path), Path(found.path).read_bytes()
    path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    assert find_or_export(model).file.graph == found.file.graph
    assert "the digest differs from the content" in caplog.text


def test_metadata_survives_the_file(model: Checkpoint) -> None:
    file = find_or_export(model).file
    read = parse_onnx(file.encode(), "x.onnx")
    assert read == file
    assert parse_onnx(OnnxFile(file.graph, {**file.metadata, "more": "é" * 300}).encode(), "x").metadata["more"]


@pytest.mark.parametrize("damage", [b"", b"\x08\x07", b"no protobuf", None])
def test_other_files_are_refused(damage: bytes | None, model: Checkpoint) -> None:
    content = find_or_export(model).file.encode()[:-10] if damage is None else damage
    with pytest.raises(CheckpointError, match=r"x\.onnx: .*(damaged)"):
        parse_onnx(content, "x.onnx")


def test_auto_takes_the_fastest_with_the_same_masks(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {
        "torch": Check(changed=0.0, passed=True, seconds=3.0),
        "onnxruntime": Check(changed=0.0, passed=True, seconds=1.0),
        "openvino": Check(changed=0.01, passed=False, seconds=0.5),
    }
    monkeypatch.setattr(selection, "is_installed", lambda _: True)
    monkeypatch.setattr(selection, "_checks", lambda *_: checks)
    assert choose_backend("auto", [model], PredictOptions()) == "onnxruntime"
    checks["openvino"] = Check(changed=0.0001, passed=True, seconds=0.5)
    assert choose_backend("auto", [model], PredictOptions()) == "openvino"
    checks["torch"] = Check(changed=0.0, passed=True, seconds=0.1)
    assert choose_backend("auto", [model], PredictOptions()) == "torch"
    assert choose_backend("auto", [model], PredictOptions(), "openvino") == "openvino"


def test_auto_converts_no_model_for_a_few_images(
    model: Checkpoint, trained: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "_checks", lambda *_: pytest.fail("converted"))
    assert choose_backend("auto", [model], PredictOptions(), few_images=True) == "torch"
    image = next((archive / "north" / "images").iterdir())
    out = tmp_path / "segmented"
    cli.dispatch(["segment", str(image), "-o", str(out), "--model", str(trained)])
    assert (out / "predictions.csv").exists()
    infer.run(settings(archive, trained, tmp_path / "predicted", "auto"))
    assert recorded_backend(str(tmp_path / "predicted")) == "torch"


def test_auto_uses_a_converted_model_for_a_few_images(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    find_or_export(model)
    checks = {name: Check(changed=0.0, passed=True, seconds=1.0) for name in RUNTIMES}
    monkeypatch.setattr(selection, "_checks", lambda *_: checks | {"torch": Check(changed=0, passed=True, seconds=2.0)})
    assert choose_backend("auto", [model], PredictOptions(), few_images=True) in RUNTIMES


@pytest.mark.parametrize("few_images", [True, False])
def test_auto_needs_no_torch_for_an_installed_model(few_images: bool) -> None:
    """The checks of its graph have no time of torch, which must not count as zero."""
    models = checkpoint.find_all(sources.resolve("lungs"))
    assert "torch" not in find_or_export(models[0]).checks
    assert choose_backend("auto", models, PredictOptions(), few_images=few_images) in RUNTIMES


def test_auto_is_torch_on_gpus_and_in_bf16(model: Checkpoint) -> None:
    assert choose_backend("auto", [model], PredictOptions("cuda")) == "torch"
    assert choose_backend("auto", [model], PredictOptions(precision="bf16")) == "torch"


def test_a_real_model_passes_its_check(model: Checkpoint, runtime: Runtime) -> None:
    assert choose_backend(runtime, [model], PredictOptions()) == runtime
    check = find_or_export(model).checks[runtime]
    assert check.changed <= selection.MAX_CHANGED
    assert check.seconds > 0


def test_a_named_backend_with_other_masks_is_refused(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        selection, "_checks", lambda *_: {"onnxruntime": Check(changed=0.02, passed=False, seconds=1.0)}
    )
    with pytest.raises(
        CheckpointError, match=r"2\.0000% of the pixels of its masks differ between onnxruntime and torch"
    ):
        choose_backend("onnxruntime", [model], PredictOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [(PredictOptions("cuda"), "pass --device cpu"), (PredictOptions(precision="bf16"), "computes in fp32")],
)
def test_a_named_backend_refuses_what_it_cannot_do(options: PredictOptions, message: str, model: Checkpoint) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_backend("onnxruntime", [model], options)


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="openvino: not installed: run pip install openvino"):
        lungseg.load(trained, backend="openvino")


class Unusual(nn.Module):
    """A network with an operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images * self.weight)


def test_a_network_that_cannot_be_converted_uses_torch(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lungseg.model.onnx_export.load_model", lambda *_: Unusual())
    monkeypatch.setattr(onnx_cache, "_read", lambda *_: None)
    caplog.set_level("INFO")
    assert choose_backend("auto", [model], PredictOptions()) == "torch"
    assert "cannot be converted to ONNX" in caplog.text
    with pytest.raises(ExportError, match="pass --backend torch"):
        choose_backend("onnxruntime", [model], PredictOptions())


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert available_threads() >= 1


def test_segmenter_gives_the_masks_of_torch(trained: Path, archive: Path, runtime: Runtime) -> None:
    images = [str(path) for path in sorted(archive.glob("*/images/*.png"))]
    expected = lungseg.load(trained, backend="torch")(images)
    for one, other in zip(lungseg.load(trained, backend=runtime)(images), expected, strict=True):
        assert (one.mask != other.mask).mean() <= 2e-4
        assert one.row["seen_in_training"] == other.row["seen_in_training"]


def settings(archive: Path, trained: Path, out: Path, backend: str) -> infer.InferSettings:
    image = next((archive / "north" / "images").iterdir())
    words = ["--archive", str(image), "--checkpoint", str(trained), "--out", str(out), "--backend", backend]
    return parse("infer", words)  # type: ignore[return-value]


def test_a_folder_never_mixes_backends(archive: Path, trained: Path, tmp_path: Path) -> None:
    infer.run(settings(archive, trained, tmp_path, "onnxruntime"))
    assert storage.read_json(str(tmp_path / "predictions.json"))["backend"] == "onnxruntime"
    assert "onnxruntime" in storage.read_json(str(tmp_path / "predictions.json"))["versions"]
    next((tmp_path / "rows").iterdir()).unlink()
    infer.run(settings(archive, trained, tmp_path, "torch"))  # no part is left to mix with
    (part,) = (tmp_path / "rows").iterdir()
    content = part.read_bytes()
    with pytest.raises(InputError, match="holds parts computed with torch, this run would use onnxruntime"):
        claim_backend(str(tmp_path), "onnxruntime")
    assert part.read_bytes() == content


def test_parts_without_a_backend_are_of_torch(archive: Path, trained: Path, tmp_path: Path) -> None:
    infer.run(settings(archive, trained, tmp_path, "torch"))
    plan = storage.read_json(str(tmp_path / "plan.json"))
    del plan["backend"]
    storage.write_json(str(tmp_path / "plan.json"), plan)
    assert recorded_backend(str(tmp_path)) == "torch"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--device", "gpu"], "computes on CPUs"), (["--profile"], "--profile records torch, not onnxruntime")],
)
def test_settings_that_need_torch_are_refused(
    words: list[str], message: str, archive: Path, trained: Path, tmp_path: Path
) -> None:
    arguments = ["--archive", str(archive), "--checkpoint", str(trained), "--out", str(tmp_path)]
    with pytest.raises(SettingsError, match=message):
        infer.run(parse("infer", [*arguments, "--backend", "onnxruntime", *words]))  # type: ignore[arg-type]
