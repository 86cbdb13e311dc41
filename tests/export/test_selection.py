from pathlib import Path

import pytest

from lungseg.config import ExportSettings
from lungseg.config.class_names import ONE_CLASS
from lungseg.errors import InputError, SettingsError
from lungseg.export import selection
from lungseg.predictions.parts import part_path
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import table
from tests.export.prediction_files import DrawPair, prediction_row, replace_part


@pytest.mark.parametrize("where", ["area_px", "dice * 2", "dice.mean() > 0.5", "1", "dataset"])
def test_query_that_is_no_condition_is_refused(where: str, predictions: Path) -> None:
    with pytest.raises(SettingsError, match="expected true or false for each row"):
        selection.select_rows(selection.verified_parts(str(predictions)), ExportSettings(where=where))


@pytest.mark.parametrize("where", ["dicee < 1", "dice <", "import os", "1 +"])
def test_invalid_query_is_refused(where: str) -> None:
    with pytest.raises(SettingsError, match="the columns are image_id"):
        selection.refuse_invalid_query(where, ONE_CLASS)


def test_query_is_evaluated_over_all_parts(predictions: Path) -> None:
    paths = selection.verified_parts(str(predictions))
    settings = ExportSettings(where="dice <= dice.quantile(0.5)")
    selected = selection.select_rows(paths, settings)  # 0.8 and 0.9 in part 0, 0.95 in part 1
    assert [part["rows"] for part in selected] == [[0, 1], []]
    assert [part["rows"] for part in selection.select_rows(paths, ExportSettings())] == [None, None]


@pytest.fixture
def doubtful(predictions: Path, draw_pair: DrawPair) -> list[str]:
    """Return the paths of two parts with known doubts and one flag."""
    mask = draw_pair(1, 40, 40)[1]
    doubts = ([0.02, 0.03, 0.4, 0.025], [0.02, 0.01])
    for number, part in enumerate(doubts):
        rows = [prediction_row(f"{number}-{i}", "x.png", mask, doubt=doubt) for i, doubt in enumerate(part)]
        replace_part(predictions, number, [*rows[:-1], {**rows[-1], "flags": ["rotated"] if number else ["no_mask"]}])
    return selection.verified_parts(str(predictions))


@pytest.mark.parametrize(
    ("worst", "where", "rows"),
    [
        (1, "", [[], [1]]),
        (3, "", [[1, 2], [1]]),
        (2, "doubt < 0.1", [[1], [1]]),
        (99, "doubt < 0.1", [[0, 1, 3], [0, 1]]),
    ],
)
def test_worst_rows_are_flagged_ones_then_those_in_doubt(
    worst: int, where: str, rows: list[list[int]], doubtful: list[str]
) -> None:
    selected = selection.select_rows(doubtful, ExportSettings(worst=worst, where=where))
    assert [part["rows"] for part in selected] == rows


def test_unusual_doubt_limits_dicom_segmentations_only(doubtful: list[str]) -> None:
    segmentations = ExportSettings(formats=("dicom-seg",), worst=1)
    (limit,) = {part["max_doubt"] for part in selection.select_rows(doubtful, segmentations)}
    assert 0.03 < limit < 0.4
    for settings in (ExportSettings(), ExportSettings(formats=("dicom-seg",), include_doubtful=True)):
        assert [part["max_doubt"] for part in selection.select_rows(doubtful, settings)] == [None, None]


def test_rejected_rows_have_no_mask(draw_pair: DrawPair) -> None:
    _, mask = draw_pair(1, 40, 40)
    rows = [prediction_row(str(i), "x.png", mask, status=("ok", "rejected", "repaired")[i % 3]) for i in range(6)]
    assert selection.rows_with_mask(table(rows, PREDICTIONS)).column("image_id").to_pylist() == ["0", "2", "3", "5"]


def test_missing_part_is_refused(predictions: Path) -> None:
    Path(part_path(str(predictions), 1)).rename(part_path(str(predictions), 7))
    with pytest.raises(
        InputError, match=r"2 of 2 parts are missing or differ .*part-000001.parquet.*lungseg infer command"
    ):
        selection.verified_parts(str(predictions))


def test_output_inside_the_archive_is_refused(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out .*films/deep is inside the archive .*films: pass a folder outside"):
        selection.require_outside_archive(str(predictions), str(tmp_path / "films" / "deep"))
    selection.require_outside_archive(str(predictions), str(tmp_path / "out"))


def test_folder_has_one_export_only(predictions: Path, tmp_path: Path, draw_pair: DrawPair) -> None:
    out, folder = str(tmp_path / "out"), str(predictions)
    selection.reserve_output(out, folder, ExportSettings(where="dice < 0.85"))
    selection.reserve_output(out, folder, ExportSettings(where="dice < 0.85", formats=("coco",)))
    with pytest.raises(InputError, match=r"has another export \(where changed\): pass another --out, or delete"):
        selection.reserve_output(out, folder, ExportSettings())
    replace_part(predictions, 0, [prediction_row("new", "new.png", draw_pair(1, 40, 40)[1])])
    with pytest.raises(InputError, match=r"\(parts changed\)"):
        selection.reserve_output(out, folder, ExportSettings(where="dice < 0.85"))


def test_folder_with_other_files_is_refused(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "masks" / "north").mkdir(parents=True)
    with pytest.raises(InputError, match=r"masks has files, but .*mine has no export\.json"):
        selection.reserve_output(str(tmp_path / "mine"), str(predictions), ExportSettings())
    assert not (tmp_path / "mine" / "export.json").exists()


@pytest.mark.parametrize("name", ["Mu\u0308ller", "M\u00fcller"])
def test_query_compares_names_in_one_unicode_form(name: str, draw_pair: DrawPair, tmp_path: Path) -> None:
    mask = draw_pair(1, 40, 40)[1]
    sources = ["/x/M\u00fcller.png", "/x/Mu\u0308ller.png", "/x/b.png"]
    rows = [prediction_row(str(number), source, mask) for number, source in enumerate(sources)]
    selected = selection.evaluate_query(table(rows, PREDICTIONS), f"source_uri.str.contains('{name}')")
    assert selected.tolist() == [True, True, False]
