"""Find and verify a checkpoint: a folder that explains itself and is never unpickled. No torch; weights.py has it.

`epoch-0007/` (or `epoch-0007-step-00001000/`, 1000 batches further) holds model.safetensors, state.pt (the optimizer
and what else going on needs; read with weights_only), trained_on.parquet (ids and picture digests of the images that it
was trained or validated on) and, written last, config.json: settings, epoch, and the digest of each file.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors

from lungseg import storage
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.errors import CheckpointError, InputError
from lungseg.storage.files import digest_bytes

logger = logging.getLogger(__name__)

FILES = ("model.safetensors", "state.pt", "trained_on.parquet")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and its config.json."""

    folder: str
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the weights: what a prediction names as its model."""
        return str(self.config["digests"]["model.safetensors"])[:16]

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return int(self.config["epoch"])

    @property
    def preprocess(self) -> PreprocessSettings:
        """How the images that it was trained on were prepared."""
        return PreprocessSettings.model_validate(self.config["preprocess"])


def latest(folder: str) -> Checkpoint | None:
    """Find the newest whole checkpoint in a run's checkpoint folder; a torn one is passed over aloud."""
    for candidate in reversed(storage.list_folders(folder)):
        try:
            return verify(candidate)
        except CheckpointError as error:
            logger.warning("passing over a checkpoint: %s", error)
    return None


def find_all(path: str) -> list[Checkpoint]:
    """Find the checkpoints that a user means: a folder's own, a run's, or those of a study's runs, the pooled if any.

    Raises:
        CheckpointError: there is none, or one is not whole.

    """
    if storage.exists(storage.join(path, "config.json")):
        return [verify(path)]
    if not storage.exists(path):
        raise CheckpointError(f"{path}: no such folder: pass the folder of a finished run, or of a study")
    if not storage.exists(storage.join(path, "study.json")):
        return [_of_run(path)]
    study = storage.read_json(storage.join(path, "study.json"))
    states = study.get("states", {})
    # Finished runs of an earlier command, of other settings or data, stay in the study and not in its results.
    names = [name for name in study["runs"] if states.get(name, {}).get("in_results", True) or not _ended(states[name])]
    if not names:
        raise CheckpointError(f"{path}: a study without a run: pass the folder of a finished run, or of another study")
    pooled = [name for name in names if name.startswith("pooled")]
    return [_of_run(storage.join(path, name)) for name in pooled or names]


def _ended(state: dict[str, Any]) -> bool:
    return state.get("state") == "finished"


def _of_run(path: str) -> Checkpoint:
    found = latest(storage.join(path, "checkpoint"))
    if found is None:
        raise CheckpointError(
            f"{path}: not a checkpoint: expected config.json, or checkpoint/ of a run; pass a run's folder"
        )
    return found


def verify(folder: str) -> Checkpoint:
    """Read a checkpoint's config.json and compare every file with the digest there.

    Raises:
        CheckpointError: not a checkpoint, torn, damaged, or of another schema.
        InputError: a file of it is there but cannot be read: that may pass, so it is not taken for torn.

    """
    found = {
        name: digest_bytes(storage.read_bytes(path))
        for name in FILES
        if storage.exists(path := storage.join(folder, name))
    }
    config_path = storage.join(folder, "config.json")
    if storage.exists(config_path):
        storage.read_bytes(config_path)  # told apart from what is read but is no JSON
    try:
        config = storage.read_json(config_path)
        digests = config["digests"]
        wrong = [name for name in FILES if found.get(name) != digests[name]]
        ModelSettings.model_validate(config["settings"]["model"])
        PreprocessSettings.model_validate(config["preprocess"])
        int(config["epoch"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: not a whole checkpoint ({first}): pass the folder of a finished run"
        ) from None
    if wrong:
        raise CheckpointError(
            f"{folder}: {wrong[0]} is not what config.json says: damaged; train again, or copy it again"
        )
    return Checkpoint(folder, config)


def require_tensors(checkpoint: Checkpoint) -> None:
    """Make sure that the weights' file holds tensors and nothing else, without loading them.

    Raises:
        CheckpointError: it does not.

    """
    try:
        safetensors.deserialize(  # type: ignore[no-untyped-call]
            storage.read_bytes(storage.join(checkpoint.folder, "model.safetensors"))
        )
    except safetensors.SafetensorError as error:
        raise unusable_weights_error(checkpoint, error) from None


def unusable_weights_error(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """Say in a line that the weights are not those of the checkpoint's network."""
    first = str(error).strip().splitlines()[0]
    return CheckpointError(
        f"{checkpoint.folder}: model.safetensors is not of its network ({first}): train again, or copy it again"
    )


def trained_on(checkpoint: Checkpoint) -> frozenset[str]:
    """Digests of the pictures that the model was trained on, as Record.pixel_digest."""
    table = storage.read_table(storage.join(checkpoint.folder, "trained_on.parquet"))
    return frozenset(table.column("pixel_digest").to_pylist())


def ensemble_digest(checkpoints: Sequence[Checkpoint]) -> str:
    """Name models by their weights: a single one's digest, or one of all, whatever their order."""
    digests = sorted(found.digest for found in checkpoints)
    return digests[0] if len(digests) == 1 else storage.digest(digests)


def stored_threshold(checkpoint: Checkpoint) -> float:
    """Say from which probability on the run takes a pixel for lung: what it chose, or was told."""
    run = storage.join(_run_folder(checkpoint), "run.json")
    found = storage.read_json(run) if storage.exists(run) else checkpoint.config["settings"]
    return float(found.get("threshold", 0.5))


def _run_folder(checkpoint: Checkpoint) -> str:
    return storage.parent_of(storage.parent_of(checkpoint.folder))
