"""The same archive as image files, DICOM, prepared tars and in a bucket: the same masks."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from lungseg import storage
from lungseg.config import InferSettings
from lungseg.errors import TaskResult
from lungseg.imaging import codecs
from lungseg.inference.actor import PredictPart
from lungseg.inference.cpu_tasks import InferenceJob, finish_part, open_part
from lungseg.inference.inputs import list_items
from lungseg.inference.items import PredictOptions
from lungseg.inference.part_plan import PlannedPart
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint import ensemble_digest
from lungseg.predictions.parts import part_path
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from tests.imaging.dicom.dicom_files import coded, write_dicom

CODINGS = (None, RLELossless, JPEGLSLossless, JPEG2000Lossless)


def masks_of(archive: str, trained: Path, out: str) -> dict[str, str]:
    """Predict an archive in this process; masks by image."""
    model = checkpoint.find_all(str(trained))[0]
    settings = InferSettings(archive=archive, checkpoint=(str(trained),), out=out)
    thresholds = {"lung": 0.5}
    job = InferenceJob(
        settings,
        out,
        (model.folder,),
        "tiny",
        ensemble_digest([model]),
        model.preprocess,
        thresholds,
        PredictOptions(),
    )
    planned = PlannedPart.of(0, list(list_items(settings, model.preprocess)), "settings")
    part = pa.Table.from_pylist([{"number": 0, "items": planned.items, "digest": "feed"}])
    (row,) = finish_part(PredictPart(job)(open_part(part, job)), job).to_pylist()
    TaskResult.from_json(row["result"]).unwrap()
    rows = storage.read_table(part_path(out, 0)).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    return {row["image_id"]: row["mask"] for row in rows}


@pytest.fixture
def images(archive: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The images of the archive, each with a black and a white pixel: DICOM without a window shows the full range."""
    adjusted = {}
    for path in sorted(archive.rglob("images/*.png")):
        adjusted[path.stem] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        adjusted[path.stem][0, 0], adjusted[path.stem][-1, -1] = 0, 255
    return adjusted


def test_files_dicom_bucket_and_tars_give_the_same_masks(
    images: dict[str, np.ndarray[Any, Any]], trained: Path, bucket: str, tmp_path: Path
) -> None:
    for folder in ("files", "dicom"):
        (tmp_path / folder).mkdir()
    for number, (name, image) in enumerate(images.items()):
        (tmp_path / "files" / f"{name}.png").write_bytes(codecs.encode_image(image))
        content, coding = write_dicom(image), CODINGS[number % len(CODINGS)]
        (tmp_path / "dicom" / f"{name}.dcm").write_bytes(coded(content, coding) if coding else content)
    filesystem, inner = storage.open_filesystem(f"{bucket}/archive")
    pafs.copy_files(str(tmp_path / "files"), inner, destination_filesystem=filesystem)
    size = checkpoint.find_all(str(trained))[0].preprocess
    dataset_writer.write_datasets(
        plan_shards(sources.discover(str(tmp_path / "files")), str(tmp_path / "tars"), size, 3)
    )

    files = masks_of(str(tmp_path / "files"), trained, str(tmp_path / "out-files"))
    assert len(set(files.values())) > len(files) / 2
    assert masks_of(str(tmp_path / "dicom"), trained, str(tmp_path / "out-dicom")) == files
    assert masks_of(f"{bucket}/archive", trained, f"{bucket}/out") == files
    # A tar stores the exact square that is computed from a file, so the predictions are equal.
    assert masks_of(str(tmp_path / "tars"), trained, str(tmp_path / "out-tars")) == files
