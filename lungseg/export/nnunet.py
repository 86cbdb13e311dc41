"""Write predictions as datasets of nnU-Net version 2: images of one channel, and label maps.

The one class lung is the value 1. Several classes may overlap, so each has a bit of the value: 1, 2, 4, ... in the
order of the model. dataset.json then names for each class all values with its bit, as a region of nnU-Net. A network
that nnU-Net trains on regions writes label maps in the order `regions_class_order`: a later class covers an earlier.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import ImageError, SettingsError
from lungseg.imaging import codecs
from lungseg.imaging.orientation import to_upright
from lungseg.predictions.image_files import orientation_of, read_image_and_masks
from lungseg.predictions.parts import read_part

FORMAT = "nnunet"
_FIRST_NUMBER = 501  # nnU-Net reserves small numbers for the Decathlon
_MAX_CLASSES = 8  # bits of a pixel


def dataset_folders(parts: Sequence[str]) -> dict[str, str]:
    """Return the folder of each dataset in the parts of predictions, as Dataset501_shenzhen."""
    names = sorted({name for path in parts for name in read_part(path).column("dataset").unique().to_pylist()})
    return {name: f"Dataset{number}_{name}" for number, name in enumerate(names, _FIRST_NUMBER)}


def require_label_map(classes: Sequence[str]) -> None:
    """Refuse classes that do not fit into a label map.

    Raises:
        SettingsError: they are more than it can hold.

    """
    if len(classes) > _MAX_CLASSES:
        raise SettingsError(
            f"--formats nnunet: {len(classes)} classes, expected up to {_MAX_CLASSES}: export class-masks instead"
        )


def encode_case(row: Row, masks: Mapping[str, U8]) -> dict[str, bytes]:
    """Encode the upright image, 8-bit grey, and the masks, u8[H,W] in {0,1} by class as stored.

    row: with `nnunet_folder`, the folder of its dataset. Returns the contents by path below `nnunet`.

    Raises:
        ImageError: the image changed after it was predicted.
        InputError: the image cannot be read.

    """
    image, _, _ = read_image_and_masks(row)
    stored = np.zeros((row["height"], row["width"]), np.uint8)
    for bit, mask in enumerate(masks.values()):
        stored |= mask << np.uint8(bit)
    labels = to_upright(stored, orientation_of(row))
    if image.shape != labels.shape:
        raise ImageError("changed", f"{row['source_uri']} and its predicted mask differ in size: the image was changed")
    folder = row["nnunet_folder"]
    return {
        f"{folder}/imagesTr/{row['image_id']}_0000.png": codecs.encode_image(image),
        f"{folder}/labelsTr/{row['image_id']}.png": codecs.encode_labels(labels),
    }


def write_dataset_files(folder: str, classes: Sequence[str] = ONE_CLASS) -> None:
    """Write dataset.json into each dataset below a folder; it is not a file of lungseg and has no schema."""
    for dataset in storage.list_folders(folder):
        cases = len(storage.list_files(storage.join(dataset, "labelsTr")))
        content = {
            "channel_names": {"0": "X-ray"},
            **_labels(classes),
            "numTraining": cases,
            "file_ending": ".png",
        }
        storage.write_bytes(storage.join(dataset, "dataset.json"), (json.dumps(content, indent=1) + "\n").encode())


def _labels(classes: Sequence[str]) -> Row:
    """Return the labels of dataset.json; for several classes all values of each region and the covering order."""
    if len(classes) == 1:
        return {"labels": {"background": 0, classes[0]: 1}}
    values = range(1, 2 ** len(classes))
    regions = {name: [value for value in values if value >> bit & 1] for bit, name in enumerate(classes)}
    order = [2**bit for bit in range(len(classes))]
    return {"labels": {"background": 0, **regions}, "regions_class_order": order}
