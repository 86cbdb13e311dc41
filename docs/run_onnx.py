"""Segment an 8-bit grey PNG with an ONNX file and its metadata alone: `python run_onnx.py lungs.onnx x.png mask.png`.

Of a model with several classes, name one as the fourth argument, such as `heart`.

Needs onnxruntime, numpy and opencv-python-headless. It is the core of lungseg without its checks of pictures, its
post-processing and its repairs, for programs of your own.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def main(model: str, source: str, target: str, name: str = "lung") -> None:
    """Write the mask of a class of an image, 255 is lung."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["lungseg"])
    config = metadata["config"]
    preprocess = config["preprocess"]
    threshold = config.get("thresholds", {}).get(name, config["settings"]["threshold"])
    if preprocess["geometry"] != "pad" or preprocess["histogram"] != "none":
        raise SystemExit("this example pads images, and leaves their grey values as they are")
    image = cv2.imread(source, cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SystemExit(f"{source}: no picture that OpenCV can read")
    (height, width), size = image.shape, preprocess["size"]
    scale = size / max(height, width)
    inner_height, inner_width = round(height * scale), round(width * scale)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    square = np.zeros((1, 1, size, size), np.uint8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    place = np.s_[top : top + inner_height, left : left + inner_width]
    square[0, 0][place] = cv2.resize(image, (inner_width, inner_height), interpolation=method)
    (probabilities,) = session.run([metadata["output"]["name"]], {metadata["input"]["name"]: square})
    probability = np.ascontiguousarray(probabilities[0, metadata["output"]["classes"].index(name)][place])
    mask = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR) >= threshold
    cv2.imwrite(target, mask.astype(np.uint8) * 255)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
