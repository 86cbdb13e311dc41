"""Columns of the results, with a description of each: tested.parquet, study.parquet and the rows of predictions."""

from lungseg.arrow import pa
from lungseg.schema import METADATA

_Columns = tuple[tuple[str, pa.DataType, str], ...]


def _described(columns: _Columns) -> pa.Schema:
    """Return a schema whose fields carry their descriptions."""
    fields = [pa.field(name, kind, metadata={"description": description}) for name, kind, description in columns]
    return pa.schema(fields, metadata=METADATA)


_TESTED: _Columns = (
    ("run", pa.string(), "name of the run that was tested"),
    ("image_id", pa.string(), "id of the image, unique in its dataset"),
    ("dataset", pa.string(), "name of the dataset of the image"),
    ("patient_id", pa.string(), "id of the patient, a pseudonym for DICOM; the image id where no patient is named"),
    ("group", pa.string(), "equal for images of one patient and for images that the leakage audit linked"),
    (
        "class",
        pa.string(),
        "class of the mask, such as lung or heart; each annotated class of an image has a row of its own",
    ),
    ("role", pa.string(), "held-out: patient of a training dataset, not trained on; cross: image of another dataset"),
    ("tp", pa.int64(), "true positive pixels at native size"),
    ("fp", pa.int64(), "false positive pixels at native size"),
    ("fn", pa.int64(), "false negative pixels at native size"),
    ("tn", pa.int64(), "true negative pixels at native size"),
    ("dice", pa.float64(), "Dice with the reference mask at native size"),
    ("iou", pa.float64(), "IoU with the reference mask at native size"),
    ("pixel_accuracy", pa.float64(), "share of pixels equal to the reference mask"),
    (
        "sensitivity",
        pa.float64(),
        "share of the reference mask that the prediction covers; null where only the reference is empty",
    ),
    (
        "precision",
        pa.float64(),
        "share of the predicted mask inside the reference mask; 0 where only the prediction is empty",
    ),
    ("hd95_px", pa.float64(), "95th percentile of the distances between the borders, px; null where a mask is empty"),
    ("assd_px", pa.float64(), "mean distance between the borders, px; null where a mask is empty"),
)

TEST_ROWS = _described(_TESTED)
"""One row for each image and class that a run was tested on, at native size: tested.parquet."""

STUDY_ROWS = _described(
    (
        *_TESTED,
        ("protocol", pa.string(), "pooled, source-to-source or leave-one-dataset-out"),
        ("train_on", pa.string(), "names of the training datasets, joined by +"),
        ("fold", pa.int32(), "held-out fold of the run"),
        ("seed", pa.int32(), "seed of the training"),
        ("finding", pa.string(), "finding of the image, as the archive states it; null: unknown"),
        ("age_group", pa.string(), "age of the patient in steps of ten years, such as 40-49, or 90+; null: unknown"),
        ("sex", pa.string(), "sex of the patient; null: unknown"),
    )
)
"""One row for each image, class and run of a study: study.parquet."""

_CLASS_FIELDS: _Columns = (
    ("class", pa.string(), "name"),
    ("mask", pa.string(), "as the column mask"),
    ("threshold", pa.float32(), "least probability of its pixels"),
    ("area_px", pa.int64(), "pixels"),
    ("components", pa.int32(), "connected components"),
    ("mean_probability", pa.float64(), "of its pixels before post-processing; null without any"),
    ("doubt", pa.float32(), "as the column, of this class; null for an empty mask"),
    ("iou", pa.float64(), "with the reference mask of the class; null without one"),
    ("dice", pa.float64(), "with the reference mask of the class; null without one"),
    ("pixel_accuracy", pa.float64(), "with the reference mask of the class; null without one"),
    ("hd95_px", pa.float64(), "as the column; null where a mask is empty"),
    ("assd_px", pa.float64(), "as the column; null where a mask is empty"),
)

_PREDICTED: _Columns = (
    ("image_id", pa.string(), "id of the image, unique in its dataset"),
    ("dataset", pa.string(), "name of the dataset"),
    (
        "patient_id",
        pa.string(),
        "id of the patient; DICOM: a pseudonym, empty without a key; other files: the image id if no patient is named",
    ),
    ("source_uri", pa.string(), "image file, or TAR#image_id for prepared data"),
    ("mask_uris", pa.list_(pa.string()), "files of the reference masks"),
    (
        "mask_values",
        pa.list_(pa.string()),
        "grey values that mean lung in each of these files, such as 1,2; empty: any",
    ),
    ("mask_classes", pa.list_(pa.string()), "class of each of these files; null: all are of lungs"),
    ("status", pa.string(), "ok or repaired: predicted; rejected or failed: not predicted, see codes and message"),
    (
        "codes",
        pa.list_(pa.string()),
        "reason codes: why it was not predicted, what was repaired, or why its reference is not used",
    ),
    ("message", pa.string(), "the sentences for these codes; empty without codes"),
    (
        "flags",
        pa.list_(pa.string()),
        "what is unusual about the image or its masks: look at it before you use the mask",
    ),
    ("height", pa.int32(), "native height of the stored pixels, without regard to an orientation tag, px"),
    ("width", pa.int32(), "native width of the stored pixels, px"),
    ("mask", pa.string(), "lung mask as COCO RLE counts (column-major, ASCII) at height x width; null: not predicted"),
    (
        "threshold",
        pa.float32(),
        "pixels with at least this probability are lung; null where each lung has its own, see classes",
    ),
    ("mean_probability", pa.float64(), "mean probability of the lung pixels before post-processing; null without any"),
    ("border_entropy", pa.float64(), "mean binary entropy along the mask border, bits: 0 certain, 1 undecided"),
    (
        "doubt",
        pa.float32(),
        "0 certain to 1: 1 minus the overlap (Dice) with the truth that the model expects of its mask; not calibrated",
    ),
    ("doubt_reason", pa.string(), "the sentences of the flags, else where the doubt is unusually high"),
    ("area_px", pa.int64(), "pixels of the mask"),
    ("right_lung_px", pa.int64(), "pixels of the patient's right lung, on the left of the upright image"),
    ("left_lung_px", pa.int64(), "pixels of the patient's left lung, on the right of the upright image"),
    (
        "spacing_mm",
        pa.float64(),
        "side of a pixel, mm, from DICOM PixelSpacing, else ImagerPixelSpacing; null: unknown, "
        "unusable (flag spacing_unusable), or prepared data; "
        "usually measured at the detector, where lungs appear larger than in the patient",
    ),
    ("area_cm2", pa.float64(), "area of the mask, cm2; null where spacing_mm is"),
    ("right_lung_cm2", pa.float64(), "area of the patient's right lung, cm2; null where spacing_mm is"),
    ("left_lung_cm2", pa.float64(), "area of the patient's left lung, cm2; null where spacing_mm is"),
    ("centroid_x_px", pa.float64(), "mean column of the mask; null for an empty mask"),
    ("centroid_y_px", pa.float64(), "mean row of the mask; null for an empty mask"),
    ("bbox", pa.list_(pa.int32()), "bounding box: x, y, width, height, px; empty for an empty mask"),
    ("components", pa.int32(), "connected components of the mask, with diagonal neighbours"),
    ("components_before", pa.int32(), "connected components before post-processing"),
    ("removed_px", pa.int64(), "pixels that post-processing removed"),
    ("added_px", pa.int64(), "pixels that post-processing added"),
    ("iou", pa.float64(), "IoU with the reference mask at native size; null without a reference"),
    ("dice", pa.float64(), "Dice with the reference mask at native size; null without a reference"),
    ("pixel_accuracy", pa.float64(), "share of pixels equal to the reference mask; null without a reference"),
    ("hd95_px", pa.float64(), "95th percentile of the distances between the borders, px; null where a mask is empty"),
    ("assd_px", pa.float64(), "mean distance between the borders, px; null where a mask is empty"),
    ("seen_in_training", pa.bool_(), "true: all models were trained on this image; else models that were are not used"),
    ("models", pa.int32(), "number of models whose mean is the probability"),
    (
        "model_name",
        pa.string(),
        "installed name of the model, such as lungs, else the name of its run; for several, that of their study or "
        "runs and their number; `models` says how many of them predicted this image",
    ),
    ("model", pa.string(), "digest of the weights of all models"),
    (
        "geometry",
        pa.string(),
        "JSON: how the upright image was resized and placed in the square of the model; the orientation of its file",
    ),
    ("seconds", pa.float64(), "time for this image in all stages, s"),
    (
        "classes",
        pa.list_(pa.struct([(name, kind) for name, kind, _ in _CLASS_FIELDS])),
        "each class of the model: " + ", ".join(f"{name} ({text})" for name, _, text in _CLASS_FIELDS) + "; null for a "
        "model of the one class lung",
    ),
    (
        "cardiothoracic_ratio",
        pa.float64(),
        "width of the heart over the largest width of the thorax, measured at the outer borders of both lungs; null "
        "without these masks",
    ),
    (
        "right_lung_opaque_share",
        pa.float64(),
        "share of the right lung that the class opacity covers, 0 to 1; null without these masks",
    ),
    (
        "left_lung_opaque_share",
        pa.float64(),
        "share of the left lung that the class opacity covers, 0 to 1; null without these masks",
    ),
    (
        "right_left_ratio",
        pa.float64(),
        "area of the right lung over that of the left lung, each a class of its own; null without these masks",
    ),
)

PREDICTIONS = _described(_PREDICTED)
"""One row for each input of infer. The files have the description of each column in its metadata.

Masks are compared at native size; the reference of prepared data is restored from the prepared square.
"""
