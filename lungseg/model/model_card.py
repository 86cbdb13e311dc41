"""card.json of an exported model: what it is, its terms, its training data and who made it."""

from typing import Annotated

from pydantic import Field

from lungseg import storage
from lungseg.storage.json_files import JsonFields, check_fields

CARD = "card.json"
MAX_BYTES = 1 << 16
_Text = Annotated[str, Field(max_length=4000)]


class ModelCard(JsonFields):
    """Texts for a reader; nothing depends on them."""

    title: _Text = ""
    terms: _Text = ""
    data: _Text = ""
    made_by: _Text = ""


def read_card(folder: str) -> ModelCard:
    """Read the card of a model folder; an empty one where the folder has none.

    Raises:
        InputError: it is not valid.

    """
    path = storage.join(folder, CARD)
    return parse_card(storage.read_bytes(path), path) if storage.exists(path) else ModelCard()


def parse_card(content: bytes, path: str) -> ModelCard:
    """Parse card.json; `path` names it in errors.

    Raises:
        InputError: it is not valid.

    """
    check_fields(content, path, ModelCard, "correct it, or remove it")
    return ModelCard.model_validate_json(content)
