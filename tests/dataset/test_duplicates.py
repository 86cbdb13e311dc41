"""Duplicate pairs: which images count as the same image or patient, and which do not."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from lungseg.arrays import Row
from lungseg.config import PreprocessSettings
from lungseg.dataset import duplicates
from lungseg.imaging import phantom
from lungseg.imaging.geometry import prepare_image
from lungseg.schema import SCHEMA

Grey = NDArray[Any]
SETTINGS = PreprocessSettings(size=256)


def bits(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def row(dataset: str, image: str, patient: str = "", pixel_digest: str = "", phash: str | None = "") -> Row:
    return {
        "dataset": dataset,
        "image_id": image,
        "patient_id": patient or image,
        "pixel_digest": pixel_digest or f"of {dataset} {image}",
        "phash": phash,
    }


def never(_: Row) -> NDArray[np.uint8]:
    raise AssertionError("no image needs to be read")


def jpeg(quality: int) -> Callable[[Grey], Grey]:
    def change(image: Grey) -> Grey:
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)

    return change


def resized(factor: float) -> Callable[[Grey], Grey]:
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation)


def gamma(exponent: float) -> Callable[[Grey], Grey]:
    return lambda image: np.rint(255.0 * (image / 255.0) ** exponent).astype(np.uint8)


def padded(image: Grey) -> Grey:
    return cv2.copyMakeBorder(image, 12, 12, 25, 25, cv2.BORDER_CONSTANT, value=0)


def cropped(share: float) -> Callable[[Grey], Grey]:
    def change(image: Grey) -> Grey:
        top, left = (max(1, round(length * share)) for length in image.shape)
        return image[top:-top, left:-left]

    return change


def lettered(image: Grey) -> Grey:
    return cv2.putText(image.copy(), "L 12.03.2011", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255.0, 1)


def noisy(image: Grey) -> Grey:
    noise = np.random.default_rng(0).normal(0.0, 10.0, image.shape)
    return np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)


CHANGES: dict[str, Callable[[Grey], Grey]] = {
    "jpeg 50": jpeg(50),
    "jpeg 95": jpeg(95),
    "a quarter": resized(0.25),
    "double": resized(2.0),
    "gamma 0.6": gamma(0.6),
    "gamma 1.6": gamma(1.6),
    "flatter": lambda image: np.rint(image * 0.6 + 30).astype(np.uint8),
    "equalised": cv2.equalizeHist,
    "clahe": lambda image: cv2.createCLAHE(2.0, (8, 8)).apply(image),
    "12 bits": lambda image: image.astype(np.uint16) * 13 + 200,
    "padded": padded,
    "cropped 1 %": cropped(0.01),
    "lettered": lettered,
    "noisy": noisy,
}


# Fingerprints


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    styles: list[phantom.Style] = ["shenzhen", "montgomery"]
    return [phantom.draw(seed, styles[seed % 2], 256)[0] for seed in range(6)]


def test_a_fingerprint_has_256_bits_and_is_deterministic(images: list[NDArray[np.uint8]]) -> None:
    for image in images:
        fingerprint = duplicates.fingerprint(image)
        assert len(fingerprint) == 64
        assert fingerprint == fingerprint.lower()
        assert fingerprint == duplicates.fingerprint(image.copy())
        assert 120 <= int(fingerprint, 16).bit_count() <= 128
    assert len({duplicates.fingerprint(image) for image in images}) == len(images)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change: str, images: list[NDArray[np.uint8]]) -> None:
    for original in images[:3]:
        changed = np.ascontiguousarray(CHANGES[change](original))
        assert bits(duplicates.fingerprint(original), duplicates.fingerprint(changed)) <= duplicates.MAX_HASH_DISTANCE
        details = [duplicates.extract_detail(prepare_image(image, SETTINGS)[0]) for image in (original, changed)]
        assert duplicates.correlate(*details) >= duplicates.MIN_CORRELATION


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_monotone_contrast_changes_keep_the_fingerprint(seed: int, shape: int) -> None:
    """Uses the resolution of the hash, so that no averaging of pixels interferes."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (64, 64)).astype(np.uint8)
    levels = np.sort(np.random.default_rng(shape).choice(65536, 256, replace=False)).astype(np.uint16)
    assert bits(duplicates.fingerprint(image), duplicates.fingerprint(levels[image])) == 0


@pytest.mark.parametrize("shape", [(32, 32), (33, 2000), (1, 1)])
def test_a_blank_image_correlates_with_no_other(shape: tuple[int, int], images: list[NDArray[np.uint8]]) -> None:
    blank = np.full(shape, 7, np.uint8)
    assert len(duplicates.fingerprint(blank)) == 64
    for other in (blank, images[0]):
        assert duplicates.correlate(duplicates.extract_detail(blank), duplicates.extract_detail(other)) == 0.0
        assert duplicates.correlate(duplicates.extract_detail(other), duplicates.extract_detail(blank)) == 0.0


@pytest.mark.parametrize(
    ("right", "down", "scale"), [(0, 0, 1.0), (6, 0, 1.0), (-5, 7, 1.0), (0, 0, 1.05), (2, -2, 0.95)]
)
def test_a_shifted_or_scaled_image_correlates(
    right: int, down: int, scale: float, images: list[NDArray[np.uint8]]
) -> None:
    detail, stranger = duplicates.extract_detail(images[0]), duplicates.extract_detail(images[2])
    offset = 63.5 * (1 - scale)
    moved = cv2.warpAffine(detail, np.array([[scale, 0, offset + right], [0, scale, offset + down]]), detail.shape)
    assert duplicates.correlate(detail, moved) > 0.9
    assert duplicates.correlate(stranger, moved) < duplicates.MIN_CORRELATION


# Pairs


def test_equal_grey_values_are_exact_pairs_with_the_first() -> None:
    rows = [
        row("b", "1", pixel_digest="x"),
        row("a", "2", pixel_digest="x"),
        row("a", "3"),
        row("a", "4", pixel_digest="x"),
    ]
    assert duplicates.find_pairs(rows, never) == [
        duplicates.Pair("a/2", "b/1", "exact", 0),
        duplicates.Pair("a/4", "b/1", "exact", 0),
    ]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("a", "1", "p"), ("a", "2", "p"), True),  # within a dataset, any id counts
        (("a", "1", "p7"), ("b", "2", "p7"), False),  # two hospitals with consecutive patient numbers
        (("a", "1", "00000012"), ("b", "2", "00000012"), False),
        (("a", "1", "patient00012"), ("b", "2", "patient00012"), False),
        (("a", "1", "4837261"), ("b", "2", "4837261"), True),  # a hospital number
        (("a", "1", "9f86d081884c7d65"), ("b", "2", "9f86d081884c7d65"), True),  # a keyed hash
        (("a", "4837261", "4837261"), ("b", "2", "4837261"), False),  # an id of the image, not of a patient
        (("a", "1", ""), ("a", "2", ""), False),
    ],
)
def test_same_patient_ids_across_datasets(
    first: tuple[str, str, str], second: tuple[str, str, str], same: bool
) -> None:
    rows = [{**row(dataset, image), "patient_id": patient} for dataset, image, patient in (first, second)]
    expected = [duplicates.Pair(f"{first[0]}/1", f"{second[0]}/2", "same_patient")] if same else []
    assert duplicates.find_pairs(rows, never) == expected


def test_a_large_group_is_paired_with_its_first_image() -> None:
    rows = [row(dataset, f"{i:03}", "9f86d081884c7d65") for dataset in "ab" for i in range(50)]
    pairs = duplicates.find_pairs(rows, never)
    assert len(pairs) == 99
    assert {pair.first for pair in pairs} == {"a/000", "b/000"}


def drawn_rows(
    images: list[NDArray[np.uint8]], dataset: str = "a"
) -> tuple[list[Row], Callable[[Row], NDArray[np.uint8]], Counter[str]]:
    rows = [row(dataset, str(i), phash=duplicates.fingerprint(image)) for i, image in enumerate(images)]
    read: Counter[str] = Counter()

    def reads(requested: Row) -> NDArray[np.uint8]:
        read[requested["image_id"]] += 1
        return prepare_image(images[int(requested["image_id"])], SETTINGS)[0]

    return rows, reads, read


def test_near_duplicates_are_found_and_read_once(images: list[NDArray[np.uint8]]) -> None:
    rows, read, counts = drawn_rows([*images, jpeg(60)(images[4]), gamma(0.7)(images[4]), cropped(0.03)(images[2])])
    pairs = duplicates.find_pairs(rows, read)
    assert {(pair.first, pair.second, pair.kind) for pair in pairs} == {
        ("a/4", "a/6", "near"),
        ("a/4", "a/7", "near"),
        ("a/6", "a/7", "near"),
        ("a/2", "a/8", "near"),
    }
    assert all(pair.correlation is not None and pair.correlation >= duplicates.MIN_CORRELATION for pair in pairs)
    assert all(
        pair.distance == bits(rows[int(pair.first[2:])]["phash"], rows[int(pair.second[2:])]["phash"]) for pair in pairs
    )
    assert set(counts.values()) == {1}
    assert duplicates.find_pairs(rows, read) == pairs


def test_a_row_without_a_hash_can_still_be_exact(images: list[NDArray[np.uint8]]) -> None:
    rows, _, _ = drawn_rows([images[0], images[0], images[0]])
    rows = [{**values, "phash": phash} for values, phash in zip(rows, ("", None, rows[0]["phash"]), strict=True)]
    assert duplicates.find_pairs(rows, never) == []
    assert len(duplicates.find_pairs([{**values, "pixel_digest": "x"} for values in rows], never)) == 2


def test_near_hashes_without_correlation_are_no_pair(images: list[NDArray[np.uint8]]) -> None:
    rows, read, counts = drawn_rows(images)
    assert duplicates.find_pairs([{**values, "phash": rows[0]["phash"]} for values in rows], read) == []
    assert len(counts) == len(rows)


def test_near_copies_are_found_beyond_the_wide_search(
    images: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "WIDE_SEARCH_IMAGES", 6)
    rows, read, _ = drawn_rows([*images, jpeg(60)(images[4]), cropped(0.03)(images[2])])
    assert bits(rows[2]["phash"], rows[7]["phash"]) > duplicates.MAX_HASH_DISTANCE
    assert [(pair.first, pair.second) for pair in duplicates.find_pairs(rows, read)] == [("a/4", "a/6")]


def test_appended_rows_change_no_pair(images: list[NDArray[np.uint8]]) -> None:
    rows, read, _ = drawn_rows([*images, jpeg(60)(images[4]), gamma(0.7)(images[4])])
    assert set(duplicates.find_pairs(rows[:7], read)) < set(duplicates.find_pairs(rows, read))


def test_counts_are_pairs_and_patients() -> None:
    names = {"a/3": "p1", "a/1": "p1", "a/2": "p1", "a/4": "p2", "a/5": "p2", "a/6": "p3"}
    rows = [row(*name.split("/"), patient) for name, patient in names.items()]
    pairs = duplicates.pairs_to_table(duplicates.find_pairs(rows, never)).to_pylist()
    counts = duplicates.count_duplicates(pairs)
    assert counts == {"exact": 0, "near": 0, "patients": 2}
    near = {"first": "a/1", "second": "a/6", "kind": "near"}
    assert duplicates.count_duplicates([*pairs, near, {**near, "kind": "exact"}]) == {
        "exact": 1,
        "near": 1,
        "patients": 2,
    }
    assert duplicates.describe_duplicates(counts, "out") == (
        "0 exact duplicate pairs and 0 near duplicate pairs, each taken for one patient; listed patients with several "
        "images: 2; the images of a pair or patient are always in the same fold: out/duplicates.parquet"
    )


# Tables


def test_the_pair_table_has_the_schema_version() -> None:
    pairs = [duplicates.Pair("a/1", "a/2", "near", 12, 0.95), duplicates.Pair("a/1", "b/2", "same_patient")]
    table = duplicates.pairs_to_table(pairs)
    assert table.schema.equals(duplicates.PAIRS, check_metadata=True)
    assert table.schema.metadata[b"lungseg.schema"] == str(SCHEMA).encode()
    assert [duplicates.Pair(**values) for values in table.to_pylist()] == pairs
    assert duplicates.pairs_to_table([]).num_rows == 0
    assert isinstance(table, pa.Table)


# Real X-rays


def real_rows(folder: Path, names: list[str]) -> list[Row]:
    """Rows of Shenzhen and Montgomery at 256 px; image_id is the file's path below the folder."""
    paths = [next(folder.glob(f"*/images/{name}.png")) for name in names]
    return [row("real", str(path), phash=duplicates.fingerprint(cv2.imread(str(path), 0))) for path in paths]


def bare(image: Grey) -> Grey:
    """Remove the black bars that made the image square."""
    rows, columns = (np.flatnonzero(image.mean(axis) > 3) for axis in (1, 0))
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def read_real(row: Row) -> NDArray[np.uint8]:
    return prepare_image(cv2.imread(row["image_id"], 0), SETTINGS)[0]


# By visual inspection: the same bones and the same lesion at two visits, under two patient numbers.
ONE_PERSON = [
    ("MCUCXR_0166_1", "MCUCXR_0170_1"),
    ("MCUCXR_0264_1", "MCUCXR_0313_1"),
    ("MCUCXR_0264_1", "MCUCXR_0316_1"),
    ("CHNCXR_0438_1", "CHNCXR_0646_1"),
    ("CHNCXR_0477_1", "CHNCXR_0605_1"),
]
# The nearest pairs that show two people by visual inspection.
TWO_PEOPLE = [
    ("CHNCXR_0003_0", "CHNCXR_0094_0"),
    ("CHNCXR_0149_0", "CHNCXR_0275_0"),
    ("CHNCXR_0225_0", "CHNCXR_0320_0"),
    ("CHNCXR_0321_0", "CHNCXR_0640_1"),
    ("CHNCXR_0445_1", "CHNCXR_0607_1"),
    ("MCUCXR_0058_0", "MCUCXR_0074_0"),
]


@pytest.mark.parametrize(
    ("names", "same"), [*((names, True) for names in ONE_PERSON), *((names, False) for names in TWO_PEOPLE)]
)
def test_two_visits_of_one_person_are_found(cxr256: Path, names: tuple[str, str], same: bool) -> None:
    assert [pair.kind for pair in duplicates.find_pairs(real_rows(cxr256, [*names]), read_real)] == ["near"] * same


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_real_x_rays_are_found(cxr256: Path, change: str) -> None:
    paths = sorted(cxr256.glob("*/images/*.png"))[::53]
    caught = 0
    for path in paths:
        original = bare(cv2.imread(str(path), 0))
        changed = np.ascontiguousarray(CHANGES[change](original))
        near = bits(duplicates.fingerprint(original), duplicates.fingerprint(changed)) <= duplicates.MAX_HASH_DISTANCE
        details = [duplicates.extract_detail(prepare_image(image, SETTINGS)[0]) for image in (original, changed)]
        caught += near and duplicates.correlate(*details) >= duplicates.MIN_CORRELATION
    assert caught >= len(paths) - 1
