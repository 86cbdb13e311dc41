import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, RLELossless

from lungseg.config import ListingColumns, PrepareSettings, PreprocessSettings
from lungseg.dataset import catalog
from lungseg.dataset.sample_reader import SampleReader
from lungseg.errors import InputError, SettingsError, ShardError
from lungseg.ingest import record_checks, sources
from lungseg.pipelines import prepare
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.storage import read_table
from lungseg.training import study_data
from tests.imaging.dicom.dicom_files import coded

DrawPair = Callable[[int, int, int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
SMALL = PreprocessSettings(size=64)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def test_cluster_writes_what_one_process_writes(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(source=str(archive), out=str(tmp_path / "ray"), preprocess=SMALL, images_per_shard=3)
    prepare.run(settings)
    plans = plan_shards(
        record_checks.reject_duplicate_ids(sources.discover(str(archive))),
        str(tmp_path / "alone"),
        SMALL,
        images_per_shard=3,
    )
    dataset_writer.write_datasets(plans)
    tars = _bytes(tmp_path / "ray")
    assert tars
    assert tars == _bytes(tmp_path / "alone")
    for name in ("dataset.json", "index.parquet"):
        for path in (tmp_path / "ray").rglob(name):
            assert path.read_bytes() == (tmp_path / "alone" / path.relative_to(tmp_path / "ray")).read_bytes()


def test_second_start_repairs_only_damaged_tars(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    settings = PrepareSettings(source=str(archive), out=str(tmp_path), preprocess=SMALL, images_per_shard=3)
    prepare.run(settings)
    before, tars = _bytes(tmp_path), sorted(tmp_path.rglob("*.tar"))
    untouched = {path: path.stat().st_mtime_ns for path in tars[1:]}
    tars[0].write_bytes(tars[0].read_bytes()[:1024])
    prepare.run(settings)
    assert _bytes(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tars[1:]} == untouched


def test_broken_inputs_become_rejected_rows(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    images = sorted(own_archive.rglob("images/*"))
    images[0].write_bytes(b"not a picture")
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[2].write_bytes(b"")
    prepare.run(PrepareSettings(source=str(own_archive), out=str(tmp_path), preprocess=SMALL))
    rows = [row for path in sorted(tmp_path.rglob("manifest.parquet")) for row in read_table(str(path)).to_pylist()]
    assert len(rows) == len(images)
    assert sum(row["status"] == "rejected" and row["codes"] == ["undecodable"] for row in rows) == 3
    counts = [json.loads(path.read_text())["counts"] for path in tmp_path.rglob("dataset.json")]
    assert sum(sum(count.values()) for count in counts) == len(images)


def test_images_and_masks_in_any_two_folders(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    folder = next(path.parent for path in sorted(archive.rglob("images")))
    settings = PrepareSettings(
        images=str(folder / "images"), masks=str(folder / "masks"), dataset="pair", out=str(tmp_path), preprocess=SMALL
    )
    prepare.run(settings)
    info = json.loads((tmp_path / "pair" / "dataset.json").read_text())
    assert info["samples"] == info["with_mask"] == len(list((folder / "images").iterdir()))


def test_phantoms_are_drawn(ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lungseg"):
        prepare.run(PrepareSettings(phantoms=2, out=str(tmp_path), preprocess=SMALL))
    assert caplog.messages[-1] == f"next: lungseg train demo --data {tmp_path}"
    datasets = sorted(json.loads(path.read_text())["dataset"] for path in tmp_path.glob("*/dataset.json"))
    assert datasets == ["phantom-montgomery", "phantom-shenzhen"]


def test_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="pass --source FOLDER"):
        prepare.run(PrepareSettings(out=str(tmp_path)))


def test_unwritable_output_is_one_error(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written") as raised:
        prepare.run(PrepareSettings(source=str(archive), out=str(tmp_path / "file"), preprocess=SMALL))
    assert "\n" not in str(raised.value)


# DICOM and patient data


def _words(folder: Path) -> str:
    """Return the content of all files as text; Parquet is decoded first."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts.append(f"{table.schema.metadata} {table.to_pylist()}")
        elif path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def test_dicom_codings_agree_and_leak_no_patient_data(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("RG1_UNCR", "RG1_J2KR"):
        shutil.copy(get_testdata_file(f"{name}.dcm"), archive / f"{name}.dcm")
    for name, coding in (("RG1_RLE", RLELossless), ("RG1_JLS", JPEGLSLossless)):
        (archive / f"{name}.dcm").write_bytes(coded((archive / "RG1_UNCR.dcm").read_bytes(), coding))
    monkeypatch.setenv("LUNGSEG_PATIENT_KEY", "a secret of thirty-two letters..")
    prepare.run(PrepareSettings(source=str(archive), out=str(tmp_path / "out"), preprocess=SMALL))
    rows = read_table(str(tmp_path / "out" / "archive" / "manifest.parquet")).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4, rows
    assert len({row["pixel_digest"] for row in rows}) == 1
    assert len({row["patient_id"] for row in rows}) == 1
    assert (rows[0]["height"], rows[0]["width"], rows[0]["view"]) == (1955, 1841, "PA")
    pairs = read_table(str(tmp_path / "out" / "duplicates.parquet")).to_pylist()
    assert [pair["kind"] for pair in pairs if pair["kind"] != "same_patient"] == ["exact"] * 3
    dataset = pydicom.dcmread(archive / "RG1_UNCR.dcm")
    names = ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "AccessionNumber", "StudyInstanceUID")
    secrets = [str(dataset[name].value) for name in names if name in dataset and str(dataset[name].value)]
    secrets += [part for secret in secrets for part in secret.split("^") if len(part) > 3]
    assert {str(dataset.PatientName), str(dataset.InstitutionName), str(dataset.PatientBirthDate)} <= set(secrets)
    # Check of the test itself: the input contains each of them.
    input_text = _words(archive).lower()
    assert all(secret.lower() in input_text for secret in secrets)
    output = (_words(tmp_path / "out") + "".join(capfd.readouterr())).lower()
    assert [secret for secret in secrets if secret.lower() in output] == []
    assert "a secret of thirty-two letters" not in output


def test_dicom_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUNGSEG_PATIENT_KEY", raising=False)
    shutil.copy(get_testdata_file("RG1_UNCR.dcm"), tmp_path / "IM0001")
    settings = PrepareSettings(source=str(tmp_path), out=str(tmp_path / "out"))
    with pytest.raises(SettingsError, match=r"IM0001: DICOM files identify patients.*--patient-key KEYFILE"):
        prepare.run(settings)
    assert not (tmp_path / "out").exists()


def test_listing_names_masks_patients_and_datasets(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    lines = ["path,lungs,who,site,label"]
    for number, path in enumerate(sorted(archive.rglob("images/*.png"))):
        mask = path.parent.parent / "masks" / path.name
        lines.append(f"{path},{mask},P{number // 2},{'a' if number < 5 else 'b'},{number % 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    columns = ListingColumns(image="path", masks=("lungs",), patient_id="who", dataset="site", finding="label")
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    settings = PrepareSettings(
        listing=str(tmp_path / "list.csv"),
        columns=columns,
        out=str(tmp_path / "out"),
        preprocess=SMALL,
        patient_key=str(key),
    )
    prepare.run(settings)
    rows = [row for name in "ab" for row in read_table(str(tmp_path / "out" / name / "index.parquet")).to_pylist()]
    assert len(rows) == 8
    assert len({row["patient_id"] for row in rows}) == 4
    assert not any(row["patient_id"].startswith("P") for row in rows)
    assert {row["finding"] for row in rows} == {"0", "1"}


def test_grey_levels_are_matched_to_references(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    match = PreprocessSettings(size=64, histogram="match")
    settings = PrepareSettings(
        source=str(archive), out=str(tmp_path), preprocess=match, match_to=str(archive / "north" / "images")
    )
    prepare.run(settings)
    info = json.loads((tmp_path / "south" / "dataset.json").read_text())
    assert len(info["preprocess"]["landmarks"]) == 11
    with pytest.raises(SettingsError, match="--match-to is for"):
        prepare.run(settings.model_copy(update={"preprocess": SMALL}))
    with_landmarks = match.model_copy(update={"landmarks": tuple(float(level) for level in range(11))})
    with pytest.raises(SettingsError, match=r"--match-to computes landmarks .*: pass one of them"):
        prepare.run(settings.model_copy(update={"preprocess": with_landmarks}))


def test_broken_references_are_skipped(
    ray_cluster: None, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    match = PreprocessSettings(size=64, histogram="match")
    settings = PrepareSettings(source=str(archive), out=str(tmp_path / "out"), preprocess=match)
    good, mixed, broken = archive / "south" / "images", tmp_path / "mixed", tmp_path / "broken"
    shutil.copytree(good, mixed)
    broken.mkdir()
    for folder in (mixed, broken):
        for number in range(4):
            (folder / f"a{number}.png").write_bytes(b"no picture")
        Image.fromarray(np.full((64, 64), 7, np.uint8)).save(folder / "z.png")
    prepare.run(settings.model_copy(update={"match_to": str(mixed)}))
    tars = [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.tar"))]
    warnings = [line for line in caplog.messages if "not used for landmarks" in line]
    assert len(warnings) == 4
    assert warnings[0].startswith("not used for landmarks: a0.png")
    assert warnings[3] == "2 more of 8 images not used for landmarks"
    prepare.run(settings.model_copy(update={"match_to": str(good)}))
    assert [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.tar"))] == tars
    for reference, first in (
        (broken, "a0"),
        (broken / "z.png", "z.png has one grey value"),
    ):
        with pytest.raises(InputError, match=rf"{reference}: none of \d images? is usable: {first}"):
            prepare.run(settings.model_copy(update={"match_to": str(reference)}))


def test_masks_of_other_classes_only_are_refused(archive: Path, tmp_path: Path) -> None:
    heart = PreprocessSettings(size=64, classes=("heart",))
    settings = PrepareSettings(source=str(archive), out=str(tmp_path / "out"), preprocess=heart)
    with pytest.raises(
        InputError, match=r"masks of lung, --preprocess\.classes requests heart: .*classes lung, or add"
    ):
        prepare.run(settings)
    (tmp_path / "list.csv").write_text(f"image,h\n{archive}/north/images/north_00.png,h.png\n")
    columns, listing = ListingColumns(masks=("heart=h",)), str(tmp_path / "list.csv")
    changed = {"source": "", "listing": listing, "columns": columns, "preprocess": SMALL}
    with pytest.raises(InputError, match=r"masks of heart, .*classes heart, or add masks of lung"):
        prepare.run(settings.model_copy(update=changed))
    assert not (tmp_path / "out").exists()


def test_class_without_any_mask_is_reported(
    ray_cluster: None, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = PreprocessSettings(size=64, classes=("lung", "heart"))
    prepare.run(PrepareSettings(source=str(archive), out=str(tmp_path), preprocess=both))
    assert (
        "the archive has masks of lung, not of heart: not annotated, so neither trained on nor tested here"
        in caplog.text
    )


def test_several_classes_are_stored_and_may_overlap(ray_cluster: None, draw_pair: DrawPair, tmp_path: Path) -> None:
    for number in range(2):
        image, mask = draw_pair(number, 160, 160)
        name = f"JPCLN{number + 1:03d}"
        left = np.arange(160) < 80
        files = {
            f"All247images/{name}.png": image,
            f"scratch/fold1/masks/left lung/{name}.gif": mask * ~left * 255,
            f"scratch/fold1/masks/right lung/{name}.gif": mask * left * 255,
            f"scratch/fold1/masks/heart/{name}.gif": np.roll(mask * left * 255, 30, axis=1),
        }
        for inside, array in files.items():
            (tmp_path / "jsrt" / inside).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "jsrt" / inside)
    classes = PreprocessSettings(size=64, classes=("lung", "heart"))
    prepare.run(PrepareSettings(source=str(tmp_path / "jsrt"), out=str(tmp_path / "out"), preprocess=classes))
    data = catalog.open_dataset(str(tmp_path / "out" / "jsrt"))
    reader = SampleReader([data])
    masks = [reader.read(position).masks for position in range(2)]
    assert all(mask is not None and mask.shape == (2, 64, 64) and mask.any(axis=(1, 2)).all() for mask in masks)
    assert (data.annotated, data.overlaps) == (("lung", "heart"), (("lung", "heart"),))
    assert [opened.name for opened in study_data.open_training_data([data.folder])] == ["jsrt"]


# Errors of single files


def test_unusable_dataset_does_not_stop_the_others(ray_cluster: None, own_archive: Path, tmp_path: Path) -> None:
    (own_archive / "logo.png").write_bytes(b"no picture")
    settings = PrepareSettings(source=str(own_archive), out=str(tmp_path / "out"), preprocess=SMALL)
    with pytest.raises(InputError, match=r"none of 1 input is usable \(rejected: .*\); first: logo\.png (?!.*logo)"):
        prepare.run(settings)
    assert [catalog.open_dataset(folder).name for folder in catalog.list_datasets(str(tmp_path / "out"))] == [
        "north",
        "south",
    ]
    assert (tmp_path / "out" / "summary.json").exists()
    with pytest.raises(ShardError, match="1 problem,"):
        prepare.run(PrepareSettings(out=str(tmp_path / "out"), verify=True))


def test_wrong_settings_leave_finished_data_alone(own_prepared: Path, archive: Path) -> None:
    match = PreprocessSettings(size=64, histogram="match")
    with pytest.raises(SettingsError, match="--match-to"):
        prepare.run(PrepareSettings(source=str(archive), out=str(own_prepared), preprocess=match))
    assert len(catalog.find_datasets([str(own_prepared)])) == 2


def test_bad_cells_of_a_listing_become_rows(ray_cluster: None, archive: Path, tmp_path: Path) -> None:
    cells = [*sorted(archive.rglob("north/images/*.png")), "http://pacs/x.png", "x" * 300 + ".png", "gone"]
    (tmp_path / "list.csv").write_text("image\n" + "\n".join(map(str, [*cells, cells[0]])) + "\n")
    prepare.run(PrepareSettings(listing=str(tmp_path / "list.csv"), out=str(tmp_path / "out"), preprocess=SMALL))
    rows = read_table(str(tmp_path / "out" / "list" / "manifest.parquet")).to_pylist()
    codes = sorted((row["status"], *row["codes"]) for row in rows)
    assert codes == [("failed", "unreadable")] * 3 + [("ok",)] * 5 + [("rejected", "listed_twice")]


# Verify


def test_verify_names_damaged_and_missing_tars(
    ray_cluster: None, own_prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = PrepareSettings(out=str(own_prepared), verify=True)
    with caplog.at_level("INFO"):
        prepare.run(settings)
    assert "5 tars, all intact" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in own_prepared.rglob("*") if path.is_file()}
    hurt = own_prepared / "north" / "north-000002.tar"
    hurt.write_bytes(hurt.read_bytes()[:-1024] + bytes(1023) + b"x")
    (own_prepared / "south" / "south-000000.tar").unlink()
    with pytest.raises(ShardError, match="2 problems"):
        prepare.run(settings)
    assert "north-000002.tar: the content changed after it was written" in caplog.text
    assert "south-000000.tar: 0 bytes" in caplog.text
    after = {path: path.stat().st_mtime_ns for path in own_prepared.rglob("*") if path.is_file()}
    assert {path: after[path] for path in after if path != hurt} == {
        path: before[path] for path in after if path != hurt
    }


def test_summary_counts_every_input(
    ray_cluster: None, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = PrepareSettings(source=str(archive), out=str(tmp_path), preprocess=SMALL)
    prepare.run(settings)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inputs"] == sum(summary["counts"].values()) == summary["prepared_now"] == 8
    assert set(summary["worker_seconds"]) == {"read", "decode and check", "prepare", "encode", "write"}
    assert sum(summary["worker_share"].values()) == pytest.approx(1, abs=0.01)
    assert "8 inputs = 8 ok + 0 repaired + 0 rejected + 0 failed" in capsys.readouterr().out
    prepare.run(settings)
    assert json.loads((tmp_path / "summary.json").read_text())["prepared_now"] == 0
    assert "All inputs were prepared by an earlier run" in capsys.readouterr().out
