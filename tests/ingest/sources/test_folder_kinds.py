"""Names of folders tell whether they hold X-rays, masks of lungs, or other masks."""

import re

import pytest

from lungseg.ingest.sources.folder_kinds import FolderKind, kind_of

LUNGS = """masks, Mask, MASKS_PNG, lung masks, Lung_Masks, lung-mask, lungmasks, labels, labelsTr, labelTs, seg, segs
segmentations, annotations, groundtruth, Ground Truth, gt, manual masks, masks_256, mask images, CXR masks
lung-segmentations, Label Maps, both lungs masks"""
OTHERS = """infection masks, Infection_Mask, lesion-masks, heart masks, masks heart, lung lesion masks, rib_labels
nodule segmentations, pneumothorax masks, lung_infection_masks, clavicle mask, tumour masks, GT lesions"""
NOTHING = """train, normal, COVID-19, heart, lungs, ward 3, 1.2.840.1, Shenzhen, labelled, 256, Lung Segmentation Data
masked"""


def names(text: str) -> list[str]:
    return re.split(r", |\n", text)


@pytest.mark.parametrize("name", names(LUNGS))
def test_masks_of_lungs_are_recognised(name: str) -> None:
    assert kind_of(name) == FolderKind("lungs")


@pytest.mark.parametrize("name", names(OTHERS))
def test_masks_of_other_structures_are_recognised(name: str) -> None:
    assert kind_of(name) == FolderKind("other")


@pytest.mark.parametrize("name", ["images", "Images", "CXR_png", "CXR PNG"])
def test_images_folders_are_recognised(name: str) -> None:
    assert kind_of(name) == FolderKind("images")


@pytest.mark.parametrize(
    "name", ["img", "xrays", "X-Ray", "cxr", "imagesTr", "chest_xrays", "radiographs", "image_png"]
)
def test_other_image_names_need_masks_beside_them(name: str) -> None:
    assert kind_of(name) == FolderKind("images", needs_sibling=True)


@pytest.mark.parametrize("name", ["Lung Segmentation", "segmentation", "annotation", "left lung", "vessel masks"])
def test_ambiguous_mask_names_need_images_beside_them(name: str) -> None:
    kind = kind_of(name)
    assert kind is not None
    assert kind.needs_sibling
    assert kind.content == ("other" if name == "vessel masks" else "lungs")


@pytest.mark.parametrize(
    ("name", "side"),
    [("leftMask", "leftmask"), ("right lung masks", "rightmask"), ("mask_left", "leftmask"), ("left and right", None)],
)
def test_side_of_a_mask_folder_is_recognised(name: str, side: str | None) -> None:
    kind = kind_of(name)
    assert (kind and kind.side) == side


@pytest.mark.parametrize("name", [*names(NOTHING), "", "1" * 250 + "x", "maskseg" * 30 + "x"])
def test_other_folder_names_tell_nothing(name: str) -> None:
    assert kind_of(name) is None
