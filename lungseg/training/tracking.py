"""metrics.jsonl, which is the truth, and W&B, which mirrors it and may fail without harm."""

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lungseg import storage
from lungseg.config import WandbSettings

logger = logging.getLogger(__name__)

Metrics = dict[str, Any]
U8 = NDArray[np.uint8]

_START_S = 60.0  # for W&B's answer at the start
_FINISH_S = 60.0  # for its last uploads
_GRACE_S = 5.0  # for W&B to say itself that it gave up


@dataclass(frozen=True)
class TrackedImage:
    """A prepared image u8[S,S] in 0..255, its reference u8[S,S] or None, and what was predicted u8[S,S] in {0,1}."""

    name: str
    image: U8
    reference: U8 | None
    predicted: U8


class MetricsLog:
    """A run's metrics.jsonl: one line an epoch, on disk before the next begins, never two of one epoch."""

    def __init__(self, path: str, epochs_done: int) -> None:
        """Keep an earlier start's first `epochs_done` lines; what came after belongs to an epoch that is redone."""
        self._path = path
        lines = storage.read_bytes(path).decode().splitlines() if storage.exists(path) else []
        rows = [json.loads(line) for line in lines]
        self.rows: list[Metrics] = [row for row in rows if row["epoch"] <= epochs_done]

    def add(self, row: Metrics) -> None:
        """Append one epoch. The file is replaced whole: it is small, and a bucket knows no appending."""
        self.rows.append(row)
        storage.write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in self.rows).encode())


class WandbMirror:
    """Mirrors a run to Weights & Biases; whatever W&B does, training goes on."""

    job_type = "train"

    def __init__(self, settings: WandbSettings, study: str, run: str, folder: str, config: Metrics) -> None:
        self._run: Any = None
        self._settings = settings
        mode = _mode(settings)
        if mode == "disabled":
            return
        # With a key but no way to the server, what is written offline can be synced later.
        for tried in dict.fromkeys([mode, "offline"] if settings.mode == "auto" else [mode]):
            try:
                self._run = self._begin(tried, study, run, folder, config)
                return
            except Exception as error:
                logger.warning("W&B is not written %s (%s); metrics.jsonl is", tried, error)

    def _begin(self, mode: str, study: str, run: str, folder: str, config: Metrics) -> Any:
        import wandb

        return wandb.init(
            project=self._settings.project,
            group=study,
            name=run,
            job_type=self.job_type,
            id=storage.digest([study, folder]),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]  # from the environment it may be anything; W&B checks
            dir=_local(folder),
            config=config,
            settings=wandb.Settings(silent=True, console="off", init_timeout=_START_S, **_limit()),
        )

    def __enter__(self) -> Self:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the W&B run; one that failed is marked so. A slow upload is not waited for longer than a minute."""
        if self._run is None:
            return
        ending = threading.Thread(target=self._guarded, args=(_finish(int(kind is not None)),), daemon=True)
        ending.start()
        ending.join(_FINISH_S + _GRACE_S)
        if ending.is_alive():
            logger.warning(
                "W&B did not take all within %.0f s and is left to itself; metrics.jsonl is whole, and `wandb sync` "
                "sends the rest from the run's wandb folder",
                _FINISH_S,
            )

    def log(self, row: Metrics) -> None:
        """Mirror one line of metrics.jsonl."""
        self._guarded(lambda run: run.log(row, step=row["epoch"]))

    def summarise(self, values: Metrics) -> None:
        """Set the run's summary."""
        self._guarded(lambda run: run.summary.update(values))

    def show(self, pictures: Sequence[TrackedImage]) -> None:
        """Log images with their masks; nothing for none."""

        def log(run: Any) -> None:
            import wandb

            run.log({"held_out_images": [_image(wandb, one) for one in pictures]})

        if pictures:
            self._guarded(log)

    def keep(self, name: str, folder: str) -> None:
        """Log a checkpoint's folder as an artifact, where the settings ask for it."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type="model")
            artifact.add_dir(folder)
            run.log_artifact(artifact)

        if self._settings.artifact and "://" in folder:
            logger.warning("W&B gets no artifact of %s: it is in a bucket; link to it there", folder)
        elif self._settings.artifact:
            self._guarded(log)

    def _guarded(self, work: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            work(self._run)
        except Exception as error:  # a mirror's failure, whatever it is, is no reason to stop
            logger.warning("W&B stopped (%s); metrics.jsonl goes on", error)
            self._run = None


class _SummaryMirror(WandbMirror):
    """The run of a study that no fold has: what all came to."""

    job_type = "summary"


def log_study_table(settings: WandbSettings, folder: str, grid: tuple[list[str], list[list[str]]]) -> None:
    """Log a study's cross-dataset table (header and rows) to a W&B run named summary."""

    def log(run: Any) -> None:
        import wandb

        head, rows = grid
        run.log({"matrix": wandb.Table(columns=[*head], data=[*rows])})

    with _SummaryMirror(settings, storage.name_of(folder), "summary", folder, {}) as mirror:
        mirror._guarded(log)


def _finish(status: int) -> Callable[[Any], object]:
    return lambda run: run.finish(exit_code=status)


def _image(wandb: Any, one: TrackedImage) -> Any:
    labels = {0: "background", 1: "lung"}
    masks = {"prediction": {"mask_data": one.predicted, "class_labels": labels}}
    if one.reference is not None:
        masks["reference"] = {"mask_data": one.reference, "class_labels": labels}
    return wandb.Image(one.image, masks=masks, caption=one.name)


def _limit() -> dict[str, Any]:
    """Bound the uploads at the process's end too, where this W&B knows how."""
    import wandb

    known = {"finish_timeout": _FINISH_S, "finish_timeout_raises": True}
    return known if known.keys() <= wandb.Settings.model_fields.keys() else {}


def _mode(settings: WandbSettings) -> str:
    """Online wants a key: without one W&B would ask on the terminal, which in a job hangs."""
    if settings.mode != "auto":
        return settings.mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    netrc = Path.home() / ".netrc"
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="ignore"))
    return "online" if has_key else "offline"


def _local(folder: str) -> str:
    """W&B writes to disks only; a run in a bucket keeps its mirror in the user's cache."""
    path = Path.home() / ".cache" / "lungseg" / "wandb" if "://" in folder else Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
