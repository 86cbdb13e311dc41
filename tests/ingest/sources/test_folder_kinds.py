"""Names of folders tell whether they hold X-rays, masks of lungs, or other masks."""

import re

import pytest

from lungseg.ingest.sources.folder_kinds import FolderKind, kind_of, label_class

LUNGS = """masks, Mask, MASKS_PNG, lung masks, Lung_Masks, lung-mask, lungmasks, labels, labelsTr, labelTs, seg, segs
segmentations, annotations, groundtruth, Ground Truth, gt, manual masks, masks_256, mask images, CXR masks
lung-segmentations, Label Maps, both lungs masks, annos, lbl, etiquetas, anotações, Segmentierungen, segmentações
маски легких, разметка, マスク, 肺マスク, 掩码, 标注, 标签_png, 肺野標籤, 마스크, 폐 마스크"""
OTHERS = """infection masks, Infection_Mask, lesion-masks, heart masks, masks heart, lung lesion masks, rib_labels
nodule segmentations, pneumothorax masks, vessel masks
lung_infection_masks, clavicle mask, tumour masks, GT lesions"""
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


@pytest.mark.parametrize("name", ["Lung Segmentation", "segmentation", "annotation", "left lung", "reader A masks"])
def test_ambiguous_mask_names_need_images_beside_them(name: str) -> None:
    kind = kind_of(name)
    assert kind is not None
    assert kind.needs_sibling
    assert kind.content == "lungs"


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


@pytest.mark.parametrize(
    "name",
    names("""images_without_masks, no_masks, no-mask, nomasks, patients with masks, withoutMasks, not segmented
sans masques, xrays_wo_masks, imagesNoMasks, xrays for masks
images removal of masks, masks removed, non masks, ohne Masken, images with lung masks"""),
)
def test_negated_masks_are_no_masks(name: str) -> None:
    assert kind_of(name) is None


@pytest.mark.parametrize(
    "name",
    names("""consensus_masks, dr smith masks, unet_masks, radiologist2_masks, reader_A_masks, masks_reader_B
Yamada masks, labels v2.1 observerX"""),
)
def test_masks_with_an_unknown_word_are_of_lungs(name: str) -> None:
    assert kind_of(name) == FolderKind("lungs", needs_sibling=True, is_guess=True)


@pytest.mark.parametrize("name", ["reader A heart masks", "infectedhalo_masks", "dr smith nodules masks"])
def test_unknown_words_beside_a_structure_are_other_masks(name: str) -> None:
    assert kind_of(name) == FolderKind("other", needs_sibling=True)


@pytest.mark.parametrize(
    "name",
    ["lung masks without heart", "no finding masks", "non-COVID lung masks", "COVID-19 lung masks", "TB lung masks"],
)
def test_lung_masks_of_some_patients_are_of_lungs(name: str) -> None:
    assert kind_of(name) == FolderKind("lungs")


LABELS = {
    "lung": """Lunge, Lung_L, R Lung, poumon droit, poumon gauche, pulmão, Pulmões, pulmón derecho, polmone sinistro
左肺, 肺, linke Lunge, płuco, 폐, healthy_lung, left upper lobe, right, lungs_mask""",
    "lesion": "covid_lesion, infected_lung, GGO, consolidation, lung nodule, Opacity, infectedArea, Läsion, infección",
    "other": "trachea, rib, pleural effusion, pneumothorax, vessels",
    "": "class_2, target, not lung, non_lung, ignore",
}


@pytest.mark.parametrize(("expected", "name"), [(kind, name) for kind, text in LABELS.items() for name in names(text)])
def test_labels_are_understood(expected: str, name: str) -> None:
    assert label_class(name, is_only=False) == expected


@pytest.mark.parametrize("name", ["target", "class_1", "foreground", "mask", "Lungenmaske", "object"])
def test_only_label_with_an_unknown_name_is_lung(name: str) -> None:
    assert label_class(name, is_only=True) == "lung"


@pytest.mark.parametrize("name", ["infection", "trachea", "heart", "outside: not lung", "covid_region"])
def test_only_label_of_something_else_is_not_lung(name: str) -> None:
    assert label_class(name, is_only=True) != "lung"
