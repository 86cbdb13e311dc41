"""The summary of a preparation: its numbers and its text."""

from typing import Any

import pytest

from lungseg.prepare.summary import WrittenTotals, print_summary, summarise


def info(dataset: str, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "inputs": sum(counts.values()),
        "counts": counts,
        "codes": {"rejected": {"blank": counts.get("rejected", 0)}},
        "flags": {"mask_uneven": 2},
        "samples": counts.get("ok", 0),
        "with_mask": counts.get("ok", 0),
        "shards": [{"bytes": 3 << 20}, {"bytes": 1 << 20}],
    }


def totals() -> WrittenTotals:
    result = WrittenTotals()
    result.add({"inputs": 6, "kept": False, "counts": {"ok": 5, "failed": 1}, "seconds": {"read": 1.0, "encode": 2.0}})
    result.add({"inputs": 6, "kept": False, "counts": {"ok": 5, "failed": 1}, "seconds": {"read": 1.0}})
    result.add({"inputs": 8, "kept": True, "counts": {"ok": 4}, "seconds": {}})
    return result


DUPLICATES = {"exact": 1, "near": 2, "patients": 0}
INFOS = [info("north", {"ok": 9, "rejected": 1}), info("south", {"ok": 10})]


def test_numbers_add_up() -> None:
    summary = summarise(INFOS, totals(), DUPLICATES, 4.0)
    assert summary["inputs"] == sum(summary["counts"].values()) == 20
    assert summary["counts"] == {"ok": 19, "repaired": 0, "rejected": 1, "failed": 0}
    assert summary["prepared_now"] == 12
    assert summary["images_per_second"] == 3.0
    assert summary["worker_share"] == {"encode": 0.5, "read": 0.5}
    assert summary["duplicates"] == DUPLICATES
    assert summary["datasets"]["north"]["bytes"] == 4 << 20


def test_terminal_shows_statuses_reasons_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summarise(INFOS, totals(), DUPLICATES, 4.0), "/data/out")
    out = capsys.readouterr().out
    assert "20 inputs = 19 ok + 0 repaired + 1 rejected + 0 failed; /data/out/*/manifest.parquet" in out
    assert [line.split() for line in out.splitlines() if "blank" in line] == [
        ["north", "rejected", "blank", "1"],
        ["south", "rejected", "blank", "0"],
    ]
    assert "mask_uneven" in out
    assert "1 exact duplicate pair and 2 near duplicate pairs, each taken for one patient; listed" in out
    assert "12 prepared in 4.0 s (3 images/s); workers: encode 50%, read 50%" in out
