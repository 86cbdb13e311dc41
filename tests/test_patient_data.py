"""No value of a patient or study element is in any output, except in DICOM segmentations."""

import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.datadict import DicomDictionary

from lungseg import storage
from lungseg.config import ExportSettings, PostprocessSettings, PreprocessSettings, command_line
from lungseg.config.recipes import Job
from lungseg.export.writers import export_part
from lungseg.imaging import phantom
from lungseg.imaging.dicom.pseudonym import pseudonym
from lungseg.imaging.dicom.segmentation import encode_segmentation
from lungseg.inference.inputs import with_stats
from lungseg.inference.items import Item, Prediction, open_item
from lungseg.inference.rows import make_row
from lungseg.ingest import sources
from lungseg.ingest.file_names import short_digest
from lungseg.predictions.parts import part_path, read_part
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.prepare.shard_writer import write_shard
from tests.export.prediction_files import replace_part
from tests.imaging.dicom.dicom_files import write_dicom

KEY = b"k" * 32
SHAPE = (96, 96)
_NAMES = """
StudyDate SeriesDate AcquisitionDate ContentDate StudyTime SeriesTime AcquisitionTime ContentTime AccessionNumber
InstitutionName InstitutionAddress ReferringPhysicianName StationName StudyDescription SeriesDescription
PhysiciansOfRecord PerformingPhysicianName NameOfPhysiciansReadingStudy OperatorsName AdmittingDiagnosesDescription
StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID StudyID ImageComments RequestingPhysician
RequestedProcedureDescription ProtocolName DeviceSerialNumber BodyPartExamined ViewPosition Modality
"""
STUDY = _NAMES.split()
_JOINS = """
PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID
AccessionNumber FrameOfReferenceUID
"""
JOINS = _JOINS.split()
TEXTS = ("CS", "DA", "TM", "AS", "UI", "PN", "LO", "SH", "ST", "LT", "UT", "UC", "DT")
VALID = {"DA": "1953112{}", "TM": "03133{}.777", "UI": "1.2.3.77{}", "DT": "1953112{}031337"}


def identifying() -> dict[str, str]:
    """Return the patient elements of the standard that hold text, and those of STUDY, with their kind of value."""
    patient = {
        entry[4]: entry[0]
        for tag, entry in DicomDictionary.items()
        if tag >> 16 == 0x0010 and entry[0] in TEXTS and entry[4]
    }
    kinds = {entry[4]: entry[0] for entry in DicomDictionary.values()}
    return patient | {name: kinds[name] for name in STUDY}


def canaries(form: str) -> dict[str, str]:
    """Return a unique value for each element, of valid or invalid form."""
    values = {}
    for number, (name, kind) in enumerate(identifying().items()):
        invalid = f"canary{number:03d}"
        values[name] = VALID.get(kind, "CANARY{}").format(number) if form == "valid" else invalid
    if form == "valid":
        counted = [name for name, kind in identifying().items() if kind in ("DA", "TM", "DT")]
        for number, name in enumerate(counted):
            values[name] = {"D": f"195311{number % 28 + 1:02d}", "T": f"0313{number % 60:02d}.777"}[
                "T" if identifying()[name] == "TM" else "D"
            ]
        values |= {"PatientSex": "F", "PatientAge": "071Y", "Modality": "DX", "BodyPartExamined": "CHEST"}
        values["ViewPosition"] = "PA"
    else:
        values["Modality"] = "DX"
    return values


@pytest.fixture(params=["valid", "invalid"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lenient_pydicom() -> Iterator[None]:
    """Let pydicom write any value, as the devices of the field do."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    yield
    config.settings.writing_validation_mode = before


@pytest.fixture
def archive(form: str, tmp_path: Path, lenient_pydicom: None) -> Path:
    """One good image with canaries; one without UIDs, one lateral, one truncated, and one with damaged pixels."""
    folder = tmp_path / "films"
    folder.mkdir()
    image, _ = phantom.draw(5, "montgomery", SHAPE[0])
    pixels = image.astype(np.uint16) * 16
    tags: dict[str, Any] = canaries(form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        references = {"StudyInstanceUID": "1.2.3.771", "SeriesInstanceUID": "1.2.3.772", "SOPInstanceUID": "1.2.3.773"}
        good = write_dicom(pixels, **(tags | references))
        contents = {
            "good": good,
            "odd_uids": write_dicom(pixels, **tags),
            "lateral": write_dicom(pixels, **(tags | {"ViewPosition": "LL"})),
            "hand": write_dicom(pixels, **(tags | {"BodyPartExamined": "HAND canary999"})),
            "truncated": good[: len(good) // 2],
            "no_rows": write_dicom(pixels, **(tags | {"Rows": None})),
        }
    for name, content in contents.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return folder


def forbidden(form: str) -> set[str]:
    """Return what must not appear: every canary, but no value that is a plain word or a group."""
    values = set(canaries(form).values()) | {"1.2.3.771", "1.2.3.772", "1.2.3.773", "canary999"}
    return values - {"F", "071Y", "DX", "CHEST", "PA"}


def written(folder: Path) -> str:
    """Return the content of all files in a folder as text, except DICOM segmentations."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            table = storage.read_table(str(path))
            texts.append(f"{table.schema.metadata} {table.to_pylist()}")
        elif path.is_file() and path.suffix != ".dcm":
            texts.append(path.read_bytes().decode("latin_1"))
    return "\n".join([*texts, *(str(path) for path in folder.rglob("*"))])


def leaks(text: str, form: str) -> list[str]:
    return [value for value in forbidden(form) if value.lower() in text.lower()]


def prepare(archive: Path, prepared: Path, key: bytes | None) -> None:
    plans = plan_shards(sources.discover(str(archive)), str(prepared), PreprocessSettings(size=64))
    dataset_writer.begin_datasets(plans)
    for plan in plans:
        write_shard(plan, key)
    dataset_writer.finish_dataset(plans)


def predict(archive: Path, out: Path, key: bytes | None) -> None:
    """Write predictions of an archive with a drawn mask."""
    records = sources.discover(str(archive))
    stats = {uri: storage.try_stat(uri) for record in records for uri in (record.image_uri,)}
    rows = []
    for item in with_stats([Item(record) for record in records], stats):
        opened = open_item(item, PreprocessSettings(size=64), key)
        probability = np.zeros((64, 64), np.float32)
        probability[10:50, 5:28] = probability[10:50, 36:60] = 1
        prediction = Prediction(probability[None], 1, False) if opened.square is not None else None
        rows.append(make_row(opened, prediction, {"threshold": 0.5, "model": "feed"}, PostprocessSettings()))
    replace_part(out, 0, rows)


@pytest.mark.parametrize("key", [None, KEY], ids=["no-key", "key"])
def test_no_output_has_a_value_of_a_patient(
    key: bytes | None,
    form: str,
    archive: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    prepared, predictions, out = (tmp_path / name for name in ("prepared", "predictions", "out"))
    prepare(archive, prepared, key)
    predict(archive, predictions, key)
    part = part_path(str(predictions), 0)
    settings = ExportSettings(formats=("masks", "overlays", "coco", "dicom-seg"))
    exported = export_part({"part": json.dumps({"path": part, "rows": None})}, settings, str(out))
    terminal = capfd.readouterr()
    statuses = {row["image_id"]: row["status"] for row in read_part(part).to_pylist()}
    assert statuses["good"] in ("ok", "repaired")
    assert statuses["lateral"] == "rejected"
    for text in (written(prepared), written(predictions), written(out)):
        assert leaks(text, form) == []
    assert leaks(exported["result"], form) == []
    assert leaks(terminal.out + terminal.err + caplog.text, form) == []


@pytest.mark.parametrize("key", [None, KEY], ids=["no-key", "key"])
def test_patient_of_a_dicom_file_is_a_pseudonym_or_nothing(key: bytes | None, archive: Path, tmp_path: Path) -> None:
    """Names of DICOM files often consist of UIDs, so the image id never stands for the patient."""
    (archive / "good.dcm").rename(archive / "1.2.840.5")  # no suffix, as in many archives
    shutil.copy(archive / "1.2.840.5", archive / "misnamed.png")
    prepared, predictions = tmp_path / "prepared", tmp_path / "predictions"
    prepare(archive, prepared, key)
    predict(archive, predictions, key)
    manifest = storage.read_table(str(next(prepared.rglob("manifest.parquet")))).to_pylist()
    rows = read_part(part_path(str(predictions), 0)).to_pylist()
    read = {row["image_id"]: row["patient_id"] for row in manifest if row["status"] in ("ok", "repaired")}
    assert set(read) >= {"1_2_840_5-" + short_digest("1.2.840.5"), "misnamed"}
    patient = str(pydicom.dcmread(archive / "misnamed.png").PatientID)
    expected = pseudonym(patient, key) if key else ""
    assert set(read.values()) == {expected}
    assert {row["patient_id"] for row in manifest} <= {expected, ""}
    assert {row["patient_id"] for row in rows} <= {expected, ""}


def test_segmentation_keeps_valid_values_only(form: str, archive: Path, tmp_path: Path) -> None:
    predict(archive, tmp_path / "predictions", None)
    part = part_path(str(tmp_path / "predictions"), 0)
    item = {"part": json.dumps({"path": part, "rows": None})}
    export_part(item, ExportSettings(formats=("dicom-seg",), include_doubtful=True), str(tmp_path / "out"))
    result = pydicom.dcmread(next((tmp_path / "out").rglob("good.dcm")))
    expected = canaries(form)
    assert str(result.PatientName) == expected["PatientName"]
    assert result.PatientID == expected["PatientID"]
    assert result.PatientBirthDate == (expected["PatientBirthDate"] if form == "valid" else "")
    assert result.StudyInstanceUID == "1.2.3.771"


def test_segmentation_has_only_the_documented_elements(form: str, archive: Path) -> None:
    masks = {"left_lung": np.ones(SHAPE, np.uint8)}
    encoded = encode_segmentation((archive / "good.dcm").read_bytes(), masks, "feed", "good.dcm")
    result = pydicom.dcmread(io.BytesIO(encoded))
    values = {str(element.value) for element in result.iterall() if element.VR != "SQ"}
    carried = {name for name, value in canaries(form).items() if value in forbidden(form) & values}
    free_text = {"PatientName", "PatientID", "IssuerOfPatientID", "StudyID", "AccessionNumber"}
    documented = {*JOINS} if form == "valid" else free_text
    assert carried == documented - {"PatientSex", "StudyInstanceUID"}
    in_patient_group = {element.keyword for element in result if element.tag.group == 0x0010}
    assert in_patient_group == {name for name in JOINS if name.startswith(("Patient", "Issuer"))}
    page = (Path(__file__).parents[1] / "docs" / "inference.md").read_text()
    assert [name for name in JOINS if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("job", "rule"), [("prepare", "DICOM needs it"), ("infer", "rows of DICOM files have no")])
def test_help_states_what_happens_without_a_key(job: Job, rule: str) -> None:
    text = " ".join(command_line.help_text(job, ["--help"]).split())
    assert "turns patient ids of DICOM files and listings into pseudonyms" in text
    assert rule in text
