"""Datasets of nnU-Net and of the Medical Segmentation Decathlon are recognised."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lungseg.arrays import U8
from lungseg.errors import InputError
from lungseg.ingest import record_checks, sources
from lungseg.ingest.sources.nnunet_json import read_labels
from tests.conftest import DrawPair
from tests.ingest.sources.archive_files import fill, masks_by_id

ROOT = "Dataset101_Lungs"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def dataset(tmp_path: Path, labels: Any = None, suffix: str = ".png") -> Path:
    names = [f"imagesTr/c{number}_0000{suffix}" for number in range(4)] + [f"imagesTs/t0_0000{suffix}"]
    fill(tmp_path / "raw" / ROOT, *names, *(f"labelsTr/c{number}{suffix}" for number in range(4)))
    content = {"labels": labels or {"background": 0, "lung": 1}, "file_ending": suffix}
    write_json(tmp_path / "raw" / ROOT / "dataset.json", content)
    return tmp_path / "raw"


@pytest.mark.parametrize("below", ["", ROOT])
def test_images_and_labels_are_matched(below: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path) / below
    prefix = "" if below else f"{ROOT}/"
    found = masks_by_id(folder, sources.discover(str(folder)))
    assert found == {
        **{("dataset101_lungs", f"c{number}"): (f"{prefix}labelsTr/c{number}.png",) for number in range(4)},
        ("dataset101_lungs_test", "t0"): (),
    }


def test_names_of_the_decathlon_have_no_channel(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "Task01", *(f"{kind}/x_{n}.png" for kind in ("imagesTr", "labelsTr") for n in (2020, 2021))
    )
    write_json(folder / "dataset.json", {"labels": {"0": "background", "1": "lung"}})
    records = sources.discover(str(folder))
    assert [(record.image_id, record.mask_values) for record in records] == [("x_2020", ("1",)), ("x_2021", ("1",))]


@pytest.mark.parametrize(
    ("labels", "kinds", "values"),
    [
        ({"background": 0, "right": 1, "left": 2}, ["lung"], ["1,2"]),
        ({"0": "background", "1": "Left Lung", "2": "heart", "3": "right_lung"}, ["lung", "heart"], ["1,3", "2"]),
        ({"background": 0, "lungs": [1, 2], "nodule": 2}, ["lung", "lesion"], ["1,2", "2"]),
        ({"background": 0, "healthy lung": 1, "infected_lung": 4}, ["lung", "lesion"], ["1,4", "4"]),
        ({"background": 0, "target": 1, "ignore": 2}, ["lung", "ignored"], ["1", "2"]),
        ({"background": 0, "lung": 1, "class_2": 2, "rib": 3}, ["lung", "ignored"], ["1", "2"]),
        ({"background": 0, "foreground": 255}, ["lung"], ["255"]),
        ({"background": 0, "lung": 1, "lung lesion": 2, "ignore": 3}, ["lung", "ignored", "lesion"], ["1,2", "3", "2"]),
        ({"background": 0, "infection": 1}, [], []),
    ],
)
def test_labels_name_the_values_of_lungs(labels: Any, kinds: list[str], values: list[str], tmp_path: Path) -> None:
    write_json(tmp_path / "dataset.json", {"labels": labels})
    found = read_labels(str(tmp_path / "dataset.json"))
    assert ([label.kind for label in found], [label.values for label in found]) == (kinds, values)


def test_other_labels_are_no_lungs(tmp_path: Path, draw_pair: DrawPair) -> None:
    folder = dataset(tmp_path, {"background": 0, "right": 1, "left": 2, "heart": 3})
    image, mask = draw_pair(1, 128, 128)
    label: U8 = mask.copy()
    label[:, 64:] *= np.uint8(2)
    label[90:100, 60:68] = 3
    for number in range(4):
        cv2.imwrite(str(folder / ROOT / "imagesTr" / f"c{number}_0000.png"), image)
        cv2.imwrite(str(folder / ROOT / "labelsTr" / f"c{number}.png"), label)
    record = sources.discover(str(folder))[0]
    opened, _, lungs = record_checks.open_record(record)
    assert opened.status == "ok"
    assert lungs is not None
    assert (lungs[0] == np.isin(label, (1, 2))).all()


def test_label_without_the_named_value_is_rejected(tmp_path: Path, draw_pair: DrawPair) -> None:
    folder = dataset(tmp_path)
    image, mask = draw_pair(1, 128, 128)
    cv2.imwrite(str(folder / ROOT / "imagesTr" / "c0_0000.png"), image)
    cv2.imwrite(str(folder / ROOT / "labelsTr" / "c0.png"), mask * np.uint8(255))
    opened, _, _ = record_checks.open_record(sources.discover(str(folder))[0])
    assert opened.codes == ("mask_levels",)
    assert "has the grey values 0, 255, but its dataset.json says 1 for lung" in opened.message


def test_folds_of_the_splits_are_kept(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    splits = [{"train": ["c1", "c2"], "val": ["c0"]}, {"train": ["c0", "c2"], "val": ["c1"]}]
    write_json(folder / ROOT / "splits_final.json", splits)
    assert [record.fold for record in sources.discover(str(folder))] == [0, 1, -1, None, None]


@pytest.mark.parametrize("splits", [{"train": []}, [{"val": ["c0"]}], [1], [{"train": [], "val": ["c0"]}] * 2])
def test_damaged_splits_are_refused(splits: Any, tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    write_json(folder / ROOT / "splits_final.json", splits)
    with pytest.raises(InputError, match=r"splits_final\.json: .*correct"):
        sources.discover(str(folder))


@pytest.mark.parametrize("content", ["{", '{"labels": ["lung"]}', "[]", "{}"])
def test_damaged_dataset_json_is_refused(content: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    (folder / ROOT / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json: "):
        sources.discover(str(folder))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_volumes_are_rejected_with_a_reason(suffix: str, tmp_path: Path) -> None:
    records = sources.discover(str(dataset(tmp_path, suffix=suffix)))
    assert [record.codes for record in records] == [("undecodable",)] * 5
    assert f"c0_0000{suffix} is in a format for volumes that lungseg does not read" in records[0].message


def test_further_channels_are_rejected(tmp_path: Path) -> None:
    folder = fill(dataset(tmp_path), f"{ROOT}/imagesTr/c0_0001.png")
    extra = [record for record in sources.discover(str(folder)) if not record.usable]
    assert [(record.image_id, record.codes) for record in extra] == [("c0_0001", ("extra_channel",))]


def test_the_given_dataset_is_recognised(pytestconfig: pytest.Config) -> None:
    folder = (pytestconfig.rootpath / ".." / "shared" / "cases" / "nnunet-dataset").resolve()
    if not folder.is_dir():
        pytest.skip(f"the example is not at hand: no folder {folder}")
    opened = [record_checks.open_record(record)[0] for record in sources.discover(str(folder))]
    assert [record.usable for record in opened] == [True] * 6
    assert [record.mask_area is not None for record in opened] == [True] * 4 + [False] * 2


def draw_labels(folder: Path, draw_pair: DrawPair, value: int) -> None:
    """Draw lungs with the value 1, and a part of them with another value in the first case."""
    image, mask = draw_pair(1, 128, 128)
    for number in range(4):
        cv2.imwrite(str(folder / ROOT / "imagesTr" / f"c{number}_0000.png"), image)
        label = mask.copy()
        if number == 0:
            label[:70][label[:70] > 0] = value
        cv2.imwrite(str(folder / ROOT / "labelsTr" / f"c{number}.png"), label)


def test_lesions_are_part_of_the_lungs(tmp_path: Path, draw_pair: DrawPair) -> None:
    folder = dataset(tmp_path, {"background": 0, "lung": 1, "GGO": 2})
    draw_labels(folder, draw_pair, 2)
    opened = [record_checks.open_record(record) for record in sources.discover(str(folder))[:2]]
    assert [record.codes for record, _, _ in opened] == [("lesions_joined",), ()]
    masks = [mask for _, _, mask in opened if mask is not None]
    assert np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("name", ["ignore", "class_2"])
def test_pixels_of_ignored_labels_are_flagged(name: str, tmp_path: Path, draw_pair: DrawPair) -> None:
    folder = dataset(tmp_path, {"background": 0, "lung": 1, name: 3})
    draw_labels(folder, draw_pair, 3)
    records = sources.discover(str(folder))
    opened = [record_checks.open_record(record)[0] for record in records[:2]]
    assert ["mask_ignored_labels" in record.flags for record in opened] == [True, False]
    assert record_checks.open_record(records[0], odd_masks="reject")[0].codes[0] == "mask_ignored_labels"


@pytest.mark.parametrize("labels", [{"background": 0, "infection": 1}, {"background": 0, "class_1": 1, "class_2": 2}])
def test_label_files_without_lungs_are_counted(labels: Any, tmp_path: Path) -> None:
    records = sources.discover(str(dataset(tmp_path, labels)))
    assert [record.flags for record in records if record.usable] == [("no_mask",)] * 4 + [()]
    assert [record.codes for record in records if not record.usable] == [("other_mask",)] * 4


def test_cases_of_splits_may_be_file_names(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    splits = [{"train": ["c1.png", "labelsTr/c2.PNG"], "val": ["imagesTr/c0_0000.png"]}]
    write_json(folder / ROOT / "splits_final.json", splits)
    assert [record.fold for record in sources.discover(str(folder))] == [0, -1, -1, None, None]


@pytest.mark.parametrize("trained", ["c1", "c1.png"])
def test_case_in_train_and_val_is_refused(trained: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    write_json(
        folder / ROOT / "splits_final.json", [{"train": ["c2"], "val": ["c3"]}, {"train": [trained], "val": ["c1"]}]
    )
    with pytest.raises(InputError, match="c1 is in train and in val of fold 1"):
        sources.discover(str(folder))
