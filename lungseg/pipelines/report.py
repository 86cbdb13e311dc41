"""Show what a study and its predictions came to: tables on the terminal, report.json, report.html."""

import importlib.metadata
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lungseg import __version__, storage
from lungseg.config import ReportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.pipelines import against, charts, matrix, overlays, results, tables
from lungseg.pipelines.results import Line, Predictions, Row, Study

logger = logging.getLogger(__name__)

_LIBRARIES = ("numpy", "pyarrow", "jinja2")
_CLAUSES = 4  # results across data sets that the page's first sentences name


@dataclass(frozen=True)
class _Page:
    """What a report tells: on the page and, but for the pictures, as JSON."""

    study: Study
    compared: Sequence[against.Against]
    predictions: Predictions | None
    shown: Sequence[overlays.Overlay]
    notes: Sequence[str]


def run(settings: ReportSettings) -> None:
    """Print the tables and write report.json and report.html.

    Raises:
        LungsegError: no study is named, or study or predictions cannot be read.

    """
    if not settings.study:
        raise SettingsError("no study named: pass --study FOLDER (OUT/STUDY of jobs/train.py)")
    study = results.read_study(storage.resolve(settings.study))
    predictions = results.read_predictions(storage.resolve(settings.predictions)) if settings.predictions else None
    compared, notes = _compare(study, settings.against), _notes(study, predictions)
    tables.show(study, compared, predictions, notes)
    chosen = overlays.choose(predictions.rows, settings.overlays) if predictions else []
    shown = [overlays.draw(row, rank, results.SEEN[row["seen_in_training"]]) for rank, row in chosen]
    out = storage.resolve(settings.out) if settings.out else study.folder
    page = _Page(study, compared, predictions, shown, notes)
    storage.write_json(storage.join(out, "report.json"), _as_json(page))
    storage.write_bytes(storage.join(out, "report.html"), _as_html(page).encode())
    logger.info("the page: %s", storage.join(out, "report.html"))
    logger.info("the numbers: %s", storage.join(out, "report.json"))


def _compare(study: Study, others: Sequence[str]) -> list[against.Against]:
    """Compare a study with others on the images that both were tested on.

    Raises:
        LungsegError: another one cannot be read, or shares no image with it.

    """
    found = []
    for folder in map(storage.resolve, others):
        other = results.read_study(folder)
        if other.dealt != study.dealt:
            raise InputError(
                f"{folder}: its folds were dealt otherwise (folds, seed: {other.dealt}, expected {study.dealt}): "
                "compare studies of the same --folds and --seed"
            )
        pairs = against.compare(results.read_rows(study.folder), other.name, results.read_rows(folder))
        if not pairs:
            raise InputError(
                f"{folder}: no run of {study.name} and of this study was trained on the same data sets and tested on "
                "the same images: compare studies of the same data, protocol and folds"
            )
        found += pairs
    return found


def headline(study: Study) -> list[str]:
    """Say the most important figures in a sentence or two: which images, resolution, threshold, aggregation."""
    first = study.tables[0]
    held_out = [value for line in first.summary() if line.about["role"] == "held-out" for value in line.dice]
    said = []
    if held_out:
        folds = f"{first.about['runs']} of {first.about['folds']} folds"
        said.append(
            f"Trained on {tables.join(first.about['train_on'])}, mean Dice is {sum(held_out) / len(held_out):.4f} "
            f"on {len(held_out)} held-out images of the same data ({folds}; {tables.made(first.about)})."
        )
    crossed = [
        f"{line.figures['dice']:.4f} on {line.figures['images']} images of {line.about['dataset']} "
        f"(trained on {tables.join(table.about['train_on'])})"
        for table in study.tables
        for line in table.summary()
        if line.about["role"] == "cross"
    ]
    if crossed:
        more = f"; {len(crossed) - _CLAUSES} more below" if len(crossed) > _CLAUSES else ""
        said.append(f"On data sets never trained on: {'; '.join(crossed[:_CLAUSES])}{more}.")
    return said


def _notes(study: Study, predictions: Predictions | None) -> list[str]:
    """List what a reader must know before believing a figure."""
    left = len(study.unfinished)
    notes = [f"{left} of {len(study.runs)} runs not finished: their figures are missing."] if left else []
    if predictions is None:
        return notes
    about = predictions.about
    if not about["complete"]:
        planned = f" of {about['planned']}" if about["planned"] is not None else ""
        notes.append(
            f"infer was interrupted: {about['inputs']}{planned} inputs are here, and the figures are of these only. "
            "The same command goes on."
        )
    strangers = [run for run in about["runs"] if run not in study.runs]
    if strangers:
        notes.append(f"The predictions were made by run {tables.join(strangers)}, not of this study.")
    return notes


def _as_json(page: _Page) -> Row:
    names = ("image_id", "dataset", "rank", "dice", "training", "note")
    return {
        "versions": _versions(),
        "notes": list(page.notes),
        "study": {
            "name": page.study.name,
            "folder": page.study.folder,
            "unfinished": list(page.study.unfinished),
            "results": page.study.matrix.as_json(),
            "against": [one.as_json() for one in page.compared],
            "tables": [
                {**one.about, "rows": _json_lines(one.lines), "all_runs": _json_lines(one.joint)}
                for one in page.study.tables
            ],
        },
        "predictions": page.predictions
        and {
            **page.predictions.about,
            "rows": _json_lines(page.predictions.lines),
            "reasons": list(page.predictions.reasons),
        },
        "overlays": [{name: getattr(one, name) for name in names} for one in page.shown],
    }


def _json_lines(lines: Sequence[Line]) -> list[Row]:
    return [line.as_json() for line in lines]


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"lungseg": __version__, "python": platform.python_version(), **libraries}


def _as_html(page: _Page) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=tables.number, counts=tables.counts, names=tables.join, made=tables.made)
    environment.filters["predictors"] = tables.predictors
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(
        study=page.study,
        grid=matrix.grid(page.study.matrix),
        compared=page.compared,
        predictions=page.predictions,
        headline=headline(page.study),
        notes=page.notes,
        curves=charts.learning_curves(page.study.curves),
        histograms=_histograms(page.study, page.predictions),
        overlays=page.shown,
        plot=charts,
        versions=_versions(),
    )


def _histograms(study: Study, predictions: Predictions | None) -> list[tuple[str, Line, charts.Histogram]]:
    """Draw the per-image Dice of every line that counts each image once, all on one axis."""
    lines = [
        (f"{line.about['dataset']}, {line.about['role']}; trained on {tables.join(table.about['train_on'])}", line)
        for table in study.tables
        for line in table.summary()
    ]
    if predictions is not None:
        lines += [
            (f"{line.about['dataset']}, predictions, {line.about['training']} in training", line)
            for line in predictions.lines
            if line.dice
        ]
    low = charts.lowest([value for _, line in lines for value in line.dice])
    return [(title, line, charts.histogram(line.dice, low)) for title, line in lines]
