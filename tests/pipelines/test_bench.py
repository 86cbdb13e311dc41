"""lungseg bench in this process: its tables, its file and its errors, never its speed."""

import json
import re
from pathlib import Path

import cv2
import pytest
import torch

from lungseg.config import AugmentSettings, BenchSettings, LoaderSettings, ModelSettings
from lungseg.errors import ResourceError
from lungseg.pipelines import bench

STAGES = [
    *("read a sample", "decode a sample", "augment a sample"),
    *("load a batch (1 thread)", "load a batch (2 threads)", "copy to the device", "train on a batch"),
    *("read its file", "decode it", "open an X-ray", "predict a batch", "finish a mask"),
]


@pytest.fixture
def settings(archive: Path, prepared: Path, tmp_path: Path) -> BenchSettings:
    return BenchSettings(
        data=(str(prepared),),
        archive=str(archive),
        out=str(tmp_path / "bench"),
        quick=True,
        model=ModelSettings(encoder="tu-test_efficientnet", weights="none"),
        augment=AugmentSettings(rotate_deg=5.0, flip=0.5),
        loader=LoaderSettings(batch_size=4),
    )


def test_every_stage_is_measured_beside_its_limit(
    settings: BenchSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = cv2.getNumThreads()
    bench.run(settings)
    assert cv2.getNumThreads() == threads
    result = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert [line["stage"] for line in result["stages"]] == STAGES
    for line in result["stages"]:
        assert 2 <= line["rounds"] <= 5
        assert 0 < line["ms_min"] <= line["ms_median"]
        assert 0 < line["limit_ms_min"] <= line["limit_ms_median"]
        assert line["device_ms_min"] is None
    assert [line["workers"] for line in result["scaling"]["threads or processes of the loader"]] == [1, 2]
    assert (result["size"], result["machine"]["device"]) == (64, "cpu")
    assert [line["path"] for line in result["widen"]] == ["training", "inference"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in STAGES)
    assert len(re.findall(r"the stage to widen is '.+' \([\d.]+ of [\d.]+ ms an image\): .+\.", printed)) == 2


def test_a_gpu_is_asked_for_where_there_is_none(settings: BenchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="--device gpu: torch finds no GPU"):
        bench.run(settings.model_copy(update={"device": "gpu"}))
