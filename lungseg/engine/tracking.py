"""metrics.jsonl, which is the truth, and W&B, which mirrors it and may fail without harm."""

import json
import logging
import operator
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lungseg import storage
from lungseg.config import WandbSettings

logger = logging.getLogger(__name__)

Metrics = dict[str, Any]


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

    def __init__(self, settings: WandbSettings, study: str, run: str, folder: str, config: Metrics) -> None:
        self._run: Any = None
        mode = _mode(settings)
        if mode == "disabled":
            return
        import wandb

        self._errors = (wandb.errors.Error, OSError, ValueError)  # ValueError: a setting that wandb refuses
        try:
            self._run = wandb.init(
                project=settings.project,
                group=study,
                name=run,
                id=storage.digest([study, folder]),
                resume="allow",
                mode=mode,  # type: ignore[arg-type]  # from the environment it may be anything; W&B checks
                dir=_local(folder),
                config=config,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except self._errors as error:
            logger.warning("W&B is not written (%s); metrics.jsonl is", error)

    def __enter__(self) -> Self:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the W&B run; one that failed is marked so."""
        self._guarded("finish", exit_code=int(kind is not None))

    def log(self, row: Metrics) -> None:
        """Mirror one line of metrics.jsonl."""
        self._guarded("log", row, step=row["epoch"])

    def summarise(self, values: Metrics) -> None:
        """Set the run's summary."""
        self._guarded("summary.update", values)

    def _guarded(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        try:
            operator.attrgetter(method)(self._run)(*args, **kwargs)
        except self._errors as error:
            logger.warning("W&B stopped (%s); metrics.jsonl goes on", error)
            self._run = None


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
