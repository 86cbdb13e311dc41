"""Find and verify checkpoints. Does not import torch and unpickles nothing; checkpoint_io.py loads the weights.

`epoch-0007/` (or `epoch-0007-step-00001000/`, 1000 batches later) contains model.safetensors, state.pt (optimizer and
other training state, read with weights_only), trained_on.parquet (ids and pixel digests of the training and validation
images) and config.json, written last: settings, epoch, and the digest of each file. An exported model
(export_model.py) has only model.safetensors and config.json, which also lists the digests of the training images.
"""

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lungseg import __version__, storage
from lungseg.arrow import pa
from lungseg.config import ModelSettings, PreprocessSettings
from lungseg.errors import CheckpointError, InputError, SettingsError, first_line
from lungseg.model.checkpoint_fields import ConfigFields, ExportedFields, StudyRuns, Threshold
from lungseg.model.custom_code import NETWORK, load_object, require_allowed, source_digest
from lungseg.model.graph_file import is_graph, read_metadata
from lungseg.plurals import counted
from lungseg.schema import METADATA, is_superseded
from lungseg.storage.files import digest_bytes
from lungseg.storage.json_files import check_fields, parse_json
from lungseg.storage.table_formats import TableFormat

logger = logging.getLogger(__name__)

FILES = ("model.safetensors", "state.pt", "trained_on.parquet")
MODEL_FORMAT = 1
"""Number of the format of exported models. It replaces the schema number, so that changes of other files leave them
valid."""
_TRAINED_ON = TableFormat(pa.schema([("pixel_digest", pa.string())]))


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder and its config.json, or a graph file and the config in its metadata."""

    folder: str
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the weights. It identifies the model in predictions."""
        return str(self.config["digests"]["model.safetensors"])[:16]

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return int(self.config["epoch"])

    @property
    def preprocess(self) -> PreprocessSettings:
        """Preparation settings of the training images."""
        return PreprocessSettings.model_validate(self.config["preprocess"])


def latest(folder: str) -> Checkpoint | None:
    """Return the newest complete checkpoint in the checkpoint folder of a run; skip incomplete ones with a warning."""
    for candidate in reversed(storage.list_folders(folder)):
        try:
            return verify(candidate)
        except CheckpointError as error:
            logger.warning("skipping a checkpoint: %s", error)
    return None


def find_all(path: str) -> list[Checkpoint]:
    """Find the checkpoints of a path: its own, that of a run, or those of a study's runs (only the pooled, if any).

    Raises:
        CheckpointError: there is none, or one is incomplete.

    """
    if is_graph(path) or storage.exists(storage.join(path, "config.json")):
        return [verify(path)]
    if not storage.exists(path):
        raise CheckpointError(f"{path}: no such folder: pass the folder of a finished run, or of a study")
    if not storage.exists(storage.join(path, "study.json")):
        return [_of_run(path)]
    return _of_study(path)


def _of_study(path: str) -> list[Checkpoint]:
    study = storage.read_json(storage.join(path, "study.json"), fields=StudyRuns)
    states = study.get("states", {})
    names = [name for name in study["runs"] if not is_superseded(states.get(name, {}))]
    if not names:
        raise CheckpointError(f"{path}: the study has no runs: pass the folder of a finished run, or of another study")
    selected = [name for name in names if name.startswith("pooled")] or names
    untrained = [name for name in selected if _is_untrained(storage.join(path, name))]
    if untrained:
        raise CheckpointError(
            f"{path}: the study is not finished: no checkpoint of {len(untrained)} of "
            f"{counted(len(selected), 'run')} yet (first: {untrained[0]}): run the same lungseg train command again"
        )
    return [_of_run(storage.join(path, name)) for name in selected]


def _is_untrained(run: str) -> bool:
    """Return whether a run has no complete checkpoint yet; config.json is written last."""
    candidates = storage.list_folders(storage.join(run, "checkpoint"))
    return not any(storage.exists(storage.join(folder, "config.json")) for folder in candidates)


def _is_run_of_a_study(path: str) -> bool:
    study = storage.join(storage.parent_of(path), "study.json")
    return storage.exists(study) and storage.name_of(path) in storage.read_json(study, fields=StudyRuns)["runs"]


def _of_run(path: str) -> Checkpoint:
    checkpoint = latest(storage.join(path, "checkpoint"))
    if checkpoint is None and _is_untrained(path) and _is_run_of_a_study(path):
        raise CheckpointError(f"{path}: the run is not finished: run the same lungseg train command again")
    if checkpoint is None:
        raise CheckpointError(
            f"{path}: not a checkpoint: expected config.json, or checkpoint/ of a run; pass the folder of a run"
        )
    return checkpoint


def verify(folder: str) -> Checkpoint:
    """Read config.json of a checkpoint and compare every file with its digest there; of a graph file, its metadata.

    Raises:
        CheckpointError: not a checkpoint, incomplete, damaged, or written with another schema version.
        InputError: a file exists but cannot be read. The cause may be temporary, so the checkpoint is not skipped.

    """
    if is_graph(folder):
        return Checkpoint(folder, _config_of_graph(folder))
    digests = {
        name: digest_bytes(storage.read_bytes(path))
        for name in FILES
        if storage.exists(path := storage.join(folder, name))
    }
    config_path = storage.join(folder, "config.json")
    if storage.exists(config_path):
        storage.read_bytes(config_path)  # raises InputError if unreadable; read_json also raises it for invalid JSON
    try:
        config = read_config(config_path)
        recorded_digests = config["digests"]
        damaged = [name for name in FILES if digests.get(name) != recorded_digests.get(name)]
        ModelSettings.model_validate(config["settings"]["model"])
        PreprocessSettings.model_validate(config["preprocess"])
    except (InputError, ValueError) as error:
        reason = str(error) if isinstance(error, InputError) else "config.json has settings that are not valid"
        raise CheckpointError(
            f"{folder}: not a complete checkpoint ({reason}): pass the folder of a finished run"
        ) from None
    if damaged:
        raise CheckpointError(
            f"{folder}: the digest of {damaged[0]} differs from config.json: the file is damaged; train again, or copy "
            "it again"
        )
    return Checkpoint(folder, config)


def _config_of_graph(path: str) -> dict[str, Any]:
    config = read_metadata(path)["config"]
    try:
        checked = read_config(path, json.dumps(config).encode())
        ModelSettings.model_validate(checked["settings"]["model"])
        PreprocessSettings.model_validate(checked["preprocess"])
    except (InputError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata is not valid ({first_line(error)}): export the model again"
        ) from None
    return checked


def read_config(path: str, content: bytes | None = None) -> dict[str, Any]:
    """Read config.json of a checkpoint or of an exported model; content: its bytes, where they were read before.

    Raises:
        InputError: it does not exist, is not valid, or has another schema version or model format.

    """
    content = storage.read_bytes(path) if content is None else content
    config = parse_json(content, path)
    number = config.get("model_format") if isinstance(config, dict) else None
    if number is None:
        return storage.read_json(path, content, ConfigFields)
    if number != MODEL_FORMAT:
        raise InputError(
            f"{path}: model format {str(number)[:20]}; this version ({__version__}) reads {MODEL_FORMAT}: install the "
            "lungseg version that exported the model"
        )
    check_fields(content, path, ExportedFields)
    return dict(config)


def identity_file(folder: str) -> str:
    """Return the file that says which model a checkpoint is."""
    return folder if is_graph(folder) else storage.join(folder, "config.json")


def require_custom_code(checkpoints: Sequence[Checkpoint], allowed: str) -> None:
    """Check that the user named the custom network of every checkpoint that has one, and warn if its source changed.

    allowed: --model.custom, "" if it is not passed.

    Raises:
        SettingsError: a checkpoint names code that the user did not name, or the code cannot be imported.

    """
    named = {
        checkpoint.folder: ModelSettings.model_validate(checkpoint.config["settings"]["model"]).custom
        for checkpoint in checkpoints
    }
    for folder, path in named.items():
        require_allowed(folder, path, allowed)
    if not allowed:
        return
    if allowed not in named.values():
        raise SettingsError(f"{NETWORK.option} {allowed}: no model of --checkpoint has a custom network: leave it out")
    load_object(NETWORK, allowed)
    digests = {checkpoint.config.get("custom_code", {}).get(allowed) for checkpoint in checkpoints} - {None}
    if digests != {source_digest(NETWORK, allowed)}:
        logger.warning("%s changed since a model was trained with it: its masks may differ", allowed)


def require_tensors(checkpoint: Checkpoint) -> None:
    """Check that model.safetensors contains tensors only, without loading them.

    Raises:
        CheckpointError: it does not.

    """
    if is_graph(checkpoint.folder) or importlib.util.find_spec("safetensors") is None:  # an edge installation
        return
    import safetensors

    try:
        safetensors.deserialize(  # type: ignore[no-untyped-call]
            storage.read_bytes(storage.join(checkpoint.folder, "model.safetensors"))
        )
    except safetensors.SafetensorError as error:
        raise unusable_weights_error(checkpoint, error) from None


def unusable_weights_error(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """Return an error for weights that do not fit the network of the checkpoint."""
    return CheckpointError(
        f"{checkpoint.folder}: model.safetensors does not fit its network ({first_line(error)}): train again, or copy "
        "it again"
    )


def trained_on(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the digests of the training and validation images, as in Record.pixel_digest."""
    listed = checkpoint.config.get("trained_on_digests")
    return frozenset(trained_on_table(checkpoint).column("pixel_digest").to_pylist() if listed is None else listed)


def trained_on_table(checkpoint: Checkpoint) -> pa.Table:
    """Read trained_on.parquet of a checkpoint, or the digests in config.json of an exported model."""
    digests = checkpoint.config.get("trained_on_digests")
    if digests is not None:
        return pa.table({"pixel_digest": pa.array(digests, pa.string())}).replace_schema_metadata(METADATA)
    return storage.read_table(storage.join(checkpoint.folder, "trained_on.parquet"), expected=_TRAINED_ON)


def ensemble_digest(checkpoints: Sequence[Checkpoint]) -> str:
    """Return the digest of one model, or a joint digest of several, independent of their order."""
    digests = sorted(checkpoint.digest for checkpoint in checkpoints)
    return digests[0] if len(digests) == 1 else storage.digest(digests)


def stored_threshold(checkpoint: Checkpoint) -> float:
    """Return the probability threshold for lung pixels: the one chosen by the run, else that of its settings."""
    return float(stored_result(checkpoint).get("threshold", 0.5))


def stored_result(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return run.json of a finished run, else the settings of the checkpoint."""
    parent = storage.parent_of(checkpoint.folder)
    path = storage.join(storage.parent_of(parent), "run.json")
    is_finished = storage.name_of(parent) == "checkpoint" and storage.exists(path)
    return storage.read_json(path, fields=Threshold) if is_finished else dict(checkpoint.config["settings"])
