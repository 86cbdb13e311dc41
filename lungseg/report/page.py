"""The report as one HTML page and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lungseg import storage
from lungseg.arrays import Row
from lungseg.ingest.reason_codes import REGISTRY
from lungseg.plurals import counted
from lungseg.predictions import overlays
from lungseg.report import charts, console, detection_results
from lungseg.report.detection_results import DetectionLine
from lungseg.report.prediction_results import Predictions
from lungseg.report.result_table import ResultLine
from lungseg.report.study_results import RunTable, Study
from lungseg.study import result_text
from lungseg.study.study_comparison import StudyComparisons
from lungseg.versions import versions

_LIBRARIES = ("numpy", "pyarrow", "jinja2")
_MAX_CROSS = 4  # cross-dataset results that the headline lists


@dataclass(frozen=True)
class Page:
    """Content of the report. by_doubt: the overlays are the most doubtful images, not a choice by Dice.

    min_area: share of the lungs, or of the image, from which a class is detected.
    """

    study: Study | None
    comparisons: StudyComparisons
    predictions: Predictions | None
    overlays: Sequence[overlays.Overlay]
    by_doubt: bool
    notes: Sequence[str]
    min_area: float = 0.0


def headline(study: Study) -> list[str]:
    """Summarise the main results in one or two sentences."""
    table = study.tables[0]
    sentences = []
    held_out: dict[str, list[float]] = {}
    for line in table.summary_lines():
        if line.about["role"] == "held-out":
            held_out.setdefault(line.about["class"], []).extend(line.dice)
    if held_out:
        folds = console.describe_runs(table.about)
        means = ", ".join(
            f"{sum(dice) / len(dice):.4f} on {len(dice)} held-out images" + (f" ({name})" if table.has_classes else "")
            for name, dice in held_out.items()
        )
        sentences.append(
            f"Trained on {console.join_names(table.about['train_on'])}: mean Dice {means} of the same data "
            f"({folds}; {console.describe_metrics(table.about)})."
        )
    cross = [
        f"{line.metrics['dice']:.4f} on {counted(line.metrics['images'], 'image')} of {_subject(table, line)} "
        f"(trained on {console.join_names(table.about['train_on'])})"
        for table in study.tables
        for line in table.summary_lines()
        if line.about["role"] == "cross"
    ]
    if cross:
        more = f"; {len(cross) - _MAX_CROSS} more below" if len(cross) > _MAX_CROSS else ""
        sentences.append(f"On datasets not used for training: {'; '.join(cross[:_MAX_CROSS])}{more}.")
    return sentences


def _subject(table: RunTable, line: ResultLine) -> str:
    """Name the dataset of a line, and its class if there are several."""
    return f"{line.about['dataset']}{result_text.of_class(line.about['class'] if table.has_classes else '')}"


def _predicted_subject(line: ResultLine) -> str:
    return f"{line.about['dataset']}{result_text.of_class(line.about.get('class', ''))}"


def to_json(page: Page) -> Row:
    """Convert to report.json: everything except the images."""
    study, predictions = page.study, page.predictions
    names = ("image_id", "dataset", "rank", "dice", "doubt", "doubt_reason", "training", "flags", "measures", "note")
    return {
        "versions": versions(_LIBRARIES),
        "notes": list(page.notes),
        "study": study and _study_json(study, page.comparisons),
        "predictions": predictions
        and {
            **predictions.about,
            "rows": _json_lines(predictions.lines),
            "classes": _json_lines(predictions.class_lines),
            "measures": list(predictions.measures),
            "detection": _json_lines(predictions.detection),
            "codes": list(predictions.codes),
        },
        "overlays": [{name: getattr(overlay, name) for name in names} for overlay in page.overlays],
    }


def _study_json(study: Study, comparisons: StudyComparisons) -> Row:
    return {
        "name": study.name,
        "folder": study.folder,
        "unfinished": list(study.unfinished),
        "training": list(study.training),
        "results": study.matrix.as_json(),
        "study_comparisons": [pair.as_json() for pair in comparisons.pairs],
        "gap_comparisons": [gap.as_json() for gap in comparisons.gaps],
        "study_differences": [difference.as_json() for difference in comparisons.differences],
        "tables": [
            {
                **table.about,
                "rows": _json_lines(table.lines),
                "all_runs": _json_lines(table.all_runs),
                "detection": _json_lines(table.detection),
            }
            for table in study.tables
        ],
    }


def _json_lines(lines: Sequence[ResultLine | DetectionLine]) -> list[Row]:
    return [line.as_json() for line in lines]


def to_html(page: Page) -> str:
    """Render the page as one HTML file without external resources."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=console.format_number,
        counts=console.format_counts,
        names=console.join_names,
        describe_metrics=console.describe_metrics,
        describe_runs=console.describe_runs,
        describe_basis=result_text.describe_basis,
        spread=result_text.format_spread,
        of_class=result_text.of_class,
        code_meaning=_code_meaning,
        last_name=storage.name_of,
        versions=lambda numbers: ", ".join(f"{name} {number}" for name, number in numbers.items()),
    )
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        study=page.study,
        **(_matrix_texts(page.study) if page.study else {}),
        disagreement=result_text.DISAGREEMENT,
        size_and_reference=result_text.SIZE_AND_REFERENCE,
        comparisons=page.comparisons,
        predictions=page.predictions,
        headline=headline(page.study) if page.study else [],
        by_doubt=page.by_doubt,
        min_area=page.min_area,
        mixed=detection_results.MIXED,
        notes=page.notes,
        curves=charts.learning_curves(page.study.curves) if page.study else {},
        histograms=_histograms(page.study, page.predictions),
        overlays=page.overlays,
        outlined={
            outline.name: outline.colour
            for shown in page.overlays
            for outline in (*shown.outlines, *shown.class_references)
        },
        plot=charts,
        versions=versions(_LIBRARIES),
    )


def _matrix_texts(study: Study) -> Row:
    return {
        "dice_table": result_text.dice_table(study.matrix),
        "seed_table": result_text.seed_table(study.matrix),
        "subgroup_table": result_text.subgroup_table(study.matrix),
        "subgroups": result_text.SUBGROUPS,
        "matrix_basis": result_text.matrix_basis(study.matrix),
        "dataset_table": result_text.dataset_table(study.matrix),
    }


def _code_meaning(code: str) -> str:
    return REGISTRY[code].meaning if code in REGISTRY else ""


def _histograms(study: Study | None, predictions: Predictions | None) -> list[tuple[str, ResultLine, charts.Histogram]]:
    """Draw the Dice per image of each group of images, all on the same x axis."""
    lines = [
        (
            f"{_subject(table, line)}, {line.about['role']}; trained on {console.join_names(table.about['train_on'])}",
            line,
        )
        for table in (study.tables if study else ())
        for line in table.summary_lines()
    ]
    if predictions is not None:
        lines += [
            (f"{_predicted_subject(line)}, predictions, {line.about['training']} in training", line)
            for line in predictions.class_lines or predictions.lines
            if line.dice
        ]
    low = charts.axis_start([value for _, line in lines for value in line.dice])
    return [(title, line, charts.histogram(line.dice, low)) for title, line in lines]
