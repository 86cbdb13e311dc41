"""Write one small valid file of every kind that the jobs pass to each other."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lungseg import storage
from lungseg.arrays import Row
from lungseg.config import PostprocessSettings, PreprocessSettings
from lungseg.imaging.geometry import prepare_mask
from lungseg.inference.items import Item, Prediction, open_item
from lungseg.inference.part_plan import PlannedPart, write_part
from lungseg.inference.rows import make_row
from lungseg.ingest import sources
from lungseg.model.checkpoint import FILES
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import ShardPlan, plan_shards
from lungseg.schema import SCHEMA, table
from lungseg.storage.files import digest_bytes
from tests.fuzz.image_seeds import draw, encoded
from tests.report import result_files

SETTINGS = PreprocessSettings(size=64)
_IMAGES = 3


class Workspace:
    """A folder of valid files; `fresh` copies a part of it, which a case may damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive" / "north"
        self._write_archive()
        self.plans = self._prepare()
        self._predict()
        result_files.write_study(folder / "study")
        self._write_checkpoint()

    def fresh(self, part: str) -> Path:
        """Copy one of prepared, predictions, study and checkpoint; the earlier copy is deleted."""
        target = self.folder / "damaged" / part
        shutil.rmtree(target.parent, ignore_errors=True)
        shutil.copytree(self.folder / part, target)
        return target

    def _write_archive(self) -> None:
        image, mask = draw()
        for number in range(_IMAGES):
            for kind, array in (("images", np.roll(image, number, axis=1)), ("masks", mask * np.uint8(255))):
                path = self.archive / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded("png", array))

    def _prepare(self) -> list[ShardPlan]:
        records = sources.discover(str(self.archive.parent))
        plans = plan_shards(records, str(self.folder / "prepared"), SETTINGS, images_per_shard=2)
        dataset_writer.write_datasets(plans)
        return plans

    def _predict(self) -> None:
        """Write two parts as jobs/infer.py does, the masks as predicted by a perfect model."""
        out = self.folder / "predictions"
        items = [Item(record) for record in sources.discover(str(self.archive.parent))]
        parts = [PlannedPart.of(number, items[2 * number : 2 * number + 2], "settings") for number in range(2)]
        for part in parts:
            rows = [_row(item) for item in items[2 * part.number : 2 * part.number + 2]]
            write_part(str(out / "rows" / f"part-{part.number:06d}.parquet"), rows, part.digest)
        files = sorted(out.glob("rows/*.parquet"))
        digests = [{"name": path.name, "sha256": digest_bytes(path.read_bytes())} for path in files]
        counts = {"images": _IMAGES, "counts": {"ok": _IMAGES}, "codes": [], "flags": {}, "flagged": 0}
        storage.write_json(str(out / "predictions.json"), {**counts, "model": "feed", "parts": digests})
        storage.write_json(str(out / "plan.json"), plan(str(self.archive), parts))

    def _write_checkpoint(self) -> None:
        """Write the files of a checkpoint, whose weights are two small tensors."""
        folder = self.folder / "checkpoint" / "pooled-fold0" / "checkpoint" / "epoch-0003"
        folder.mkdir(parents=True)
        weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
        (folder / "state.pt").write_bytes(b"not read here")
        write_trained_on(folder)
        write_config(folder, {"model": {}, "threshold": 0.5})
        run_folder = folder.parent.parent
        storage.write_json(str(run_folder / "run.json"), {"threshold": 0.4})
        storage.write_json(str(run_folder.parent / "study.json"), {"runs": ["pooled-fold0"], "states": {}})


def write_trained_on(folder: Path) -> None:
    """Write the list of training images."""
    import pyarrow as pa

    names = ("image_id", "dataset", "pixel_digest")
    schema = pa.schema([(name, pa.string()) for name in names], metadata={"lungseg.schema": str(SCHEMA)})
    rows = [dict.fromkeys(names, "0"), dict.fromkeys(names, "1")]
    storage.write_table(str(folder / "trained_on.parquet"), table(rows, schema))


def write_config(folder: Path, settings: Row) -> None:
    """Write config.json with the digests of the files beside it."""
    config = {"run": "pooled-fold0", "epoch": 3, "step": 0, "epochs": 3, "trained": True, "train_on": ["north"]}
    digests = {name: digest_bytes((folder / name).read_bytes()) for name in FILES}
    values = {"fold": 0, "preprocess": SETTINGS.model_dump(), "settings": settings, "digests": digests}
    storage.write_json(str(folder / "config.json"), {**config, **values})


def plan(archive: str, parts: list[PlannedPart]) -> dict[str, Any]:
    """Return the content of plan.json."""
    return {
        "archive": archive,
        "images": _IMAGES,
        "checkpoints": ["/runs"],
        "model_name": "pooled-fold0",
        "model": "feed",
        "runs": ["pooled-fold0"],
        "epochs": [3],
        "preprocess": SETTINGS.model_dump(mode="json"),
        "threshold": 0.5,
        "precision": "auto",
        "tta": "none",
        "postprocess": PostprocessSettings().model_dump(mode="json"),
        "part_size": 2,
        "patients": "",
        "digest": storage.digest([part.digest for part in parts]),
    }


def _row(item: Item) -> Row:
    opened = open_item(item, SETTINGS)
    assert opened.geometry is not None
    mask = prepare_mask(draw()[1], opened.geometry)
    shared = {"threshold": 0.5, "model_name": "pooled-fold0", "model": "feed"}
    return make_row(opened, Prediction(mask.astype(np.float32)[None], 1, False), shared, PostprocessSettings())
