"""Stages of inference: open X-rays, predict a batch, and finish the masks."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pycocotools.mask as coco
import pydicom
import torch

from lungseg import storage
from lungseg.arrays import F32
from lungseg.bench.device import clock_of
from lungseg.bench.timing import Stage
from lungseg.config import BenchSettings, PostprocessSettings, PreprocessSettings
from lungseg.imaging import codecs
from lungseg.imaging.dicom.reader import is_dicom
from lungseg.inference.ensemble import Ensemble
from lungseg.inference.items import Item, OpenedImage, Prediction, PredictOptions, open_item
from lungseg.inference.prediction import predict
from lungseg.inference.rows import make_row
from lungseg.model.checkpoint import Checkpoint, latest
from lungseg.model.checkpoint_io import Snapshot, load_model, save
from lungseg.model.network import build_network
from lungseg.model.precision import AUTOCAST_DTYPES, resolve_precision, to_network_input
from lungseg.schema import METADATA

OPEN, READ_FILE, DECODE_FILE = "open an X-ray", "read its file", "decode it"
PREDICT, FINISH = "predict a batch", "finish a mask"

Opened = Sequence[tuple[Item, OpenedImage]]


def image_stages(opened: Opened, preprocess: PreprocessSettings, probability: F32) -> list[Stage]:
    """Return the stages that one X-ray passes on one core, before and after the model.

    probability: f32[S,S] of the lungs, what the model is taken to predict for each image.
    """
    paths = [item.record.image_uri for item, _ in opened]
    contents = [storage.read_bytes(path) for path in paths]
    shared, settings = {"threshold": 0.5, "model": "none"}, PostprocessSettings()
    prediction = Prediction(probability[None], 1, seen_in_training=False)
    work: dict[str, Callable[[int], object]] = {
        READ_FILE: lambda i: storage.read_bytes(paths[i]),
        DECODE_FILE: lambda i: codecs.read_image(contents[i], paths[i]),
        OPEN: lambda i: open_item(opened[i][0], preprocess),
        FINISH: lambda i: make_row(opened[i][1], prediction, shared, settings),
    }
    limits: dict[str, tuple[str, Callable[[int], object]]] = {
        READ_FILE: ("bare read", lambda i: _bare_read(paths[i])),
        DECODE_FILE: ("bare decode", lambda i: _bare_decode(contents[i])),
        OPEN: ("read, decode, resize", lambda i: _resized(_bare_decode(_bare_read(paths[i])), preprocess.size)),
        FINISH: ("resize, threshold, encode", lambda i: _bare_finish(opened[i][1], probability)),
    }
    count = len(opened)
    return [
        Stage(
            *("inference", name, 1, _each_in_turn(work[name], count)),
            *(limits[name][0], _each_in_turn(limits[name][1], count)),
            part_of=OPEN if name in (READ_FILE, DECODE_FILE) else "",
        )
        for name in work
    ]


def predict_stage(
    opened: Sequence[OpenedImage],
    settings: BenchSettings,
    preprocess: PreprocessSettings,
    device: torch.device,
    folder: str,
) -> Stage:
    """Return the stage that predicts a batch; folder: where an untrained model can be written."""
    checkpoint = _write_untrained(settings, preprocess, folder)
    precision, custom = settings.compute.precision, settings.model.custom
    ensemble = Ensemble([checkpoint], PredictOptions(str(device), precision, custom_network=custom))
    images = [opened[i % len(opened)] for i in range(settings.batch_size)]
    model = load_model(checkpoint, custom).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    ready = to_network_input([image.square for image in images if image.square is not None], device)
    dtype = AUTOCAST_DTYPES.get(resolve_precision(precision, device))

    @torch.inference_mode()
    def forward(_: int) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            model(ready)

    def work(_: int) -> None:
        predict(ensemble, images, settings.batch_size)

    return Stage("inference", PREDICT, settings.batch_size, work, "ready tensors", forward, clock=clock_of(device))


def _write_untrained(settings: BenchSettings, preprocess: PreprocessSettings, folder: str) -> Checkpoint:
    config = {
        "epoch": 0,
        "preprocess": preprocess.model_dump(mode="json"),
        "settings": {"model": settings.model.model_dump()},
    }
    weights = build_network(settings.model, pretrained=False).state_dict()
    unseen = pa.table({"pixel_digest": pa.array([], pa.string())}).replace_schema_metadata(METADATA)
    save(folder, Snapshot(weights, {}, config, storage.table_bytes(unseen)))
    checkpoint = latest(folder)
    assert checkpoint is not None, "it was just written"
    return checkpoint


def _each_in_turn(work: Callable[[int], object], count: int) -> Callable[[int], object]:
    return lambda number: work(number % count)


def _bare_read(path: str) -> bytes:
    return storage.read_bytes(path) if "://" in path else Path(path).read_bytes()


def _bare_decode(content: bytes) -> np.ndarray:
    if is_dicom(content):
        return pydicom.dcmread(io.BytesIO(content), force=True).pixel_array
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.frombuffer(content, np.uint8) if pixels is None else pixels


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def _bare_finish(opened: OpenedImage, probability: F32) -> object:
    geometry = opened.geometry
    assert geometry is not None, "only images with a square are measured"
    height, width = geometry.stored_shape()
    native = cv2.resize(probability[geometry.content()], (width, height), interpolation=cv2.INTER_LINEAR)
    return coco.encode(np.asfortranarray((native >= 0.5).astype(np.uint8)))
