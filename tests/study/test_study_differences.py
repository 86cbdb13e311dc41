"""What differs between two studies, and the warning about it."""

from pathlib import Path
from typing import Any

from lungseg import provenance, storage
from lungseg.config import LossSettings, OptimSettings, TrainSettings
from lungseg.study import study_differences
from lungseg.study.study_differences import StudyDifference


def _study(folder: Path, data: str = "11", code: str = "aaa", torch: str = "2.14", **settings: Any) -> str:
    custom_code = settings.pop("custom_code", {})
    summary = {
        "settings": TrainSettings(**settings).model_dump(),
        "data": {"north": data},
        "custom_code": custom_code,
    }
    storage.write_json(str(folder / "run" / "run.json"), summary)
    provenance.record_start(str(folder / "run"), {"code": code, "versions": {"torch": torch}, "git": {}})
    return str(folder)


def _differences(this: str, other: str) -> list[StudyDifference]:
    return study_differences.find_differences(this, ["run"], other, ["run"])


def test_settings_data_code_and_libraries_are_compared(tmp_path: Path) -> None:
    this = _study(tmp_path / "a", epochs=50, out="here")
    other = _study(tmp_path / "b", "22", "bbb", "2.15", epochs=25, optim=OptimSettings(lr=1e-3), out="there")
    assert _differences(this, other) == [
        StudyDifference("b", "setting", "--optim.lr", "0.0001", "0.001"),
        StudyDifference("b", "setting", "--epochs", "50", "25"),
        StudyDifference("b", "data", "north", "11", "22"),
        StudyDifference("b", "code", "code digest", "aaa", "bbb"),
        StudyDifference("b", "library", "torch", "2.14", "2.15"),
    ]


def test_one_intended_difference_gives_no_warning(tmp_path: Path) -> None:
    this, other = _study(tmp_path / "a", epochs=50), _study(tmp_path / "b", epochs=25)
    differences = _differences(this, other)
    assert [difference.name for difference in differences] == ["--epochs"]
    assert study_differences.warn_of_several(differences) == []
    also_other_data = _differences(this, _study(tmp_path / "c", "22", epochs=25))
    assert study_differences.warn_of_several(also_other_data) == [
        "2 things differ from c (--epochs, north): the comparison cannot tell which one matters."
    ]


def test_a_custom_loss_and_its_source_are_one_difference(tmp_path: Path) -> None:
    path = "mylab.methods:Focal"
    loss = LossSettings(custom=path)
    plain = _study(tmp_path / "a", test_every=2)
    old, new = (_study(tmp_path / name, loss=loss, custom_code={path: name}) for name in ("old", "new"))
    assert [(found.name, found.this, found.other) for found in _differences(plain, old)] == [
        ("--loss.custom", "(none)", f"{path} with source old")
    ]
    assert [(found.this, found.other) for found in _differences(old, new)] == [
        (f"{path} with source old", f"{path} with source new")
    ]


def test_digest_and_commit_of_the_code_count_as_one_difference() -> None:
    code = [StudyDifference("b", "code", name, "1", "2") for name in ("code digest", "git commit")]
    assert study_differences.warn_of_several(code) == []
    loss = StudyDifference("b", "setting", "--loss.dice", "1.0", "0.5")
    (warning,) = study_differences.warn_of_several([loss, *code])
    assert warning.startswith("2 things differ from b (--loss.dice, code):")


def test_commits_with_the_same_code_do_not_differ(tmp_path: Path) -> None:
    studies = [_study(tmp_path / name) for name in ("a", "b", "c")]
    for number, (study, code) in enumerate(zip(studies, ("aaa", "aaa", "bbb"), strict=True)):
        provenance.record_start(f"{study}/run", {"code": code, "versions": {}, "git": {"commit": str(number) * 40}})
    this, same_code, other_code = studies
    assert _differences(this, same_code) == []
    assert [difference.name for difference in _differences(this, other_code)] == ["code digest", "git commit"]


def test_studies_of_different_seeds_do_not_differ(tmp_path: Path) -> None:
    assert _differences(_study(tmp_path / "a", seed=0), _study(tmp_path / "b", seed=1)) == []
