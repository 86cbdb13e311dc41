"""From a command line to settings: every recipe, every kind of mistake."""

import subprocess
import sys
from typing import cast, get_args

import pytest

from lungseg.config import (
    AdaptSettings,
    ExportSettings,
    InferSettings,
    JobSettings,
    PrepareSettings,
    ReportSettings,
    TrainSettings,
)
from lungseg.config.recipes import RECIPES, Job, parse
from lungseg.errors import SettingsError

JOBS = get_args(Job)
EVERY = [(job, name) for job, recipes in RECIPES.items() for name in recipes]
KINDS: dict[str, type[JobSettings]] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "adapt": AdaptSettings,
    "infer": InferSettings,
    "export": ExportSettings,
    "report": ReportSettings,
}


def complaint(job: Job, *args: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(job, args)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    assert len(text) <= 240
    assert f"jobs/{job}.py" in text
    assert not set("│╭╰") & set(text)
    return text


def test_every_job_has_recipes_and_a_demo_among_them() -> None:
    assert set(RECIPES) == set(JOBS) == set(KINDS)
    assert all("demo" in recipes for recipes in RECIPES.values())


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_a_recipe_parses_to_the_settings_that_it_states(job: Job, name: str) -> None:
    promise, settings = RECIPES[job][name]
    assert parse(job, [name]) == settings
    assert type(settings) is KINDS[job]
    assert promise.endswith(".")


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_dry_run_can_be_asked_of_every_recipe(job: Job, name: str) -> None:
    asked = parse(job, [name, "--dry-run"])
    assert asked.dry_run
    assert asked.model_copy(update={"dry_run": False}) == RECIPES[job][name][1]


@pytest.mark.parametrize("job", JOBS)
def test_the_recipe_is_demo_when_none_is_named(job: Job) -> None:
    demo = RECIPES[job]["demo"][1]
    assert parse(job, []) == demo
    assert parse(job, ["--out", "elsewhere"]) == demo.model_copy(update={"out": "elsewhere"})


@pytest.mark.parametrize("args", [["--optim.lr", "3e-4"], ["--optim.lr=3e-4"], ["demo", "--optim.lr", "0.0003"]])
def test_an_option_changes_itself_and_nothing_else(args: list[str]) -> None:
    demo = cast(TrainSettings, RECIPES["train"]["demo"][1])
    expected = demo.model_copy(update={"optim": demo.optim.model_copy(update={"lr": 3e-4})})
    assert parse("train", args) == expected


def test_lists_are_read_word_by_word() -> None:
    words = ["small", "--data", "a", "s3://b/c", "--folds", "3", "--only-folds", "0", "2", "--protocols", "pooled"]
    settings = cast(TrainSettings, parse("train", words))
    assert settings.data == ("a", "s3://b/c")
    assert settings.only_folds == (0, 2)
    assert settings.protocols == ("pooled",)


@pytest.mark.parametrize(
    ("job", "wrong", "near"),
    [
        ("train", "--optim.lrr", "--optim.lr"),
        ("train", "--modle.encoder", "--model.encoder"),
        ("train", "--epoch", "--epochs"),
        ("prepare", "--preproces.size", "--preprocess.size"),
        ("infer", "--checkpont", "--checkpoint"),
        ("report", "--overlay", "--overlays"),
    ],
)
def test_a_misspelt_option_is_named_with_the_near_one(job: Job, wrong: str, near: str) -> None:
    text = complaint(job, wrong, "3")
    assert wrong in text
    assert f"perhaps you meant {near} " in text
    assert f"jobs/{job}.py demo --help" in text


def test_an_option_like_no_other_gets_no_advice() -> None:
    text = complaint("train", "small", "--qqqqqqqqqq", "1")
    assert "--qqqqqqqqqq" in text
    assert "perhaps" not in text
    assert "jobs/train.py small --help" in text


@pytest.mark.parametrize("job", JOBS)
def test_an_unknown_recipe_is_answered_with_the_known(job: Job) -> None:
    text = complaint(job, "large")
    assert "'large'" in text
    assert all(name in text for name in RECIPES[job])


@pytest.mark.parametrize(
    ("job", "args", "said"),
    [
        ("train", ["--optim.lr", "fast"], "--optim.lr 'fast': expected a number; see"),
        ("train", ["--epochs", "1.5"], "--epochs '1.5': expected a whole number; see"),
        ("train", ["--runs-at-once", "some"], "--runs-at-once 'some': expected auto or a whole number; see"),
        ("train", ["--loader.threads", "0"], "--loader.threads 0: input should be greater than or equal to 1; see"),
        ("infer", ["--workers", "0"], "--workers 0: input should be greater than or equal to 1; see"),
        ("infer", ["--threshold", "abc"], "--threshold 'abc': expected None or a number; see"),
        ("train", ["--optim.lr", "-1"], "--optim.lr -1.0: input should be greater than 0"),
        ("train", ["--epochs"], "--epochs"),
        ("train", ["--seed", "-1"], "--seed -1: input should be greater than or equal to 0"),
        ("train", ["--protocols", "best"], "'pooled', 'source-to-source'"),
        ("train", ["--only-folds", "7"], "--only-folds 7 of 4 folds: pass 0 to 3; see"),
        ("train", ["--loss.bce", "0", "--loss.dice", "0"], "give one of them a weight"),
        ("train", ["demo", "stray"], "stray"),
        ("prepare", ["--preprocess.size", "100"], "multiple of 16"),
        ("prepare", ["--source", "a", "--images", "b"], "pass one of them"),
        ("prepare", ["--masks", "b"], "pass the folder of images too"),
        ("prepare", ["--dataset", "a/b"], "--dataset 'a/b': expected A-Z, a-z, 0-9, _ and - only: pass such a"),
        ("prepare", ["--preprocess.classes", "lung", "Heart"], "--preprocess.classes 'Heart': string should match"),
        ("prepare", ["--preprocess.landmarks", "1", "2"], "--preprocess.histogram none, expected match, which"),
        ("prepare", ["--preprocess.landmarks", "300"], "--preprocess.landmarks 300.0: input should be less than"),
        ("train", ["--loader.batch-size", "1"], "batch norm has no variance over one image: pass 2 or more, or"),
        ("train", ["--folds", "2", "--patience", "3"], "one is held out and one validated on, none is left: pass 3"),
        ("infer", ["--part-size", "0"], "--part-size 0: input should be greater than or equal to 1"),
        ("report", ["--overlays", "101"], "less than or equal to 100"),
    ],
)
def test_a_bad_value_is_explained_in_one_line(job: Job, args: list[str], said: str) -> None:
    text = complaint(job, *args)
    assert said in text
    assert "pydantic" not in text
    assert "\n" not in text


def test_a_complaint_keeps_its_own_words_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    complaint("train", "--optim.lrr", "3")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("job", JOBS)
def test_help_ends_well_and_lists_the_recipes(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(job, ["--help"])
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES[job])


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_help_of_a_recipe_shows_its_options(job: Job, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(job, [name, "--help"])
    assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "--dry-run" in shown
    assert "--out" in shown


def test_parsing_loads_no_heavy_library() -> None:
    code = (
        "import sys; from lungseg.config.recipes import RECIPES, parse\n"
        "for job in RECIPES: parse(job, ['--dry-run'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'numpy', 'cv2', 'pyarrow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
