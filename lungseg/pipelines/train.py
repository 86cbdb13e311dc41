"""Train a study: each run a Ray Train job of DDP workers, one after the other."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from lungseg import storage
from lungseg.config import PreprocessSettings, TrainSettings
from lungseg.data import audit, datasets, folds, manifest, sources
from lungseg.data.leakage import audit_datasets
from lungseg.data.shard_plan import plan_shards
from lungseg.engine import fit
from lungseg.engine.ranks import gather, rank_and_world
from lungseg.errors import LungsegError, SettingsError
from lungseg.model import network
from lungseg.pipelines.cluster import Share, connect, share
from lungseg.pipelines.phantoms import draw_phantoms
from lungseg.pipelines.progress import ProgressLine

logger = logging.getLogger(__name__)

_PHANTOM_SIZE = 128
_POST_EVERY_S = 0.5


def run(settings: TrainSettings) -> None:
    """Train and test every run of the study; finished ones are passed over, interrupted ones go on.

    Raises:
        LungsegError: data or settings cannot be used, the cluster is too small, or a run failed.

    """
    study = storage.join(storage.resolve(settings.out), settings.study)
    folders = datasets.find_datasets(_data(settings))
    data = fit.open_data(folders)
    plans = folds.plan_study(
        settings.protocols, [part.name for part in data], settings.folds, settings.only_folds, settings.seed
    )
    rows = [row for part in data for row in part.index.to_pylist()]
    linked = _linked(study, data)
    for plan in plans:
        # Refuses a run that cannot be, before any of them begins.
        fit.check_split(folds.split(rows, plan, linked), plan.name, settings.workers)
    runs = [
        fit.Run(settings, plan, tuple(folders), name, storage.join(study, name), linked)
        for plan in plans
        for name in [fit.name_run(settings, plan, data)]
    ]
    logger.info("study %s: %d runs on %d images in %d data sets", study, len(runs), len(rows), len(data))
    left = [one for one in runs if not _finished(study, one.name)]
    if left:
        network.build(settings.model)  # tells of a wrong encoder and of missing weights before any worker starts
        connect()
        placed = share(settings.workers, settings.device)
    _write_study(study, settings, [one.name for one in runs])
    for one in left:
        _train(one, placed)
    for one in runs:
        _tell(storage.read_json(storage.join(one.folder, "run.json")))


def _linked(study: str, data: Sequence[datasets.PreparedData]) -> tuple[folds.Link, ...]:
    """Audit the data, or read what an earlier command found in the same; list the pairs that must not be parted."""
    path = storage.join(study, "duplicates.parquet")
    phashes = [part.index.column("phash").to_pylist() for part in data]
    made_of = storage.digest([[part.digest for part in data], phashes])
    found = storage.read_table(path) if storage.exists(path) else None
    if found is None or found.schema.metadata.get(b"lungseg.audited") != made_of.encode():
        logger.info("audit: looking for duplicates among %d images", sum(part.index.num_rows for part in data))
        found = audit.to_table(audit_datasets(data))
        found = found.replace_schema_metadata({**found.schema.metadata, "lungseg.audited": made_of})
        storage.write_table(path, found)
    pairs = found.to_pylist()
    kinds = Counter(pair["kind"] for pair in pairs)
    patients = len({pair["first"] for pair in pairs if pair["kind"] == "same_patient"})
    counts = f"{kinds['exact']} exact, {kinds['near']} near duplicate pairs, {patients} patients with several images"
    logger.info("audit: %s; they stay in one fold: %s", counts, path)
    return tuple((pair["first"], pair["second"]) for pair in pairs)


def _finished(study: str, name: str) -> bool:
    return storage.exists(storage.join(study, name, "run.json"))


def _write_study(study: str, settings: TrainSettings, names: list[str]) -> None:
    """Name the study's runs: these, and those that earlier commands finished."""
    path = storage.join(study, "study.json")
    before = storage.read_json(path)["runs"] if storage.exists(path) else []
    earlier = [name for name in before if name not in names and _finished(study, name)]
    content = {"study": settings.study, "runs": [*earlier, *names], "settings": settings.model_dump()}
    storage.write_json(path, content)


def _data(settings: TrainSettings) -> list[str]:
    """Resolve the named data; without any, draw phantoms and prepare them, in seconds and in this process."""
    if settings.data:
        return [storage.resolve(path) for path in settings.data]
    if not settings.phantoms:
        raise SettingsError("no data named: pass --data FOLDER (prepared by jobs/prepare.py)")
    out = storage.join(storage.resolve(settings.out), "phantom-data")
    records = manifest.refuse_same_ids(sources.discover(draw_phantoms(out, settings.phantoms)))
    datasets.write_datasets(plan_shards(records, out, PreprocessSettings(size=_PHANTOM_SIZE), per_shard=64))
    return [out]


def _train(one: fit.Run, placed: Share) -> None:
    device = "GPU" if placed.gpus else "CPU"
    logger.info("%s: %d workers, %d CPUs each, on %s", one.name, placed.workers, placed.cpus, device)
    board = _Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        _one_rank,  # type: ignore[arg-type]  # what it returns is Result.return_value
        train_loop_config={"run": one, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=placed.workers,
            use_gpu=bool(placed.gpus),
            resources_per_worker={"CPU": placed.cpus, **({"GPU": 1} if placed.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=one.name,
            storage_path=storage.join(storage.parent_of(one.folder), ".ray-train"),
            failure_config=ray.train.FailureConfig(max_failures=one.settings.max_failures),
        ),
    )
    shown = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, one, shown), daemon=True)
    watcher.start()
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise LungsegError(f"{one.name} failed: {_cause(error)}: mend it and run the same command again") from error
    finally:
        shown.set()
        watcher.join()
        ray.kill(board)
    refused = (getattr(result, "return_value", None) or {}).get("refused")
    if refused:
        kind, message = refused
        raise (SettingsError if kind == SettingsError.exit_status else LungsegError)(message)


def _one_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Train one rank. What a user can mend is returned, not raised: Ray would try it again and again."""
    board, first = config["board"], rank_and_world()[0] == 0
    refused, training = None, None
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects through the current device: the first, unless told
    try:
        training = fit.start(config["run"], device)
    except LungsegError as error:
        refused = (error.exit_status, str(error))
    refusals = [one for one in gather(refused) if one is not None]
    if refusals or training is None:
        return {"refused": refusals[0]}
    posted = 0.0

    def show(progress: fit.Progress) -> None:
        nonlocal posted
        if first and (progress.note or time.monotonic() - posted > _POST_EVERY_S):
            posted = time.monotonic()
            board.post.remote(progress)

    if first and training.epoch:
        show(fit.Progress(training.epoch, 0, 0, 0.0, "going on from its checkpoint"))
    fit.finish(training, show)
    return {}


@ray.remote
class _Board:
    """Where rank 0 pins its progress, and the driver reads it."""

    def __init__(self) -> None:
        self._notes: list[fit.Progress] = []
        self._now: fit.Progress | None = None

    def post(self, progress: fit.Progress) -> None:
        """Keep the newest state, and every note until it is read."""
        self._now = progress
        if progress.note:
            self._notes.append(progress)

    def read(self) -> tuple[list[fit.Progress], fit.Progress | None]:
        """Take the notes down; show the newest state."""
        notes, self._notes = self._notes, []
        return notes, self._now


def _watch(board: Any, one: fit.Run, ended: threading.Event) -> None:
    """Show a run's progress until it ends, and then what was still unread."""
    line, epochs, began = ProgressLine(logger), one.settings.epochs, time.monotonic()
    last = False
    while not last:
        last = ended.wait(_POST_EVERY_S)
        try:
            notes, now = ray.get(board.read.remote(), timeout=5.0)
        except ray.exceptions.RayError:
            continue  # the board's node is lost or busy; the run's own fate is told by fit()
        for note in notes:
            line.say(f"{one.name}: epoch {note.epoch}/{epochs}: {note.note}")
        if now is None:
            line.show(f"{one.name}: starting workers, {time.monotonic() - began:.0f} s")
        elif not now.note:
            line.show(f"{one.name}: epoch {now.epoch}/{epochs}, step {now.step}/{now.steps}, loss {now.loss:.3f}")


def _cause(error: BaseException) -> str:
    """Say in one line what ended the workers: the last line of the first of them that has a story."""
    failures = getattr(error, "worker_failures", {}) or {}
    texts = [str(failure).strip() for failure in failures.values()] or [str(error).strip()]
    return texts[0].splitlines()[-1] if texts[0] else type(error).__name__


def _tell(summary: dict[str, Any]) -> None:
    for tested in summary["tested"]:
        figures = ", ".join(f"{name} {tested[key]:.4f}" for name, key in (("Dice", "dice"), ("IoU", "iou")))
        logger.info(
            "%s: %s %s, %d images: %s", summary["run"], tested["role"], tested["dataset"], tested["images"], figures
        )
