"""Report a study and its predictions: tables on the terminal, report.json and report.html."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from lungseg import storage
from lungseg.config import ReportSettings
from lungseg.errors import InputError, SettingsError
from lungseg.job_end import end_job
from lungseg.plurals import counted
from lungseg.predictions import overlays
from lungseg.report import console, detection_results, prediction_results, study_results
from lungseg.report.detection_results import ImageKey
from lungseg.report.page import Page, to_html, to_json
from lungseg.report.prediction_results import Predictions
from lungseg.report.result_table import TRAINING_LABELS
from lungseg.report.study_results import Study
from lungseg.study import study_comparison, study_differences
from lungseg.study.study_comparison import StudyComparisons

logger = logging.getLogger(__name__)


def run(settings: ReportSettings) -> None:
    """Print the tables and write report.json and report.html.

    Raises:
        LungsegError: neither a study nor predictions are named, or they cannot be read.

    """
    if not (settings.study or settings.predictions):
        raise SettingsError(
            "nothing to report: pass --study FOLDER (OUT/STUDY of lungseg train), --predictions FOLDER (OUT of lungseg "
            "infer), or both"
        )
    if settings.compare_with and not settings.study:
        raise SettingsError("--compare-with needs a study to compare: pass --study FOLDER too")
    if settings.normals and not settings.predictions:
        raise SettingsError("--normals needs predictions of these images: pass --predictions FOLDER too")
    study = study_results.read_study(storage.resolve(settings.study), settings.min_area) if settings.study else None
    normal = detection_results.normal_images([storage.resolve(folder) for folder in settings.normals])
    predictions = _read_predictions(settings, normal) if settings.predictions else None
    comparisons = _compare_studies(study, settings.compare_with) if study else StudyComparisons()
    notes = [*_notes(study, predictions), *study_differences.warn_of_several(comparisons.differences)]
    if settings.normals and predictions:
        notes += detection_results.explain_unused_normals(predictions.rows, predictions.detection, normal)
    drawn, by_doubt = _draw_overlays(study, predictions, settings)
    page = Page(study, comparisons, predictions, drawn, by_doubt, notes, settings.min_area)
    console.print_report(study, comparisons, predictions, notes)
    out = storage.resolve(settings.out or settings.study or settings.predictions)
    storage.write_json(storage.join(out, "report.json"), to_json(page))
    storage.write_bytes(storage.join(out, "report.html"), to_html(page).encode())
    logger.info("wrote %s and %s", storage.join(out, "report.html"), storage.join(out, "report.json"))
    missing = sum(not overlay.image for overlay in page.overlays)
    end_job({"missing_overlays": missing, "failed_runs": len(study.unfinished) if study else 0}, settings.strict)


def _read_predictions(settings: ReportSettings, normal: set[ImageKey]) -> Predictions:
    folder = storage.resolve(settings.predictions)
    return prediction_results.read_predictions(folder, settings.min_area, normal)


def _draw_overlays(
    study: Study | None, predictions: Predictions | None, settings: ReportSettings
) -> tuple[list[overlays.Overlay], bool]:
    """Draw the images to show; also return whether they are the most doubtful ones, not a choice by Dice."""
    if predictions is None:
        return [], False
    has_reference = any(line.dice for line in predictions.lines)
    by_doubt = bool(settings.worst) or study is None or not has_reference
    select = overlays.select_doubtful if by_doubt else overlays.select_cases
    drawn = [
        overlays.draw_case(row, rank, TRAINING_LABELS[row["seen_in_training"]])
        for rank, row in select(predictions.rows, settings.worst or settings.overlays)
    ]
    return drawn, by_doubt


def _compare_studies(study: Study, folders: Sequence[str]) -> StudyComparisons:
    """Compare a study with others on the images that both tested.

    Raises:
        LungsegError: a study cannot be read, has other folds, or shares no image.

    """
    comparisons = []
    for folder in map(storage.resolve, folders):
        other = study_results.read_study(folder)
        rows, other_rows = study_results.read_rows(study.folder), study_results.read_rows(folder)
        moved = study_comparison.count_moved(rows, other_rows)
        if other.fold_settings != study.fold_settings and moved:
            raise InputError(
                f"{folder}: --folds, --split-seed and --folds-from are {other.fold_settings}, expected "
                f"{study.fold_settings} as in {study.name}, and {counted(moved, 'image is', 'images are')} held "
                "out by one of them only: compare studies with the same folds"
            )
        compared = study_comparison.compare(rows, other.name, other_rows)
        if not compared.pairs:
            raise InputError(
                f"{folder}: no run of this study was trained on the same datasets and tested on the same images as a "
                f"run of {study.name}: compare studies of the same data, protocol and folds"
            )
        differences = study_differences.find_differences(study.folder, study.finished, folder, other.finished)
        comparisons.append(replace(compared, differences=tuple(differences)))
    return study_comparison.joined(comparisons)


def _notes(study: Study | None, predictions: Predictions | None) -> list[str]:
    """List what limits the results: missing runs, missing predictions, predictions of another study."""
    notes = _study_notes(study) if study else []
    if predictions is None:
        return notes
    about = predictions.about
    if not about["complete"]:
        planned = f" of {about['planned']}" if about["planned"] is not None else ""
        notes.append(
            f"The inference was interrupted: the results cover {about['inputs']}{planned} inputs. "
            "Run the same command again to resume it."
        )
    other_runs = [run for run in about["runs"] if study and run not in study.runs]
    if other_runs:
        notes.append(f"The predictions are by {console.join_names(other_runs)}, not a run of this study.")
    return notes


def _study_notes(study: Study) -> list[str]:
    unfinished = len(study.unfinished)
    verb, owner = ("is", "its") if unfinished == 1 else ("are", "their")
    runs = counted(len(study.runs), "run")
    notes = [f"{unfinished} of {runs} {verb} unfinished: {owner} results are missing."] if unfinished else []
    if study.superseded:
        left_out = counted(study.superseded, "run has", "runs have")
        notes.append(f"{left_out} other data or settings than the study's last command: no results of them are shown.")
    return notes
