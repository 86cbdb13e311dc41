"""An inference that is continued in another process has the rows of one that was not, with each backend."""

from pathlib import Path
from typing import Any

import pytest

from lungseg import storage
from lungseg.config.command_line import parse
from lungseg.errors import InputError
from lungseg.inference.backends import RUNTIMES
from lungseg.pipelines import infer
from tests.shared_fixtures import steady

pytest.importorskip("onnxruntime")


def run(archive: Path, model: Path, out: Path, *words: str) -> list[list[dict[str, Any]]]:
    """Predict in this process; return the rows of each part."""
    options = ["--archive", str(archive), "--checkpoint", str(model), "--out", str(out), "--part-size", "2"]
    infer.run(parse("infer", [*options, *words]))  # type: ignore[arg-type]
    return [steady(storage.read_table(str(path)).to_pylist()) for path in parts(out)]


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("rows/part-*.parquet"))


@pytest.mark.parametrize("backend", ["torch", *RUNTIMES])
def test_lost_parts_are_predicted_again_with_the_same_rows(
    without_ray: None, archive: Path, trained: Path, tmp_path: Path, backend: str
) -> None:
    pytest.importorskip(backend)
    rows = run(archive, trained, tmp_path, "--backend", backend, "--batch-size", "2", "--tta", "flip")
    kept, *lost = parts(tmp_path)
    assert len(lost) == 3
    written = kept.stat().st_mtime_ns
    for path in (*lost, tmp_path / "predictions.json"):
        path.unlink()
    assert run(archive, trained, tmp_path, "--batch-size", "2", "--tta", "flip") == rows  # it need not name the backend
    assert kept.stat().st_mtime_ns == written
    assert storage.read_json(str(tmp_path / "predictions.json"))["backend"] == backend
    (other,) = {"torch", "onnxruntime"} - {backend} if backend != "openvino" else {"torch"}
    with pytest.raises(InputError, match=f"holds parts computed with {backend}, this run would use {other}"):
        run(archive, trained, tmp_path, "--backend", other, "--tta", "flip")
