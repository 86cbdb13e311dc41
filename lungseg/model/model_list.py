"""List the models in the package and those that were downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lungseg import storage
from lungseg.errors import InputError
from lungseg.model import checkpoint
from lungseg.model.model_card import ModelCard, read_card
from lungseg.model.sources import cached, installed

State = Literal["installed", "downloaded", "damaged"]


@dataclass(frozen=True)
class ListedModel:
    """An installed or downloaded model.

    name: what `--model` takes. size_bytes: of its weights. digest: of its weights, 16 digits.
    """

    name: str
    state: State
    folder: str
    size_bytes: int
    digest: str
    card: ModelCard


def list_models() -> Iterator[ListedModel]:
    """Yield the installed models, then the downloaded ones; the digests of their files are checked."""
    for name, folder in installed().items():
        yield _describe(name, "installed", folder)
    for address, folder in cached():
        yield _describe(address, "downloaded", folder)


def _describe(name: str, state: State, folder: str) -> ListedModel:
    weights = storage.try_stat(storage.join(folder, "model.safetensors"))
    size = weights[0] if weights else 0
    try:
        return ListedModel(name, state, folder, size, checkpoint.verify(folder).digest, read_card(folder))
    except InputError:
        return ListedModel(name, "damaged", folder, size, "", ModelCard())
