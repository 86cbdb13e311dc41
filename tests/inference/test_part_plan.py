"""Parts: digests, atomic writing, which parts are kept, and refusal of parts of another plan."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lungseg import __version__, storage
from lungseg.errors import InputError
from lungseg.inference import part_plan
from lungseg.inference.items import Item
from lungseg.inference.part_plan import PlannedPart
from lungseg.predictions import parts
from lungseg.predictions.parts import StatusCounts
from lungseg.result_columns import PREDICTIONS
from lungseg.schema import SCHEMA, Record
from lungseg.storage.files import digest_bytes

PLAN = {"archive": "/films", "images": 4, "checkpoints": ["/runs/a"], "model": "ab", "runs": ["a"], "threshold": 0.5}
PLAN |= {"part_size": 32, "preprocess": {"size": 256}, "postprocess": {"lungs": True}, "digest": "1234"}


def items(*names: str, size: int = 5) -> list[Item]:
    return [Item(Record(name, "north", f"/films/{name}.png"), stats=((size, 7),)) for name in names]


def row(name: str, status: str = "ok", *codes: str) -> dict[str, Any]:
    known = {"image_id": name, "dataset": "north", "source_uri": f"/films/{name}.png", "status": status}
    return {**dict.fromkeys(PREDICTIONS.names), **known, "codes": list(codes), "message": f"why {name}", "flags": []}


def write(out: Path, part: PlannedPart, *rows: dict[str, Any]) -> Path:
    path = Path(parts.part_path(str(out), part.number))
    part_plan.write_part(str(path), list(rows), part.digest)
    return path


@pytest.fixture
def planned() -> list[PlannedPart]:
    return [PlannedPart.of(number, items(f"a{number}", f"b{number}"), "settings") for number in range(3)]


def test_digest_depends_on_items_file_stats_and_settings() -> None:
    digests = [
        PlannedPart.of(0, items("a", "b"), "settings").digest,
        PlannedPart.of(0, items("b", "a"), "settings").digest,
        PlannedPart.of(0, items("a"), "settings").digest,
        PlannedPart.of(0, items("a", "b", size=6), "settings").digest,
        PlannedPart.of(0, items("a", "b"), "others").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert PlannedPart.of(7, items("a", "b"), "settings").digest == digests[0]


def test_items_survive_json() -> None:
    planned = PlannedPart.of(0, items("a", "b"), "settings")
    assert planned.images == 2
    assert part_plan.unpack_items(planned.items) == items("a", "b")


def test_same_plan_continues(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    part_plan.claim(out, PLAN)
    part_plan.claim(out, PLAN)
    assert storage.read_json(f"{out}/plan.json") == {"schema": SCHEMA, "lungseg_version": __version__, **PLAN}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part_size": 64}, "--part-size 32, now 64"),
        ({"part_size": 64, "threshold": 0.4}, "--threshold 0.5, now 0.4; --part-size 32, now 64"),
        ({"postprocess": {"lungs": False}}, "--postprocess.lungs yes, now no"),
        ({"images": 5}, "images 4, now 5"),
        ({"model": "cd", "runs": ["b"]}, "model ab, now cd"),
        ({"model": "cd", "checkpoints": ["/b"], "preprocess": {"size": 512}}, "--checkpoint /runs/a, now /b"),
        ({"checkpoints": ["/moved/a"], "part_size": 64}, "--part-size 32, now 64"),
    ],
)
def test_another_plan_is_refused_with_both_values(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    part_plan.claim(out, PLAN)
    with pytest.raises(InputError) as error:
        part_plan.claim(out, {**PLAN, **changes, "digest": "5678"})
    expected = f"{out} holds predictions made with other inputs or settings ({message}): repeat those, or pass another"
    assert str(error.value).startswith(expected)
    assert storage.read_json(f"{out}/plan.json")["digest"] == PLAN["digest"]


def test_changed_files_are_refused(tmp_path: Path) -> None:
    part_plan.claim(str(tmp_path), PLAN)
    with pytest.raises(InputError, match="holds predictions of files that have changed since then"):
        part_plan.claim(str(tmp_path), {**PLAN, "digest": "5678"})


def test_parts_without_a_plan_are_refused(tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path, planned[0], row("a0"), row("b0"))
    with pytest.raises(InputError, match=r"part-000000\.parquet but no plan\.json"):
        part_plan.claim(str(tmp_path), PLAN)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', ""])
def test_damaged_plan_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        part_plan.claim(str(tmp_path), PLAN)
    assert (tmp_path / "plan.json").read_text() == content


def test_unreachable_plan_is_not_reported_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(path: str) -> bytes:
        raise InputError(f"{path}: no answer")

    part_plan.claim(str(tmp_path), PLAN)
    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(InputError, match=r"plan\.json: no answer$"):
        part_plan.claim(str(tmp_path), PLAN)


def test_cpu_and_gpu_parts_do_not_mix(tmp_path: Path, planned: list[PlannedPart]) -> None:
    part_plan.claim(str(tmp_path), PLAN)
    for device in ("cuda", "cpu"):  # no part is finished yet
        part_plan.claim_device(str(tmp_path), device)
    write(tmp_path, planned[0], row("a0"), row("b0"))
    part_plan.claim_device(str(tmp_path), "cpu")
    with pytest.raises(InputError, match=r"computed on cpu.*pass --device cpu, or another --out"):
        part_plan.claim_device(str(tmp_path), "cuda")
    part_plan.claim(str(tmp_path), PLAN)


def test_complete_parts_are_kept_with_their_counts(tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path, planned[0], row("a0"), row("b0", "rejected", "blank"))
    write(tmp_path, planned[2], row("a2", "repaired", "inverted"), row("b2"))
    kept = part_plan.find_finished(str(tmp_path), planned)
    assert kept.keys() == {0, 2}
    assert kept[0].statuses == {"ok": 1, "rejected": 1}
    assert kept[0].codes == {("rejected", "blank"): 1}
    assert kept[2].codes == {("repaired", "inverted"): 1}


def test_part_with_failed_row_is_predicted_again(tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path, planned[0], row("a0"), row("b0", "failed", "unreadable"))
    write(tmp_path, planned[1], row("a1"), row("b1"))
    assert part_plan.find_finished(str(tmp_path), planned).keys() == {1}


def test_truncated_or_short_part_is_predicted_again_with_a_warning(
    tmp_path: Path, planned: list[PlannedPart], caplog: pytest.LogCaptureFixture
) -> None:
    truncated = write(tmp_path, planned[0], row("a0"), row("b0"))
    truncated.write_bytes(truncated.read_bytes()[:-20])
    write(tmp_path, planned[1], row("a1"))
    assert part_plan.find_finished(str(tmp_path), planned) == {}
    assert f"predicting this part again: {truncated}" in caplog.text


def test_part_that_lost_rows_is_predicted_again(tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    storage.write_table(str(path), storage.read_table(str(path)).slice(0, 1))
    assert part_plan.find_finished(str(tmp_path), planned) == {}


def test_part_of_another_plan_is_refused(tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path / "one", PlannedPart.of(1, items("a1", "b1"), "other settings"), row("a1"), row("b1"))
    with pytest.raises(InputError, match=r"part-000001\.parquet belongs to another plan"):
        part_plan.find_finished(str(tmp_path / "one"), planned)


def test_part_under_another_number_is_refused(tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    shutil.copy(path, tmp_path / "rows" / "part-000001.parquet")
    with pytest.raises(InputError, match=r"part-000001\.parquet belongs to another plan"):
        part_plan.find_finished(str(tmp_path), planned)


@pytest.mark.parametrize("name", ["part-000003.parquet", "part-0.parquet"])
def test_part_number_outside_the_plan_is_refused(name: str, tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    shutil.copy(path, tmp_path / "rows" / name)
    with pytest.raises(InputError, match=f"{name} belongs to another plan"):
        part_plan.require_own_parts(str(tmp_path), 3)


def test_predictions_in_a_subfolder_are_ignored(tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    (tmp_path / "rows" / "flipped").mkdir()
    shutil.copy(path, tmp_path / "rows" / "flipped" / "part-000003.parquet")
    assert parts.part_files(str(tmp_path)) == [str(path)]
    assert set(part_plan.find_finished(str(tmp_path), planned)) == {0}


def test_unfinished_file_of_a_killed_writer_is_ignored(tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    path.rename(tmp_path / "rows" / ".writing-part-000000.parquet")
    (tmp_path / "plan.json").write_text("{}")
    assert parts.part_files(str(tmp_path)) == []
    assert part_plan.find_finished(str(tmp_path), planned) == {}


def test_part_file_names_its_plan_and_describes_its_columns(tmp_path: Path, planned: list[PlannedPart]) -> None:
    path = write(tmp_path, planned[0], row("a0"), row("b0"))
    table = storage.read_table(str(path))
    assert table.schema.metadata[b"lungseg.part"].decode() == planned[0].digest
    assert table.schema.names == PREDICTIONS.names
    assert all(field.metadata[b"description"] for field in table.schema)


def test_part_changed_after_the_end_is_predicted_again(
    tmp_path: Path, planned: list[PlannedPart], caplog: pytest.LogCaptureFixture
) -> None:
    kept, changed = (write(tmp_path, part, row(f"a{part.number}"), row(f"b{part.number}")) for part in planned[:2])
    recorded = [{"name": path.name, "sha256": digest_bytes(path.read_bytes())} for path in (kept, changed)]
    storage.write_json(str(tmp_path / "predictions.json"), {"parts": recorded})
    assert set(part_plan.find_finished(str(tmp_path), planned)) == {0, 1}
    write(tmp_path, planned[1], row("b1"), row("a1"))  # complete, of the same plan, but with other bytes
    assert set(part_plan.find_finished(str(tmp_path), planned)) == {0}
    assert "part-000001.parquet does not match its digest in predictions.json" in caplog.text
    part_plan.discard_outdated(str(tmp_path), range(3))
    assert (kept.exists(), changed.exists(), (tmp_path / "predictions.json").exists()) == (True, False, False)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "null", "{}", f'{{"schema": {SCHEMA}, "images": 2}}'])
def test_damaged_predictions_json_is_refused(content: str, tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path, planned[0], row("a0"), row("b0"))
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(
        InputError, match=r"predictions.json: not in the format that lungseg infer writes: delete it and run"
    ):
        part_plan.find_finished(str(tmp_path), planned)


def test_part_with_unreadable_mask_is_predicted_again(tmp_path: Path, planned: list[PlannedPart]) -> None:
    write(tmp_path, planned[0], row("a0", "ok", "unreadable"), row("b0"))
    write(tmp_path, planned[1], row("a1", "ok", "mask_size"), row("b1"))
    assert set(part_plan.find_finished(str(tmp_path), planned)) == {1}


def test_rejected_images_count_only_reasons_for_rejection() -> None:
    counts = count(
        row("a", "rejected", "mask_size", "inverted"),
        row("b", "repaired", "undecodable", "inverted"),
    )
    assert counts.code_counts() == [
        {"status": "rejected", "code": "mask_size", "images": 1},
        {"status": "repaired", "code": "inverted", "images": 1},
        {"status": "repaired", "code": "undecodable", "images": 1},
    ]


def count(*rows: dict[str, Any]) -> StatusCounts:
    return StatusCounts.from_rows(pa.Table.from_pylist(list(rows)))


def test_counts_include_statuses_and_all_codes() -> None:
    counts = count(
        row("a"),
        row("b", "repaired", "inverted", "grey_as_colour"),
        row("c", "rejected", "blank"),
        row("d", "failed", "unreadable"),
    )
    assert counts.counts() == {"ok": 1, "repaired": 1, "rejected": 1, "failed": 1}
    assert counts.not_predicted() == 2
    assert counts.codes == {
        ("repaired", "inverted"): 1,
        ("repaired", "grey_as_colour"): 1,
        ("rejected", "blank"): 1,
        ("failed", "unreadable"): 1,
    }
    assert counts.examples == ("c.png: why c (blank)", "d.png: why d (unreadable)")


def test_counts_include_flagged_images_and_flags() -> None:
    flagged = {**row("a"), "flags": ["not_chest_like", "mask_uneven"]}
    counts = count(flagged, {**row("b"), "flags": ["not_chest_like"]}, row("c"))
    assert counts.flagged == 2
    assert counts.describe_flagged() == "2 not_chest_like, 1 mask_uneven"
    both = StatusCounts.from_json(counts.add(count(row("d"), flagged)).to_json())
    assert (both.flagged, both.flags) == (3, {"not_chest_like": 3, "mask_uneven": 2})


def test_sum_of_counts_keeps_the_first_three_examples() -> None:
    first, second = count(row("a"), row("b", "failed", "x")), count(*[row(n, "failed", "y") for n in "cdefg"])
    both = first.add(second)
    assert both.statuses == Counter(ok=1, failed=6)
    assert both.not_predicted() == 6
    assert both.describe_not_predicted() == "5 y, 1 x"
    assert both.examples == ("b.png: why b (x)", "c.png: why c (y)", "d.png: why d (y)")
    assert StatusCounts.empty().add(first) == first


def test_repaired_images_are_not_listed_as_without_mask() -> None:
    counts = count(row("a", "repaired", "inverted"), row("b", "rejected", "blank"))
    assert counts.describe_not_predicted() == "1 blank"


def test_counts_survive_json() -> None:
    counts = count(row("a"), row("b", "repaired", "x", "y"), row("c", "failed", "z"))
    assert StatusCounts.from_json(counts.to_json()) == counts
    assert StatusCounts.from_json(StatusCounts.empty().to_json()) == StatusCounts.empty()


def test_missing_or_changed_column_is_refused_and_predicted_again(
    tmp_path: Path, planned: list[PlannedPart], caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write(tmp_path, planned[0], row("a0"), row("b0")))
    complete = storage.read_table(path)
    number = complete.schema.get_field_index("mask")
    for rows in (complete.drop_columns(["mask"]), complete.set_column(number, "mask", pa.array([1, 2]))):
        storage.write_table(path, rows.replace_schema_metadata(complete.schema.metadata))
        caplog.clear()
        assert part_plan.find_finished(str(tmp_path), planned) == {}
        assert "part-000000.parquet: column mask is missing, unknown or of another type" in caplog.text
        with pytest.raises(InputError, match=r"column mask is missing, unknown .*; run the same"):
            parts.read_part(path)


def test_masks_without_an_image_are_no_lost_images() -> None:
    counts = StatusCounts(
        Counter({"ok": 2, "rejected": 3}), Counter({("rejected", "unmatched_mask"): 2, ("rejected", "blank"): 1})
    )
    assert (counts.not_predicted(), counts.lost_images()) == (3, 1)
