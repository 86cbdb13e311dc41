"""The report page as HTML and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lungseg.arrays import Row
from lungseg.predictions import overlays
from lungseg.report import charts, console
from lungseg.report.prediction_results import Predictions
from lungseg.report.result_table import ResultLine
from lungseg.report.study_results import Study
from lungseg.study import cross_dataset, study_comparison
from lungseg.versions import versions

_LIBRARIES = ("numpy", "pyarrow", "jinja2")
_MAX_CROSS = 4  # cross-dataset results that the headline lists


@dataclass(frozen=True)
class Page:
    """What a report tells: on the page and, but for the pictures, as JSON."""

    study: Study
    compared: Sequence[study_comparison.StudyComparison]
    predictions: Predictions | None
    shown: Sequence[overlays.Overlay]
    notes: Sequence[str]


def headline(study: Study) -> list[str]:
    """Summarise the main results in one or two sentences."""
    table = study.tables[0]
    sentences = []
    held_out = [value for line in table.summary_lines() if line.about["role"] == "held-out" for value in line.dice]
    if held_out:
        folds = f"{table.about['runs']} of {table.about['folds']} folds"
        mean = sum(held_out) / len(held_out)
        sentences.append(
            f"Trained on {console.join_names(table.about['train_on'])}: mean Dice {mean:.4f} on {len(held_out)} "
            f"held-out images of the same data ({folds}; {console.describe_metrics(table.about)})."
        )
    cross = [
        f"{line.metrics['dice']:.4f} on {line.metrics['images']} images of {line.about['dataset']} "
        f"(trained on {console.join_names(table.about['train_on'])})"
        for table in study.tables
        for line in table.summary_lines()
        if line.about["role"] == "cross"
    ]
    if cross:
        more = f"; {len(cross) - _MAX_CROSS} more below" if len(cross) > _MAX_CROSS else ""
        sentences.append(f"On datasets not used for training: {'; '.join(cross[:_MAX_CROSS])}{more}.")
    return sentences


def to_json(page: Page) -> Row:
    """Give the page's figures as a JSON object."""
    names = ("image_id", "dataset", "rank", "dice", "training", "note")
    return {
        "versions": versions(_LIBRARIES),
        "notes": list(page.notes),
        "study": {
            "name": page.study.name,
            "folder": page.study.folder,
            "unfinished": list(page.study.unfinished),
            "results": page.study.matrix.as_json(),
            "against": [one.as_json() for one in page.compared],
            "tables": [
                {**one.about, "rows": _json_lines(one.lines), "all_runs": _json_lines(one.all_runs)}
                for one in page.study.tables
            ],
        },
        "predictions": page.predictions
        and {
            **page.predictions.about,
            "rows": _json_lines(page.predictions.lines),
            "codes": list(page.predictions.codes),
        },
        "overlays": [{name: getattr(one, name) for name in names} for one in page.shown],
    }


def _json_lines(lines: Sequence[ResultLine]) -> list[Row]:
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
        made=console.describe_metrics,
    )
    environment.filters["predictors"] = console.predicting_runs
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(
        study=page.study,
        grid=cross_dataset.dice_table(page.study.matrix),
        compared=page.compared,
        predictions=page.predictions,
        headline=headline(page.study),
        notes=page.notes,
        curves=charts.learning_curves(page.study.curves),
        histograms=_histograms(page.study, page.predictions),
        overlays=page.shown,
        plot=charts,
        versions=versions(_LIBRARIES),
    )


def _histograms(study: Study, predictions: Predictions | None) -> list[tuple[str, ResultLine, charts.Histogram]]:
    """Draw the per-image Dice of every line that counts each image once, all on one axis."""
    lines = [
        (
            f"{line.about['dataset']}, {line.about['role']}; trained on {console.join_names(table.about['train_on'])}",
            line,
        )
        for table in study.tables
        for line in table.summary_lines()
    ]
    if predictions is not None:
        lines += [
            (f"{line.about['dataset']}, predictions, {line.about['training']} in training", line)
            for line in predictions.lines
            if line.dice
        ]
    low = charts.axis_start([value for _, line in lines for value in line.dice])
    return [(title, line, charts.histogram(line.dice, low)) for title, line in lines]
