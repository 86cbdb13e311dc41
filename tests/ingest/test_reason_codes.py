"""The registry of reason codes against the code that uses it and the page that documents it."""

import ast
from pathlib import Path

import pytest

from lungseg.ingest import reason_codes
from lungseg.ingest.reason_codes import REGISTRY, Note
from lungseg.schema import Record

ROOT = Path(__file__).resolve().parents[2]
_HOLDERS = ("ImageError", "Note", "Repair")


def codes_in(path: Path) -> set[str]:
    """Return the literal codes that a module passes to ImageError, Note or Repair."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in _HOLDERS]
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}


def texts_in(path: Path) -> set[str]:
    """Return the literal texts of a module."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_package_uses_exactly_the_registered_codes() -> None:
    modules = [path for path in (ROOT / "lungseg").rglob("*.py") if path.name != "reason_codes.py"]
    assert set().union(*map(codes_in, modules)) <= set(REGISTRY)
    assert set(REGISTRY) <= set().union(*map(texts_in, modules))


def test_page_is_generated_from_the_registry() -> None:
    assert (ROOT / "docs" / "reason-codes.md").read_text() == reason_codes.as_markdown()


def test_every_code_has_one_sentence_and_advice() -> None:
    for entry in REGISTRY.values():
        assert entry.meaning.endswith("."), entry
        assert entry.advice.endswith("."), entry


def test_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError, match="no_such_code"):
        Note("no_such_code")


@pytest.mark.parametrize(("code", "status"), [("blank", "rejected"), ("mask_uneven", "rejected"), ("shard", "failed")])
def test_unusable_record_takes_its_status_from_the_registry(code: str, status: str) -> None:
    record = reason_codes.reject(Record("a", "north", "/a.png", codes=("inverted",), message="old"), Note(code, "why"))
    assert (record.status, record.codes, record.message) == (status, (code,), "why")


def test_notes_are_added_in_order() -> None:
    notes = [Note("inverted", "one"), Note("mask_specks", "two")]
    record = reason_codes.with_notes(Record("a", "north", "/a.png"), notes)
    assert (record.codes, record.message) == (("inverted", "mask_specks"), "one; two")


def test_repairs_do_not_count_for_an_unusable_image() -> None:
    codes = ("mask_empty", "inverted")
    assert reason_codes.counted_codes("rejected", codes) == ["mask_empty"]
    assert reason_codes.counted_codes("repaired", codes) == ["mask_empty", "inverted"]


def test_repair_codes_are_recognised() -> None:
    assert reason_codes.was_repaired(("mask_empty", "inverted"))
    assert not reason_codes.was_repaired(("mask_empty",))
