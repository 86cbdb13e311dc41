"""Detection of classes that some images show and others do not, such as opacities.

An image shows a class if its reference mask marks a pixel. The score of an image is the area of the predicted mask over
that of the predicted lungs, at most 1, so that it does not depend on how large the lungs are in the picture. For the
lungs and the heart, and without lungs, it is the share of the image. At least `--min-area` is a detection.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from lungseg.arrays import Row
from lungseg.config.class_names import HEART, LUNGS, OPACITY, lung_parts
from lungseg.dataset.catalog import find_datasets, open_dataset
from lungseg.metrics.detection import Detection, detect
from lungseg.metrics.segmentation import mean
from lungseg.plurals import counted
from lungseg.report.class_results import class_rows
from lungseg.report.result_table import TRAINING_LABELS, group_by
from lungseg.study.tested_images import patient_key

FINDINGS = (OPACITY,)
"""Classes that an image with the finding `normal` does not show; it shows the others, such as the heart."""

MIXED = (
    "images with the finding normal, without a reference mask. They are of other datasets: devices, framing, patients "
    "and processing differ too, so these figures measure how the datasets differ as much as they measure the disease."
)
"""Caveat of lines with `is_mixed`."""

ImageKey = tuple[str, str]
"""Dataset and image id."""


@dataclass(frozen=True)
class DetectionLine:
    """Detection of a class in a group of images.

    about: class, datasets with the class, and `group`: the role, or whether the model was trained on the images;
    `share_of`: lungs or image, of which the score is the share.
    absent_in: datasets of the images without the class. is_mixed: some of these are known as normal and have no
    reference; they may be of other datasets than the images with the class.
    """

    about: Row
    absent_in: tuple[str, ...]
    is_mixed: bool
    detection: Detection

    @property
    def datasets_text(self) -> str:
        """Datasets of the images with the class, and those of the others after a slash where they differ."""
        shown, others = " + ".join(self.about["datasets"]), " + ".join(self.absent_in)
        return shown if others == shown else f"{shown} / {others}{'*' if self.is_mixed else ''}"

    def as_json(self) -> Row:
        """Return nested values."""
        return {**self.about, "absent_in": list(self.absent_in), "is_mixed": self.is_mixed, **asdict(self.detection)}


@dataclass(frozen=True)
class _Case:
    dataset: str
    patient: str
    of_image: float
    of_lungs: float | None  # None: the image has no predicted class of the lungs, or the class is one of them
    is_present: bool
    is_normal: bool = False  # without a reference


def normal_images(folders: Sequence[str]) -> set[ImageKey]:
    """Return the images of prepared datasets whose finding is `normal`.

    Raises:
        InputError: a folder has no finished dataset.

    """
    tables = (open_dataset(folder).index for folder in find_datasets(folders))
    return {
        (row["dataset"], row["image_id"])
        for index in tables
        for row in index.select(["dataset", "image_id", "finding"]).to_pylist()
        if (row["finding"] or "").strip().lower() == "normal"
    }


def detect_in_predictions(rows: Sequence[Row], least: float, normal: Collection[ImageKey] = ()) -> list[DetectionLine]:
    """Compute the detection of each class of predicted rows, by dataset; then with normal images of all datasets.

    least: share of the lungs or the image, 0 to 1, from which a class is detected. normal: images that show no
        class of FINDINGS.
    """
    lines = []
    for name, of_class in _by_name(class_rows(rows)).items():
        compared = [row for row in of_class if row["dice"] is not None]
        for (is_seen,), group in sorted(group_by(compared, ("seen_in_training",)).items(), key=_unseen_first):
            about = {"class": name, "group": TRAINING_LABELS[is_seen]}
            lines += _by_dataset([_case_of_prediction(row) for row in group], about, least)
        others = [row for row in of_class if row["dice"] is None and (row["dataset"], row["image_id"]) in normal]
        if name in FINDINGS and others:
            lines += _with_normal(name, compared, others, least)
    return lines


def _with_normal(name: str, compared: Sequence[Row], normal: Sequence[Row], least: float) -> list[DetectionLine]:
    """Return the detection in images with a reference and normal ones, none of which the model was trained on."""
    compared, normal = ([row for row in rows if row["seen_in_training"] is not True] for rows in (compared, normal))
    if not normal:
        return []
    labels = {TRAINING_LABELS[row["seen_in_training"]] for row in (*compared, *normal)}
    added = [_case_of_prediction(row, is_normal=True) for row in normal]
    cases = [*(_case_of_prediction(row) for row in compared), *added]
    return _line(cases, {"class": name, "group": " or ".join(sorted(labels))}, least)


def explain_unused_normals(
    rows: Sequence[Row], lines: Sequence[DetectionLine], normal: Collection[ImageKey]
) -> list[str]:
    """Say why no line counts normal images; nothing if one does. rows: predictions, with or without a mask."""
    if any(line.is_mixed for line in lines):
        return []
    if not any(entry["class"] in FINDINGS for row in rows for entry in row.get("classes") or ()):
        reason = f"the model has no class {' or '.join(FINDINGS)}"
    elif not any((row["dataset"], row["image_id"]) in normal for row in rows):
        reason = (
            f"none of {counted(len(normal), 'image')} with the finding normal is among the predictions; predict both "
            "datasets in one run of lungseg infer (docs/classes.md)"
        )
    else:
        reason = (
            "the normal images among the predictions were trained on, have reference masks or no predicted mask, or "
            "no image to compare them with shows an opacity"
        )
    return [f"--normals has no effect: {reason}."]


def _unseen_first(group: tuple[tuple[bool | None], list[Row]]) -> bool:
    return bool(group[0][0])


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: group for (name,), group in group_by(rows, ("class",)).items()}


def detect_in_tests(rows: Sequence[Row], least: float) -> list[DetectionLine]:
    """Compute the detection of each class, role and dataset of rows of tested.parquet.

    least: share of the lungs or the image, 0 to 1, from which a class is detected. An image that several runs tested
    counts once, with its mean share.
    """
    parts = lung_parts([row["class"] for row in rows])
    lungs: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for row in rows:
        if row["class"] in parts:
            lungs[_test_key(row)][row["class"]] = row["tp"] + row["fp"]
    areas = {key: sum(of_class.values()) for key, of_class in lungs.items() if len(of_class) == len(parts)}
    lines = []
    for (name, role), group in group_by(rows, ("class", "role")).items():
        images = group_by(group, ("dataset", "image_id")).values()
        lines += _by_dataset([_case_of_tests(same, areas) for same in images], {"class": name, "group": role}, least)
    return lines


def _by_dataset(cases: Sequence[_Case], about: Row, least: float) -> list[DetectionLine]:
    names = sorted({case.dataset for case in cases})
    return [line for name in names for line in _line([case for case in cases if case.dataset == name], about, least)]


def _line(cases: Sequence[_Case], about: Row, least: float) -> list[DetectionLine]:
    """Return one line; none if all images show the class, or none does.

    The score is the share of the lungs if every image has one.
    """
    present = [case.is_present for case in cases]
    if all(present) or not any(present):
        return []
    shown, absent = (_names(case for case in cases if case.is_present == value) for value in (True, False))
    of_lungs = [case.of_lungs for case in cases if case.of_lungs is not None]
    has_lungs = len(of_lungs) == len(cases)
    scores = of_lungs if has_lungs else [case.of_image for case in cases]
    about = {**about, "datasets": list(shown), "share_of": "lungs" if has_lungs else "image"}
    detection = detect(scores, present, [case.patient for case in cases], least)
    return [DetectionLine(about, absent, any(case.is_normal for case in cases), detection)]


def _names(cases: Iterable[_Case]) -> tuple[str, ...]:
    return tuple(sorted({case.dataset for case in cases}))


def _case_of_prediction(row: Row, is_normal: bool = False) -> _Case:
    """Return an image of a row of a class; a normal one does not show it and has no reference."""
    area, parts = row["area_px"], lung_parts([entry["class"] for entry in row["classes"]])
    lungs = sum(entry["area_px"] for entry in row["classes"] if entry["class"] in parts) if parts else None
    return _Case(
        row["dataset"],
        patient_key(row),
        float(area / (row["height"] * row["width"])),
        _share_of_lungs(row["class"], area, lungs),
        not is_normal and _has_reference_pixels(row),
        is_normal,
    )


def _share_of_lungs(name: str, area: int, lungs: int | None) -> float | None:
    """Return the area of a predicted class over that of the lungs, at most 1.

    None where the lungs are unknown, and for the lungs and the heart, which are no part of the lungs.
    """
    return None if lungs is None or name in (*LUNGS, HEART) else min(area / max(lungs, 1), 1.0)


def _has_reference_pixels(row: Row) -> bool:
    """Return whether the reference mask that a class was compared with marks a pixel.

    Without a predicted pixel the Dice is 1 only if the reference has none; with one, a distance between the masks
    exists only if the reference has pixels too.
    """
    return row["hd95_px"] is not None if row["area_px"] else row["dice"] < 1


def _case_of_tests(same: Sequence[Row], lungs: Mapping[tuple[str, ...], int]) -> _Case:
    """Return an image of rows of tested.parquet, one a run. lungs: areas by `_test_key`, px."""
    areas = [row["tp"] + row["fp"] for row in same]
    of_image = [area / (area + row["fn"] + row["tn"]) for area, row in zip(areas, same, strict=True)]
    shares = [
        _share_of_lungs(row["class"], area, lungs.get(_test_key(row))) for area, row in zip(areas, same, strict=True)
    ]
    of_lungs = [share for share in shares if share is not None]
    return _Case(
        same[0]["dataset"],
        patient_key(same[0]),
        mean(of_image),
        mean(of_lungs) if len(of_lungs) == len(same) else None,
        same[0]["tp"] + same[0]["fn"] > 0,
    )


def _test_key(row: Row) -> tuple[str, ...]:
    return row["run"], row["dataset"], row["image_id"]
