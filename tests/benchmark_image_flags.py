"""Error rates of the image flags: `python -m tests.benchmark_image_flags --data ../shared/data`.

Prints how many X-rays are flagged, and how many pictures that are no upright frontal chest are flagged or rejected, by
kind. The network was trained on the Montgomery and Shenzhen X-rays; the pictures were not used for training.
--pictures FOLDER adds the pictures of a folder, for example photographs, as a kind of its own.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from lungseg.ingest import image_checks
from tests.pictures import collection
from tests.pictures.fields import U8


def print_row(kind: str, images: Iterable[U8]) -> tuple[int, int]:
    """Print one row of the table; return how many images there are, and how many have a finding."""
    findings = [collection.finding(image) for image in images]
    caught = [name for name in findings if name]
    names = ", ".join(f"{count} `{name}`" for name, count in Counter(caught).most_common(4))
    print(f"| {kind} | {len(findings)} | {len(caught)} ({len(caught) / len(findings):.1%}) | {names} |")
    return len(findings), len(caught)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cxr256 and covid44")
    parser.add_argument("--pictures", type=Path, help="folder of other pictures")
    settings = parser.parse_args()
    cv2.setNumThreads(1)
    names = {"Montgomery": "cxr256/montgomery", "Shenzhen": "cxr256/shenzhen", "covid44": "covid44"}
    xrays = {name: collection.read_xrays(settings.data / folder / "images") for name, folder in names.items()}
    print("| X-rays | images | flagged | as |\n|---|---|---|---|")
    for name, images in (*xrays.items(), ("phantoms", collection.phantoms(100))):
        print_row(name, images)
    print("\n| picture | pictures | flagged or rejected | as |\n|---|---|---|---|")
    kinds = collection.altered_xrays(xrays["covid44"])
    kinds |= collection.drawn_pictures(40)
    kinds["files of pydicom"] = [image for name, image in collection.pydicom_pictures().items() if "RG1" not in name]
    if settings.pictures:
        files = sorted(path for path in settings.pictures.iterdir() if path.is_file())
        kinds["photographs"] = [np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8) for path in files]
    counts = [print_row(kind, images) for kind, images in kinds.items()]
    images, caught = (sum(values) for values in zip(*counts, strict=True))
    print(f"| all | {images} | {caught} ({caught / images:.1%}) | |")
    inverted = [255 - image for image in xrays["covid44"]]
    repaired = sum("inverted" in {note.code for note in image_checks.check_pixels(x, "x")[1]} for x in inverted)
    flagged = sum(bool(collection.finding(image)) for image in inverted)
    print(f"\nOf {len(inverted)} inverted X-rays, {repaired} were inverted back and {flagged} flagged.")
    began = time.process_time()
    for image in xrays["Shenzhen"]:
        image_checks.check_pixels(image, "x.png")
    print(f"{(time.process_time() - began) / len(xrays['Shenzhen']) * 1000:.2f} ms an image of 256 px on one core")


if __name__ == "__main__":
    main()
