"""Train the network of lungseg/ingest/view_classifier.py: `python -m tests.train_view_classifier --data DATA`.

Trains on the Montgomery and Shenzhen X-rays of DATA/cxr256, on phantoms and on drawn pictures, and writes the weights;
takes three minutes on one core. The result is the same for every run with the same libraries.

With --evaluate it writes nothing. It prints what networks reach on pictures that they were not trained on: `hospitals`
trains two, each without one hospital, and `kinds` trains one without each kind of picture.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lungseg.imaging import phantom
from lungseg.imaging.thumbnails import rank_content
from lungseg.ingest import image_checks, view_classifier
from tests.pictures import altered
from tests.pictures.anatomy import ANATOMY
from tests.pictures.drawn import DRAWN
from tests.pictures.fields import U8

_UPRIGHT, _NEGATIVE, _ON_SIDE, _UPSIDE_DOWN, _OTHER = range(len(view_classifier.Views._fields))
_ALTERED = (
    ("another exposure", altered.another_exposure, _UPRIGHT, 14),
    ("inverted", altered.negative, _NEGATIVE, 4),
    ("on its side", altered.on_side, _ON_SIDE, 6),
    ("upside down", altered.upside_down, _UPSIDE_DOWN, 6),
    ("a quarter or a half", altered.fragment, _OTHER, 7),
    ("shown in a page", altered.shown_in_a_page, _OTHER, 2),
    ("side by side", altered.side_by_side, _OTHER, 1),
    ("thresholded", altered.threshold, _OTHER, 2),
)
_SOURCE = 128  # px; X-rays are altered at this size
_DRAWN_EACH, _PHANTOMS = 600, 400
_EPOCHS, _BATCH, _RATE = 16, 128, 4e-3


class Pictures(NamedTuple):
    """Inputs f32[n,S,S] of the network, their views i64[n], their origin and their kind."""

    inputs: NDArray[np.float32]
    views: NDArray[np.int64]
    origins: NDArray[np.str_]
    kinds: NDArray[np.str_]

    def where(self, chosen: NDArray[np.bool_]) -> "Pictures":
        return Pictures(*(values[chosen] for values in self))


def make_pictures(data: Path) -> Pictures:
    """Make all pictures; every one has its own seed."""
    rows = [*_xrays(data), *_phantoms(), *_drawn()]
    inputs, views, origins, kinds = zip(*rows, strict=True)
    return Pictures(np.array(inputs), np.array(views), np.array(origins), np.array(kinds))


def _input(image: U8) -> NDArray[np.float32]:
    return rank_content(image, view_classifier.SIDE).ranks


def _read(path: Path) -> U8:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def _xrays(data: Path) -> Iterator[tuple[NDArray[np.float32], int, str, str]]:
    for number, path in enumerate(sorted((data / "cxr256").glob("*/images/*.png"))):
        image = _read(path)
        origin = path.parts[-3]
        yield _input(image), _UPRIGHT, origin, "original"
        small = cv2.resize(image, (_SOURCE, _SOURCE), interpolation=cv2.INTER_AREA)
        yield from _alter(small, origin, number, 1)


def _phantoms() -> Iterator[tuple[NDArray[np.float32], int, str, str]]:
    for number in range(_PHANTOMS):
        image, _ = phantom.draw((77, number), phantom.STYLES[number % 2], _SOURCE)
        yield _input(image), _UPRIGHT, "phantom", "original"
        yield from _alter(image, "phantom", 10**6 + number, 2)


def _alter(image: U8, origin: str, number: int, every: int) -> Iterator[tuple[NDArray[np.float32], int, str, str]]:
    for step, (kind, alter, view, count) in enumerate(_ALTERED):
        for item in range(0, count, every):
            changed = alter(np.random.default_rng((number, step, item)), image)
            yield _input(changed), view, origin, kind


def _drawn() -> Iterator[tuple[NDArray[np.float32], int, str, str]]:
    functions = [(kind, draw) for kinds in (DRAWN, ANATOMY) for kind, draws in kinds.items() for draw in draws.values()]
    for step, (kind, draw) in enumerate(functions):
        for item in range(_DRAWN_EACH):
            rng = np.random.default_rng((5, step, item))
            image = draw(rng, 96)
            image = image if rng.random() < 0.85 else 255 - image
            yield _input(image), _OTHER, "drawn", kind


def train(pictures: Pictures, seed: int = 0) -> nn.Sequential:
    """Train a network; each picture is mirrored left to right half of the time."""
    torch.manual_seed(seed)
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
    steps = len(pictures.views) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_EPOCHS * steps + 1)
    inputs, views = torch.from_numpy(pictures.inputs)[:, None], torch.from_numpy(pictures.views)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(views))[: steps * _BATCH].split(_BATCH):
            mirrored = torch.rand(_BATCH)[:, None, None, None] < 0.5
            x = torch.where(mirrored, inputs[batch].flip(-1), inputs[batch])
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), views[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, wider in ((1, 8), (8, 16), (16, 32)):
        convolution = nn.Conv2d(channels, wider, 3, stride=2, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.ReLU()]
    side = view_classifier.SIDE // 8
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * side * side, 5))


def save(network: nn.Sequential, path: Path) -> None:
    """Write kernels and biases in the order of the layers, as f16."""
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    arrays = {}
    for number, layer in enumerate(layers, start=1):
        for name, value in (("kernel", layer.weight), ("bias", layer.bias)):
            arrays[f"{name}{number}"] = value.detach().numpy().astype(np.float16)
    np.savez(path, **arrays)


def flagged_share(network: nn.Sequential, pictures: Pictures) -> float:
    """Compute the share of pictures that are not taken for an upright chest."""
    with torch.no_grad():
        upright = network(torch.from_numpy(pictures.inputs)[:, None]).softmax(1)[:, _UPRIGHT]
    return float((upright < image_checks.MIN_UPRIGHT).float().mean())


def evaluate_hospitals(pictures: Pictures, data: Path) -> None:
    """Print the shares of flagged pictures of the hospital that was left out, and of covid44."""
    hospitals = ("montgomery", "shenzhen")
    for tested, trained in (hospitals, hospitals[::-1]):
        network = train(pictures.where(pictures.origins != tested))
        _print_kinds(f"trained on {trained}, tested on {tested}", network, pictures.where(pictures.origins == tested))
        print(f"    42 of covid44: {flagged_share(network, _covid44(data)):.2%} flagged")


def evaluate_kinds(pictures: Pictures) -> None:
    """Print the shares of flagged pictures of each kind by a network that was trained without it."""
    kinds = [*DRAWN, *ANATOMY, *(kind for kind, _, view, _ in _ALTERED if view == _OTHER)]
    for kind in kinds:
        is_kind = pictures.kinds == kind
        _print_kinds("trained without this kind", train(pictures.where(~is_kind)), pictures.where(is_kind))


def _covid44(data: Path) -> Pictures:
    paths = sorted((data / "covid44" / "images").glob("*.png"))
    inputs = [_input(_read(path)) for path in paths]
    names = np.full(len(paths), "covid44")
    return Pictures(np.array(inputs), np.zeros(len(paths), np.int64), names, names)


def _print_kinds(title: str, network: nn.Sequential, pictures: Pictures) -> None:
    print(title)
    for kind in dict.fromkeys(pictures.kinds.tolist()):
        chosen = pictures.where(pictures.kinds == kind)
        print(f"    {len(chosen.views)} of {kind}: {flagged_share(network, chosen):.2%} flagged", flush=True)


def main(arguments: Iterable[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cxr256, and covid44 for --evaluate")
    parser.add_argument("--evaluate", choices=("hospitals", "kinds"), help="print held-out figures; write nothing")
    settings = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = make_pictures(settings.data)
    print(f"{len(pictures.views)} pictures")
    if settings.evaluate == "hospitals":
        evaluate_hospitals(pictures, settings.data)
    elif settings.evaluate == "kinds":
        evaluate_kinds(pictures)
    else:
        _write(pictures)


def _write(pictures: Pictures) -> None:
    path = Path(view_classifier.__file__).with_name(view_classifier.WEIGHTS)
    save(train(pictures), path)
    print(f"wrote {path}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
