"""Write predictions as datasets of nnU-Net version 2: images of one channel, and labels with the value 1 for lung."""

import json
from collections.abc import Sequence

import numpy as np

from lungseg import storage
from lungseg.arrays import U8, Row
from lungseg.errors import ImageError
from lungseg.imaging import codecs
from lungseg.imaging.orientation import to_upright
from lungseg.predictions.overlays import orientation_of, read_image_and_mask
from lungseg.predictions.parts import read_part

FORMAT = "nnunet"
_FIRST_NUMBER = 501  # nnU-Net reserves small numbers for the Decathlon


def dataset_folders(parts: Sequence[str]) -> dict[str, str]:
    """Return the folder of each dataset in the parts of predictions, as Dataset501_shenzhen."""
    names = sorted({name for path in parts for name in read_part(path).column("dataset").unique().to_pylist()})
    return {name: f"Dataset{number}_{name}" for number, name in enumerate(names, _FIRST_NUMBER)}


def encode_case(row: Row, mask: U8) -> dict[str, bytes]:
    """Encode the upright image, 8-bit grey, and the mask, u8[H,W] in {0,1}: path below `nnunet` to PNG.

    row: with `nnunet_folder`, the folder of its dataset.

    Raises:
        ImageError: the image changed after it was predicted.
        InputError: the image cannot be read.

    """
    image, _, _ = read_image_and_mask(row)
    mask = to_upright(mask, orientation_of(row))
    if image.shape != mask.shape:
        raise ImageError("changed", f"{row['source_uri']} and its predicted mask differ in size: the image was changed")
    folder = row["nnunet_folder"]
    return {
        f"{folder}/imagesTr/{row['image_id']}_0000.png": codecs.encode_image(image),
        f"{folder}/labelsTr/{row['image_id']}.png": codecs.encode_labels(np.asarray(mask, np.uint8)),
    }


def write_dataset_files(folder: str) -> None:
    """Write dataset.json into each dataset below a folder; it is not a file of lungseg and has no schema."""
    for dataset in storage.list_folders(folder):
        cases = len(storage.list_files(storage.join(dataset, "labelsTr")))
        content = {
            "channel_names": {"0": "X-ray"},
            "labels": {"background": 0, "lung": 1},
            "numTraining": cases,
            "file_ending": ".png",
        }
        storage.write_bytes(storage.join(dataset, "dataset.json"), (json.dumps(content, indent=1) + "\n").encode())
