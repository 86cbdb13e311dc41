"""Read damaged files of every stage as the next stage does."""

import contextlib
import functools
import io
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from lungseg import storage
from lungseg.config import (
    ExportSettings,
    InferSettings,
    ListingColumns,
    PreprocessSettings,
    ReportSettings,
    command_line,
)
from lungseg.dataset import catalog, verify
from lungseg.dataset.duplicate_audit import audit_datasets
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import LungsegError
from lungseg.export import coco_file, selection, writers
from lungseg.inference import part_plan, recompute
from lungseg.inference.inputs import list_items
from lungseg.inference.items import open_item
from lungseg.inference.part_plan import PlannedPart
from lungseg.ingest import pseudonyms, sources
from lungseg.ingest.reason_codes import REGISTRY
from lungseg.model import checkpoint
from lungseg.pipelines import report
from lungseg.predictions import parts
from lungseg.prepare import dataset_writer, shard_plan, shard_writer
from lungseg.schema import Record
from lungseg.storage.files import digest_bytes
from lungseg.training import study_data
from tests.fuzz.byte_mutations import mutate_bytes
from tests.fuzz.cases import Case, Kind, check_message
from tests.fuzz.value_mutations import change_csv, change_file, change_lines, change_yaml, parquet
from tests.fuzz.workspace import SETTINGS, Workspace, plan

_JOBS = ("prepare", "train", "infer", "adapt", "export", "report")
_TAR, _DATASET, _INDEX = "north/north-000000.tar", "north/dataset.json", "north/index.parquet"
_CHECKPOINT = "pooled-fold0/checkpoint/epoch-0003"


@functools.cache
def _workspace() -> Workspace:
    return Workspace(Path(tempfile.mkdtemp(prefix="lungseg-fuzz-")))


def _each(*steps: Callable[[], object]) -> None:
    """Run all steps; an error for a user in one does not end the others."""
    for step in steps:
        try:
            step()
        except LungsegError as error:
            check_message(str(error))


def _case(part: str, name: str, random: Random) -> Case:
    content = (_workspace().folder / part / name).read_bytes()
    change = change_lines if name.endswith(".jsonl") else functools.partial(change_file, name)
    return Case(Path(name).name, change(content, random))


# Prepared datasets


def _read_prepared(name: str, case: Case) -> None:
    """Read a dataset with one damaged file whose digests are right, as training, inference and --verify do."""
    folder = _workspace().fresh("prepared")
    (folder / name).write_bytes(case.content)
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError, RecursionError, pa.ArrowException):
        _sign_dataset(folder, name)
    dataset = str(folder / "north")
    _each(
        lambda: _train_on(dataset),
        lambda: audit_datasets([catalog.open_dataset(dataset)]),
        lambda: _verify(dataset),
        lambda: _infer(str(folder)),
    )


def _sign_dataset(folder: Path, name: str) -> None:
    """Write the digests that the files have now, as far as they can be computed."""
    if name == _TAR:
        index = pq.read_table(folder / _INDEX)
        rows = [_with_checksums(row, (folder / _TAR).read_bytes()) for row in index.to_pylist()]
        (folder / _INDEX).write_bytes(parquet(pa.Table.from_pylist(rows, index.schema)))
    info = json.loads((folder / _DATASET).read_bytes())
    del info["checked"], info["schema"], info["lungseg_version"]
    if name != _DATASET:
        info["files"]["index.parquet"] = digest_bytes((folder / _INDEX).read_bytes())
        tar = (folder / _TAR).read_bytes()
        info["shards"][0] |= {"bytes": len(tar), "sha256": digest_bytes(tar)}
    storage.write_json(str(folder / _DATASET), {**info, "checked": storage.digest(info)})


def _with_checksums(row: dict[str, object], tar: bytes) -> dict[str, object]:
    import zlib

    for member in ("image", "mask", "json"):
        start, size = (int(str(row[f"{member}_{field}"])) for field in ("offset", "size"))
        if row["shard"] == "north-000000":
            row[f"{member}_crc32"] = zlib.crc32(tar[start : start + size])
    return row


def _train_on(dataset: str) -> None:
    reader = SampleReader(study_data.open_training_data([dataset]))
    for position in range(len(reader.rows)):
        sample = reader.read(position)
        assert sample.image.shape == (sample.geometry.size,) * 2
        assert sample.masks is None or sample.masks.shape == (1, *sample.image.shape)


def _verify(dataset: str) -> None:
    problems, shards = verify.check_metadata(dataset)
    for shard, rows in shards:
        problems += verify.check_shard(dataset, shard, rows)
    for problem in problems:
        check_message(problem)


def _infer(archive: str) -> None:
    for item in list_items(InferSettings(archive=archive), SETTINGS):
        opened = open_item(item, SETTINGS)
        check_message(opened.record.message)
        assert opened.square is None or opened.square.shape == (SETTINGS.size,) * 2


def _read_manifest(case: Case) -> None:
    path = _workspace().fresh("prepared") / "north" / "manifest.parquet"
    path.write_bytes(case.content)
    _infer(str(path))


def _read_plan(case: Case) -> None:
    """Plan again over a damaged plan.parquet."""
    folder = _workspace().fresh("prepared")
    (folder / "north" / "plan.parquet").write_bytes(case.content)
    records = [record for one in _workspace().plans for record in one.records]
    shard_plan.planned_ids(records, str(folder))
    plans = shard_plan.plan_shards(records, str(folder), SETTINGS, images_per_shard=2)
    assert sum(len(one.records) for one in plans) == len(records)


def _read_shard_json(case: Case) -> None:
    """Continue over a damaged parts/*.json whose digest is right."""
    folder = _workspace().fresh("prepared")
    path = folder / "north" / "parts" / "north-000000.json"
    path.write_bytes(case.content)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        part = json.loads(case.content)
        del part["checked"], part["schema"], part["lungseg_version"]
        storage.write_json(str(path), {**part, "checked": storage.digest(part)}, indent=None)
    records = [record for one in _workspace().plans for record in one.records]
    plans = shard_plan.plan_shards(records, str(folder), SETTINGS, images_per_shard=2)
    _each(lambda: dataset_writer.finish_dataset(plans), lambda: shard_writer.write_shard(plans[0]))


# Predictions


def _read_predictions(name: str, case: Case) -> None:
    """Read predictions with one damaged file as --verify, report, export and a second inference do."""
    folder = _workspace().fresh("predictions")
    (folder / name).write_bytes(case.content)
    if name.endswith(".parquet"):
        summary = json.loads((folder / "predictions.json").read_bytes())
        summary["parts"][0]["sha256"] = digest_bytes(case.content)
        (folder / "predictions.json").write_text(json.dumps(summary))
    out = str(folder)
    _each(
        lambda: recompute.run(out),
        lambda: _report(ReportSettings(study=str(_workspace().folder / "study"), predictions=out, out=f"{out}/r")),
        lambda: _export(out),
        lambda: _infer_again(out),
    )


def _report(settings: ReportSettings) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        report.run(settings)


def _export(folder: str) -> None:
    settings = ExportSettings(predictions=folder, formats=("masks", "overlays", "coco"), where="dice > 0 or dice < 1")
    out = str(_workspace().folder / "damaged" / "export")
    selection.require_outside_archive(folder, out)
    selection.reserve_output(out, folder, settings)
    coco = []
    for part in selection.select_rows(selection.verified_parts(folder), settings):
        result = json.loads(writers.export_part({"part": json.dumps(part)}, settings, out)["result"])
        check_message(str(result.get("args", "")))
        coco += result.get("value", {}).get("coco", [])
    coco_file.to_coco(coco, folder)


def _infer_again(out: str) -> None:
    planned = _planned_parts()
    part_plan.claim(out, plan(str(_workspace().archive), planned))
    part_plan.claim_device(out, "cpu")
    kept = part_plan.find_finished(out, planned)
    part_plan.discard_outdated(out, [part.number for part in planned if part.number not in kept])


@functools.cache
def _planned_parts() -> tuple[PlannedPart, ...]:
    folder = _workspace().folder / "predictions"
    digests = [
        parts.read_part(path).schema.metadata[b"lungseg.part"].decode() for path in parts.part_files(str(folder))
    ]
    return tuple(PlannedPart(number, zlib.compress(b"[]"), 2 - number, digest) for number, digest in enumerate(digests))


# Studies and checkpoints


def _read_study(name: str, case: Case) -> None:
    folder = _workspace().fresh("study")
    (folder / name).write_bytes(case.content)
    _report(ReportSettings(study=str(folder), compare_with=(str(_workspace().folder / "study"),)))


def _read_checkpoint(name: str, case: Case) -> None:
    """Find a checkpoint with one damaged file whose digest is right."""
    folder = _workspace().fresh("checkpoint")
    path = folder / name
    path.write_bytes(case.content)
    if path.parent.name == "epoch-0003" and path.name != "config.json":
        config = json.loads((path.parent / "config.json").read_bytes())
        config["digests"][path.name] = digest_bytes(case.content)
        (path.parent / "config.json").write_text(json.dumps(config))
    for model in checkpoint.find_all(str(folder)):
        steps = (checkpoint.require_tensors, checkpoint.trained_on, checkpoint.stored_threshold)
        _each(*(functools.partial(step, model) for step in steps))
        assert isinstance(model.preprocess, PreprocessSettings)
        assert model.epoch >= 0


# Listings, settings, keys


def _listing_case(random: Random) -> Case:
    text = "image,mask,patient_id,age,sex,view,dataset,finding\n" + "".join(
        f"images/{number}.png,masks/{number}.png,p{number},045Y,F,PA,north,normal\n" for number in range(3)
    )
    if random.random() < 0.6:
        return Case(random.choice(("list.csv", "list.tsv")), change_csv(text.encode(), random))
    rows = [dict(zip(text.splitlines()[0].split(","), line.split(","), strict=True)) for line in text.splitlines()[1:]]
    return Case("list.parquet", change_file("list.parquet", parquet(pa.Table.from_pylist(rows)), random))


def _read_listing(case: Case) -> None:
    path = _workspace().archive / case.name
    path.write_bytes(case.content)
    try:
        for record in sources.read_listing(str(path), ListingColumns()):
            _check_listed(record)
        _infer(str(path))
    finally:
        path.unlink()


def _check_listed(record: Record) -> None:
    assert record.image_id
    assert "/" not in record.image_id
    assert all(code in REGISTRY for code in record.codes)
    check_message(record.message)


@functools.cache
def _settings_file(job: str) -> bytes:
    return command_line.to_yaml(job, command_line.parse(job, ["demo"])).encode()  # type: ignore[arg-type]


def _settings_case(random: Random) -> Case:
    job = random.choice(_JOBS)
    return Case(f"{job}.yaml", change_yaml(_settings_file(job), random))


def _read_settings(case: Case) -> None:
    path = _workspace().folder / case.name
    path.write_bytes(case.content)
    job = case.name.removesuffix(".yaml")
    settings = command_line.parse(job, ["--config", str(path)])  # type: ignore[arg-type]
    command_line.to_yaml(job, settings)  # type: ignore[arg-type]


def _key_case(random: Random) -> Case:
    return Case("key.txt", mutate_bytes(b"0123456789abcdef" * 2, random))


def _read_key(case: Case) -> None:
    path = _workspace().folder / case.name
    path.write_bytes(case.content)
    assert len(pseudonyms.read_key(str(path)) or b"") >= 16


def _kind(part: str, name: str, read: Callable[[Case], None]) -> Kind:
    return Kind(f"{part}/{Path(name).name}", functools.partial(_case, part, name), read)


_PREPARED = ("north/dataset.json", "north/index.parquet", "north/north-000000.tar")
_PREDICTIONS = ("plan.json", "predictions.json", "rows/part-000000.parquet")
_RUN = ("run.json", "tested.parquet", "metrics.jsonl")
_STUDY = ("study.json", "study.parquet", *(f"pooled-fold0/{name}" for name in _RUN))
_MODEL = ("config.json", "model.safetensors", "trained_on.parquet")
_MODELS = ("study.json", "pooled-fold0/run.json", *(f"{_CHECKPOINT}/{name}" for name in _MODEL))

KINDS = (
    *(_kind("prepared", name, functools.partial(_read_prepared, name)) for name in _PREPARED),
    _kind("prepared", "north/manifest.parquet", _read_manifest),
    _kind("prepared", "north/plan.parquet", _read_plan),
    _kind("prepared", "north/parts/north-000000.json", _read_shard_json),
    *(_kind("predictions", name, functools.partial(_read_predictions, name)) for name in _PREDICTIONS),
    *(_kind("study", name, functools.partial(_read_study, name)) for name in _STUDY),
    *(_kind("checkpoint", name, functools.partial(_read_checkpoint, name)) for name in _MODELS),
    Kind("listing", _listing_case, _read_listing),
    Kind("settings", _settings_case, _read_settings),
    Kind("patient key", _key_case, _read_key),
)
