"""Show what a study and its predictions came to: tables on the terminal, report.json, report.html."""

import logging
from collections.abc import Sequence

from lungseg import storage
from lungseg.config import ReportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.predictions import overlays
from lungseg.report import console, prediction_results, study_results
from lungseg.report.page import Page, to_html, to_json
from lungseg.report.prediction_results import Predictions
from lungseg.report.study_results import Study
from lungseg.study import study_comparison

logger = logging.getLogger(__name__)


def run(settings: ReportSettings) -> None:
    """Print the tables and write report.json and report.html.

    Raises:
        LungsegError: no study is named, or study or predictions cannot be read.

    """
    if not settings.study:
        raise SettingsError("no study named: pass --study FOLDER (OUT/STUDY of jobs/train.py)")
    study = study_results.read_study(storage.resolve(settings.study))
    predictions = (
        prediction_results.read_predictions(storage.resolve(settings.predictions)) if settings.predictions else None
    )
    compared, notes = _compare(study, settings.compare_with), _notes(study, predictions)
    console.print_report(study, compared, predictions, notes)
    chosen = overlays.select_cases(predictions.rows, settings.overlays) if predictions else []
    shown = [
        overlays.draw_case(row, rank, prediction_results.TRAINING_LABELS[row["seen_in_training"]])
        for rank, row in chosen
    ]
    out = storage.resolve(settings.out) if settings.out else study.folder
    page = Page(study, compared, predictions, shown, notes)
    storage.write_json(storage.join(out, "report.json"), to_json(page))
    storage.write_bytes(storage.join(out, "report.html"), to_html(page).encode())
    logger.info("the page: %s", storage.join(out, "report.html"))
    logger.info("the numbers: %s", storage.join(out, "report.json"))


def _compare(study: Study, others: Sequence[str]) -> list[study_comparison.StudyComparison]:
    """Compare a study with others on the images that both were tested on.

    Raises:
        LungsegError: another one cannot be read, or shares no image with it.

    """
    found = []
    for folder in map(storage.resolve, others):
        other = study_results.read_study(folder)
        if other.folds_and_seed != study.folds_and_seed:
            raise InputError(
                f"{folder}: --folds and --seed are {other.folds_and_seed}, expected {study.folds_and_seed}: "
                "compare studies with the same folds"
            )
        pairs = study_comparison.compare(
            study_results.read_rows(study.folder), other.name, study_results.read_rows(folder)
        )
        if not pairs:
            raise InputError(
                f"{folder}: no run of {study.name} and of this study was trained on the same data sets and tested on "
                "the same images: compare studies of the same data, protocol and folds"
            )
        found += pairs
    return found


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
        notes.append(f"The predictions were made by run {console.join_names(strangers)}, not of this study.")
    return notes
