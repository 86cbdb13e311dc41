"""metrics.jsonl, the authoritative record of a run, and its copy in Weights & Biases, which may fail."""

import contextlib
import json
import logging
import os
import shlex
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config import WandbSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import first_line
from lungseg.schema import is_annotated
from lungseg.storage.json_files import JsonFields, Whole, check_fields, parse_json

logger = logging.getLogger(__name__)

_START_S = 60.0  # limit for W&B's answer at the start
_FINISH_S = 60.0  # limit for its last uploads
_SWEEP_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")
_GRACE_S = 5.0  # further wait for W&B's own message that it gave up


@dataclass(frozen=True)
class TrackedImage:
    """A prepared image u8[S,S], its reference masks u8[K,S,S] or None, and the predicted masks u8[K,S,S] in {0,1}."""

    name: str
    image: U8
    references: U8 | None
    predicted: U8
    classes: tuple[str, ...] = ONE_CLASS


class _EpochFields(JsonFields):
    epoch: Whole


class MetricsLog:
    """A run's metrics.jsonl: one line per epoch, written before the next epoch starts."""

    def __init__(self, path: str, epochs_done: int) -> None:
        """Keep the first `epochs_done` lines of an interrupted run; later epochs are repeated."""
        self._path = path
        lines = storage.read_bytes(path).splitlines() if storage.exists(path) else []
        for line in lines:
            check_fields(line, path, _EpochFields, "delete it, or train again")
        rows = [parse_json(line, path) for line in lines]
        self.rows: list[Row] = [row for row in rows if row["epoch"] <= epochs_done]

    def add(self, row: Row) -> None:
        """Append one epoch; rewrites the file, because object stores cannot append."""
        self.rows.append(row)
        storage.write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in self.rows).encode())


class WandbMirror:
    """Copies a run to Weights & Biases; its failures are logged and never stop training."""

    job_type = "train"
    belongs_to_sweep = False

    def __init__(self, settings: WandbSettings, study: str, run: str, folder: str, config: Row) -> None:
        self._run: Any = None
        self._settings = settings
        configured = _mode(settings)
        if configured == "disabled":
            return
        # If the server cannot be reached, an offline run can be synced later.
        for mode in dict.fromkeys([configured, "offline"] if settings.mode == "auto" else [configured]):
            try:
                self._run = self._init(mode, study, run, folder, config)
                return
            except Exception as error:
                logger.warning("W&B could not start %s (%s); metrics.jsonl is still written", mode, _describe(error))

    def _init(self, mode: str, study: str, run: str, folder: str, config: Row) -> Any:
        import wandb

        in_sweep = self.belongs_to_sweep and is_sweep()
        # W&B gives a run of a sweep its id and project, and a trial one run; the other runs of its study are no part.
        own: Row = {} if in_sweep else {"project": self._settings.project, "id": storage.digest([study, folder])}
        with contextlib.nullcontext() if in_sweep else _outside_sweep():
            return wandb.init(
                **own,
                group=study,
                name=run,
                job_type=self.job_type,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]  # WANDB_MODE may hold anything; W&B checks it
                dir=_local_folder(folder),
                config=config,
                settings=wandb.Settings(silent=True, console="off", init_timeout=_START_S, **_finish_limit()),
            )

    def __enter__(self) -> Self:
        """Return the mirror."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the W&B run, with exit code 1 after an exception; waits a minute at most for uploads."""
        if self._run is None:
            return
        exit_code = int(kind is not None)
        thread = threading.Thread(
            target=self._guarded, args=(lambda run: run.finish(exit_code=exit_code),), daemon=True
        )
        thread.start()
        thread.join(_FINISH_S + _GRACE_S)
        if thread.is_alive():
            logger.warning(
                "W&B did not finish its uploads within %.0f s; metrics.jsonl is complete, and `wandb sync` sends the "
                "rest from the run's wandb folder",
                _FINISH_S,
            )

    def log_epoch(self, row: Row) -> None:
        """Copy one line of metrics.jsonl."""
        self._guarded(lambda run: run.log(row, step=row["epoch"]))

    def set_summary(self, values: Row) -> None:
        """Set the run's summary."""
        self._guarded(lambda run: run.summary.update(values))

    def log_images(self, images: Sequence[TrackedImage]) -> None:
        """Log images with their masks."""

        def log(run: Any) -> None:
            import wandb

            run.log({"held_out_images": [_image(wandb, image) for image in images]})

        if images:
            self._guarded(log)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Log a table."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=[*columns], data=[*rows])})

        self._guarded(log)

    def log_artifact(self, name: str, folder: str) -> None:
        """Log a checkpoint's folder as an artifact if the settings enable it."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(folder)
            run.log_artifact(artifact)

        if self._settings.artifact and "://" in folder:
            logger.warning("W&B gets no artifact of %s, because it is in a bucket: add a link to it in W&B", folder)
        elif self._settings.artifact:
            self._guarded(log)

    def _guarded(self, call: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # no failure of W&B may stop training
            logger.warning("W&B stopped (%s); metrics.jsonl is still written", _describe(error))
            self._run = None


def _describe(error: BaseException) -> str:
    """Return the type and the first line of an error; the text of a KeyError alone is only the key."""
    return f"{type(error).__name__}: {first_line(error)}"


class _SummaryMirror(WandbMirror):
    """The W&B run with a study's results over all its runs; in a sweep, the run of the trial."""

    job_type = "summary"
    belongs_to_sweep = True


def log_study(settings: WandbSettings, folder: str, table: tuple[list[str], list[list[str]]], means: Row) -> None:
    """Log a study's cross-dataset table (header and rows) and mean metrics to a W&B run named summary."""
    with _SummaryMirror(settings, storage.name_of(folder), "summary", folder, {}) as mirror:
        mirror.log_table("matrix", *table)
        mirror.set_summary(means)


def is_sweep() -> bool:
    """Return whether an agent of a W&B sweep started this process."""
    return bool(os.environ.get(_SWEEP_VARIABLES[0]))


@contextlib.contextmanager
def _outside_sweep() -> Iterator[None]:
    """Hide the sweep that started this process from W&B inside the block."""
    hidden = {name: os.environ.pop(name) for name in _SWEEP_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def sync_command(folder: str, kept_aside: Collection[str] = ()) -> str:
    """Return the command that uploads the offline W&B runs of a study, for a shell; "" if there are none here.

    kept_aside: names of runs that are not part of the results.
    """
    root = Path.home() / ".cache" / "lungseg" if "://" in folder else Path(folder)
    folders = ["wandb"] if any(root.glob("wandb/offline-run-*")) else []
    runs = {path.parent.parent.name for path in root.glob("*/wandb/offline-run-*")}
    if runs and runs.isdisjoint(kept_aside):
        folders.append("*/wandb")
    else:
        folders += [f"{shlex.quote(name)}/wandb" for name in sorted(runs.difference(kept_aside))]
    if not folders:
        return ""
    return " ".join(["wandb sync", *(f"{shlex.quote(str(root))}/{folder}/offline-run-*" for folder in folders)])


def _image(wandb: Any, image: TrackedImage) -> Any:
    masks = {}
    references = image.predicted if image.references is None else image.references
    for name, predicted, reference in zip(image.classes, image.predicted, references, strict=True):
        labels, end = {0: "background", 1: name}, "" if len(image.classes) == 1 else f"_{name}"
        masks[f"prediction{end}"] = {"mask_data": predicted, "class_labels": labels}
        if image.references is not None and is_annotated(reference):
            masks[f"reference{end}"] = {"mask_data": reference, "class_labels": labels}
    return wandb.Image(image.image, masks=masks, caption=image.name)


def _finish_limit() -> dict[str, Any]:
    """Return the settings that also limit uploads at the end of the process, if this W&B version has them."""
    import wandb

    limits = {"finish_timeout": _FINISH_S, "finish_timeout_raises": True}
    return limits if limits.keys() <= wandb.Settings.model_fields.keys() else {}


def _mode(settings: WandbSettings) -> str:
    """Return the configured mode; for `auto`, online only if there is a key, because W&B would prompt for one."""
    if settings.mode != "auto":
        return settings.mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    netrc = Path.home() / ".netrc"
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
    return "online" if has_key else "offline"


def _local_folder(folder: str) -> str:
    """Return and create W&B's folder: the run's own, or one in the user's cache for a run in a bucket."""
    path = Path.home() / ".cache" / "lungseg" / "wandb" if "://" in folder else Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
