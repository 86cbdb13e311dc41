"""Pictures that are no upright frontal chest are flagged, and X-rays are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lungseg.imaging import phantom
from lungseg.imaging.thumbnails import rank_content
from lungseg.ingest import image_checks, view_classifier
from lungseg.ingest.reason_codes import REGISTRY
from tests.pictures import altered, collection
from tests.pictures.fields import U8


def share_found(images: list[U8]) -> float:
    return float(np.mean([collection.finding(image) != "" for image in images]))


CHEST = collection.phantoms(12)
REFUSED = {code for code, entry in REGISTRY.items() if entry.status == "rejected"}
DRAWN = collection.drawn_pictures(8)


def test_phantoms_of_any_size_are_not_flagged() -> None:
    drawn = [phantom.draw((4, n), phantom.STYLES[n % 2], size)[0] for n in range(15) for size in (64, 200)]
    assert [collection.finding(image) for image in drawn] == [""] * 30


def test_another_exposure_of_a_chest_is_seldom_flagged() -> None:
    exposures = [altered.another_exposure(np.random.default_rng(n), CHEST[n % 12]) for n in range(100)]
    assert share_found(exposures) <= 0.05


@pytest.mark.parametrize("kind", collection.ALTERED)
def test_altered_chest_is_flagged(kind: str) -> None:
    pictures = [collection.ALTERED[kind](np.random.default_rng(n), image) for n, image in enumerate(CHEST)]
    assert share_found([np.ascontiguousarray(picture) for picture in pictures]) >= 10 / 12


@pytest.mark.parametrize("kind", DRAWN)
def test_drawn_picture_is_flagged(kind: str) -> None:
    assert share_found(DRAWN[kind]) >= 0.87


def test_pictures_of_pydicom_are_flagged_except_the_chest() -> None:
    found = {name: collection.finding(picture) for name, picture in collection.pydicom_pictures().items()}
    assert len(found) > 30
    assert {name[:3] for name, code in found.items() if not code} == {"RG1"}


@pytest.mark.parametrize(
    ("turn", "flag"),
    [
        (np.rot90, "rotated"),
        (lambda image: np.rot90(image, 2), "rotated"),
        (lambda image: np.rot90(image, 3), "rotated"),
        (lambda image: image[::-1], "rotated"),
        (lambda image: image[:128, :128], "not_chest_like"),
        (lambda image: np.where(image > 120, 255, 0).astype(np.uint8), "two_valued"),
        (lambda image: image[:, ::-1], ""),
        (lambda image: np.pad(image, ((0, 0), (60, 60))), ""),
        (lambda image: np.pad(image, 40, constant_values=255), ""),
    ],
)
def test_flag_says_what_the_picture_shows(turn: object, flag: str) -> None:
    found = [collection.finding(np.ascontiguousarray(turn(image))) for image in CHEST]  # type: ignore[operator]
    assert found.count(flag) >= 11


def test_picture_that_was_inverted_is_flagged_all_the_same() -> None:
    pictures = [picture for draw in DRAWN.values() for picture in draw]
    pictures = [picture for picture in pictures if collection.finding(picture) not in REFUSED]
    checked = [image_checks.check_pixels(picture, "x.png") for picture in pictures]
    flagged = [bool(flags) for _, repairs, flags in checked if repairs]
    assert len(flagged) >= 10
    assert np.mean(flagged) > 0.9


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_chest_of_another_tone_curve_and_depth_is_not_flagged(power: float) -> None:
    changed = [np.asarray((image / 255.0) ** power * 60000, np.uint16) for image in CHEST]
    assert [image_checks.check_pixels(image, "x.png")[2] for image in changed] == [()] * len(CHEST)


@pytest.mark.parametrize("opaque", [slice(None, 128), slice(128, None)])
def test_chest_with_an_opaque_side_is_not_flagged(opaque: slice) -> None:
    changed = [image.copy() for image in CHEST]
    for image in changed:
        level = np.percentile(image, 85)
        image[:, opaque] = np.asarray(0.1 * image[:, opaque] + 0.9 * level, np.uint8)
    assert [collection.finding(image) for image in changed].count("") >= 11


def test_network_equals_the_one_in_torch() -> None:
    ranks = rank_content(CHEST[0], view_classifier.SIDE).ranks
    with np.load(Path(view_classifier.__file__).with_name(view_classifier.WEIGHTS), allow_pickle=False) as stored:
        weights = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
    features = torch.from_numpy(ranks)[None, None]
    for n in (1, 2, 3):
        features = torch.relu(torch.conv2d(features, weights[f"kernel{n}"], weights[f"bias{n}"], 2, 1))
    expected = torch.softmax(weights["kernel4"] @ features.flatten() + weights["bias4"], 0)
    np.testing.assert_allclose(view_classifier.classify(ranks), expected, atol=1e-5)
    assert sum(value.numel() for value in weights.values()) < 10_000


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_image_of_one_grey_value_has_finite_probabilities(grey: int) -> None:
    image = np.full((40, 40), grey, np.uint8)
    views = view_classifier.classify(rank_content(image, view_classifier.SIDE).ranks)
    assert sum(views) == pytest.approx(1)


def test_real_xrays_are_not_flagged_and_their_alterations_are(cxr256: Path) -> None:
    unseen = collection.read_xrays(cxr256.parent / "covid44" / "images")
    trained = [collection.read_xrays(cxr256 / name / "images")[::5] for name in ("montgomery", "shenzhen")]
    xrays = [*unseen, *trained[0], *trained[1]]
    assert len(xrays) > 130
    assert share_found(xrays) < 0.02
    small = [cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA) for image in xrays[::7]]
    shares = {kind: share_found(pictures) for kind, pictures in collection.altered_xrays(small).items()}
    assert min(shares.values()) > 0.85, shares
    assert np.mean(list(shares.values())) > 0.95, shares


def test_inverted_real_xrays_are_inverted_back_without_a_flag(cxr256: Path) -> None:
    for image in collection.read_xrays(cxr256 / "montgomery" / "images")[::4]:
        checked, repairs, flags = image_checks.check_pixels(255 - image, "x.png")
        assert [note.code for note in repairs] == ["inverted"]
        assert flags == ()
        assert cv2.absdiff(checked, image).mean() < 40
