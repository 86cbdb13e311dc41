"""`lungseg models`: print the installed and the downloaded models with their terms."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lungseg.errors import printable
from lungseg.model.model_list import list_models
from lungseg.model.sources import cache_folder

_MIN_WIDTH = 100  # columns


def run(words: Sequence[str]) -> None:
    """Print name, state, size, digest, title and terms of each model."""
    _parser().parse_args(words)
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    console.width = max(_MIN_WIDTH, console.width)
    table = Table(box=None, pad_edge=False)
    for column in ("name", "state", "MB", "digest", "title", "terms"):
        table.add_column(column, overflow="fold")
    for model in list_models():
        size, card = f"{model.size_bytes / 1e6:.1f}", model.card
        table.add_row(
            *map(printable, (model.name, model.state, size, model.digest or "-", card.title or "-", card.terms or "-"))
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("no models are installed, and none were downloaded")
    console.print(f"downloaded models are in {cache_folder()}; a damaged one is downloaded again", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="lungseg models", description="List the models that are installed or were downloaded, with their terms."
    )
