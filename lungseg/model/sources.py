"""Models by name, folder or address: `lungs`, runs/first, hf://owner/name, https://host/folder, s3://bucket/folder.

A downloaded model is kept in ~/.cache/lungseg/models/DIGEST, where DIGEST is the SHA-256 of its config.json, which
states the digest of the weights. config.json is written last, so that a folder without it is incomplete. A small file
beside the folders names the model that an address had at the last download. Only JSON and safetensors files with fixed
names are downloaded.
"""

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lungseg import storage
from lungseg.config import ModelSettings
from lungseg.errors import CheckpointError, InputError
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint
from lungseg.model.model_card import CARD, MAX_BYTES, parse_card
from lungseg.model.model_download import RemoteModel, open_address
from lungseg.storage.json_files import JsonFields

logger = logging.getLogger(__name__)

_MAX_NAMED = 3  # runs in the name of several models

RELEASED = Path(__file__).with_name("released")
_WEB = ("hf://", "https://", "http://")
BUCKETS = ("s3://", "gs://", "gcs://")
"""Starts of the addresses of buckets."""
_MAX_CONFIG = 16 << 20  # bytes
MAX_WEIGHTS = 1 << 30
"""Largest weights file that is downloaded, bytes."""
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_LIKE_A_RUN = ("config.json", "study.json", "checkpoint")


class _Pointer(JsonFields):
    address: str
    folder: str


def resolve(model: str) -> str:
    """Return the folder of a model for `checkpoint.find_all`, downloading it if needed.

    model: an installed name, a local folder of a model, run or study, or an address. A run or study in a bucket is
    not copied; its URI is returned.

    Raises:
        SettingsError: a malformed address.
        CheckpointError: no model is there, or its digest is wrong.
        InputError: the address does not answer, and no copy is in the cache.

    """
    if model.startswith(_WEB):
        return _download(open_address(model))
    if model.startswith(BUCKETS):
        return _from_bucket(model)
    return _on_disk(model)


def is_study(model: str) -> bool:
    """Return whether a model is given as the folder of a study."""
    return not model.startswith(_WEB) and storage.exists(storage.join(model, "study.json"))


def installed() -> dict[str, str]:
    """Return the folders of the models in the package, by name."""
    folders = sorted(path.parent for path in RELEASED.glob("*/config.json"))
    return {folder.name: str(folder) for folder in folders}


def model_name(models: Sequence[Checkpoint]) -> str:
    """Return the installed name of a model, also of a copy of it, else the name of its run.

    models: one, or several: then their study or runs, and their number. Names of folders do not count.
    """
    if len(models) > 1:
        return f"{_common_name(models)} ({len(models)} models; each image by those not trained on it)"
    (model,) = models
    copies = (name for name, folder in installed().items() if _weights_digest(folder) == model.digest)
    return next(copies, model.config.get("run") or storage.name_of(model.folder))


def _common_name(models: Sequence[Checkpoint]) -> str:
    """Return the study of the models, else the first of their runs."""
    studies = {model.config["settings"].get("study", "") for model in models}
    if len(studies) == 1 and "" not in studies:
        return str(studies.pop())
    runs = list(dict.fromkeys(model_name([model]) for model in models))
    more = f" and {len(runs) - _MAX_NAMED} more" if len(runs) > _MAX_NAMED else ""
    return ", ".join(runs[:_MAX_NAMED]) + more


def _weights_digest(folder: str) -> str:
    """Return the digest of an installed model; "" for a damaged one, which stops no other model."""
    try:
        return Checkpoint(folder, checkpoint.read_config(storage.join(folder, "config.json"))).digest
    except InputError:
        return ""


def cached() -> Iterator[tuple[str, str]]:
    """Yield the address and the folder of each downloaded model."""
    for path in sorted(cache_folder().glob("*.json")):
        pointer = _read_pointer(str(path))
        if pointer is not None:
            yield pointer.address, storage.join(str(cache_folder()), pointer.folder)


def cache_folder() -> Path:
    """Return the folder of the downloaded models."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "lungseg" / "models"


def _on_disk(model: str) -> str:
    names, path = installed(), storage.resolve(model)
    if model in names:
        if any(Path(path, name).exists() for name in _LIKE_A_RUN):
            logger.warning("%s: using the installed model of this name; pass ./%s for the folder", model, model)
        return names[model]
    if not storage.exists(path):
        similar = difflib.get_close_matches(model, names, n=1)
        kinds = "pass the folder of a finished run or study, or an exported file"
        advice = f"did you mean {similar[0]}?" if similar else kinds
        raise CheckpointError(f"{path}: no such folder or file, and {model} is no installed model: {advice}")
    return path


def _from_bucket(address: str) -> str:
    """Return a local copy of an exported model, or the URI of a run or study."""
    remote = open_address(address)
    path = storage.join(remote.address, "config.json")
    try:
        content = remote.read("config.json", _MAX_CONFIG)
        is_exported = content is not None and "model_format" in checkpoint.read_config(path, content)
    except InputError:
        is_exported = True  # reports the error, or uses a copy
    return _download(remote) if is_exported else remote.address


def _download(remote: RemoteModel) -> str:
    """Return the local copy of a model, complete and with the right digests."""
    copy = _intact_copy(remote.address)
    if copy and remote.is_pinned:
        return copy
    try:
        content = remote.read("config.json", _MAX_CONFIG)
    except InputError as error:
        if copy is None:
            raise
        logger.warning("%s; using the copy of an earlier download", error)
        return copy
    if content is None:
        raise CheckpointError(f"{remote.address}: not a lungseg model: it has no config.json; check the address")
    _check_config(remote.address, content)
    folder = storage.join(str(cache_folder()), storage.digest_bytes(content))
    if folder != copy:
        if not _is_intact(folder):  # another address may have the same model
            _fetch(remote, content, folder)
        pointer = {"address": remote.address, "folder": storage.name_of(folder)}
        storage.write_json(_pointer_path(remote.address), pointer)
    return folder


def _check_config(address: str, content: bytes) -> None:
    """Check that config.json is that of an exported model.

    Raises:
        CheckpointError: it is not.

    """
    try:
        config = checkpoint.read_config(f"{address}/config.json", content)
        encoder = ModelSettings.model_validate(config["settings"]["model"]).encoder
    except InputError as error:
        raise CheckpointError(f"{address}: not a lungseg model, or damaged ({error})") from None
    except ValueError:
        raise CheckpointError(f"{address}: config.json has settings that this lungseg version does not know") from None
    if "model_format" not in config:
        raise CheckpointError(f"{address}: not an exported model: lungseg export-model CHECKPOINT -o FOLDER writes one")
    if not _NAME.fullmatch(encoder):  # timm would look for a name such as hf-hub:owner/name in the network
        raise CheckpointError(f"{address}: the encoder {encoder} is not a name of a known network")


def _fetch(remote: RemoteModel, config: bytes, folder: str) -> None:
    """Download a model to a folder of the cache. Files are complete or absent; config.json comes last."""
    logger.info("%s: downloading to %s", remote.address, folder)
    import safetensors

    expected = checkpoint.read_config(f"{remote.address}/config.json", config)["digests"]["model.safetensors"]
    weights = remote.read("model.safetensors", MAX_WEIGHTS)
    if weights is None:
        raise CheckpointError(f"{remote.address}: not a lungseg model: it has no model.safetensors")
    if (actual := storage.digest_bytes(weights)) != expected:
        raise CheckpointError(
            f"{remote.address}: the digest of model.safetensors is {actual[:16]}, but config.json states "
            f"{expected[:16]}: the file was damaged or changed; try again, or ask who offers the model"
        )
    try:
        safetensors.deserialize(weights)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        raise CheckpointError(f"{remote.address}: not a lungseg model: model.safetensors has no tensors") from None
    card = remote.read(CARD, MAX_BYTES)
    if card is not None:
        parse_card(card, f"{remote.address}/{CARD}")
        storage.write_bytes(storage.join(folder, CARD), card)
    storage.write_bytes(storage.join(folder, "model.safetensors"), weights)
    storage.write_bytes(storage.join(folder, "config.json"), config)


def _pointer_path(address: str) -> str:
    return storage.join(str(cache_folder()), f"{storage.digest(address)}.json")


def _read_pointer(path: str) -> _Pointer | None:
    """Read the file that names the model of an address; None where it is missing or damaged."""
    try:
        pointer = _Pointer(**storage.read_json(path, fields=_Pointer))
    except InputError:
        return None
    return pointer if re.fullmatch("[0-9a-f]{64}", pointer.folder) else None


def _intact_copy(address: str) -> str | None:
    """Return the folder of the model that an address had at the last download; None where it is missing or damaged."""
    path = _pointer_path(address)
    pointer = _read_pointer(path) if storage.exists(path) else None
    if pointer is None:
        return None
    folder = storage.join(str(cache_folder()), pointer.folder)
    if _is_intact(folder):
        return folder
    logger.warning("%s: the copy of an earlier download is damaged", address)
    return None


def _is_intact(folder: str) -> bool:
    """Return whether a folder of the cache has a complete model with the right digests."""
    try:
        config = storage.read_bytes(storage.join(folder, "config.json"))
        checkpoint.verify(folder)
    except InputError:
        return False
    return storage.digest_bytes(config) == storage.name_of(folder)
