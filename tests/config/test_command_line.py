"""From a command line to settings: recipes, files, options, and every kind of mistake."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import cast, get_args

import pytest

from lungseg.config import InferSettings, TrainSettings
from lungseg.config.command_line import help_text, parse, to_yaml
from lungseg.config.options import options_of, require_options
from lungseg.config.recipes import DATA_RECIPES, RECIPES, Job
from lungseg.errors import SettingsError

JOBS = get_args(Job)
EVERY = [(job, name) for job, recipes in RECIPES.items() for name in recipes]


def error_of(job: Job, *args: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(job, args)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) <= 240
    assert "pydantic" not in text
    return text


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_every_recipe_takes_dry_run(job: Job, name: str) -> None:
    settings = parse(job, [name, "--dry-run"])
    assert settings.dry_run
    assert settings.model_copy(update={"dry_run": False}) == RECIPES[job][name][1]


@pytest.mark.parametrize("job", JOBS)
def test_nothing_named_is_the_demo(job: Job) -> None:
    demo = RECIPES[job]["demo"][1]
    assert parse(job, []) == demo
    assert parse(job, ["--out", "elsewhere"]) == demo.model_copy(update={"out": "elsewhere"})


@pytest.mark.parametrize(
    ("job", "option"),
    [
        ("prepare", "--source"),
        ("prepare", "--images"),
        ("prepare", "--listing"),
        ("train", "--data"),
        ("adapt", "--checkpoint"),
        ("adapt", "--data"),
        ("infer", "--archive"),
        ("infer", "--checkpoint"),
        ("export", "--predictions"),
        ("report", "--study"),
    ],
)
def test_named_data_without_recipe_never_runs_the_demo(
    job: Job, option: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lungseg"), "propagate", True)
    with caplog.at_level(logging.INFO):
        settings = parse(job, [option, "mine"])
    assert settings == parse(job, [DATA_RECIPES[job], option, "mine"])
    assert f"no recipe named: using {DATA_RECIPES[job]} for {option}" in caplog.messages[0]


@pytest.mark.parametrize("args", [["--optim.lr", "3e-4"], ["--optim.lr=3e-4"], ["demo", "--optim.lr", "0.0003"]])
def test_an_option_changes_only_itself(args: list[str]) -> None:
    demo = cast(TrainSettings, RECIPES["train"]["demo"][1])
    expected = demo.model_copy(update={"optim": demo.optim.model_copy(update={"lr": 3e-4})})
    assert parse("train", args) == expected


def test_lists_take_several_words() -> None:
    words = ["small", "--data", "a", "s3://b/c", "--folds", "3", "--only-folds", "0", "2", "--protocols", "pooled"]
    settings = cast(TrainSettings, parse("train", words))
    assert settings.data == ("a", "s3://b/c")
    assert settings.only_folds == (0, 2)
    assert settings.protocols == ("pooled",)


def test_switches_turn_on_and_off() -> None:
    settings = cast(InferSettings, parse("infer", ["--postprocess.no-lungs", "--verify", "--threshold", "none"]))
    assert not settings.postprocess.lungs
    assert settings.postprocess.holes
    assert settings.verify
    assert settings.threshold is None
    assert not cast(InferSettings, parse("infer", ["--verify", "--no-verify"])).verify


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_config_reads_back_what_dry_run_prints(job: Job, name: str, tmp_path: Path) -> None:
    settings = RECIPES[job][name][1]
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(job, settings))
    assert parse(job, ["--config", str(path)]) == settings
    assert parse(job, ["demo", "--config", str(path), "--dry-run"]).model_dump() == settings.model_dump()


def test_options_and_odd_values_survive_the_file(tmp_path: Path) -> None:
    words = ["small", "--data", "on", "1e3", "ü: #x", "--optim.lr", "1e-7", "--no-choose-threshold", "--study", ""]
    settings = parse("train", [*words, "--workers-per-run", "auto", "--only-folds", "1", "2"])
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml("train", settings), encoding="utf-8")
    assert parse("train", ["--config", str(path)]) == settings


def test_options_override_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("epochs: 3\noptim:\n  lr: 1e-5\n")
    settings = cast(TrainSettings, parse("train", ["small", "--config", str(path), "--epochs", "5"]))
    assert (settings.epochs, settings.optim.lr) == (5, 1e-5)
    assert settings.optim.schedule == "one-cycle"
    plain = cast(TrainSettings, parse("train", ["--config", str(path)]))
    assert plain == TrainSettings(epochs=3, optim=plain.optim)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim:\n  lrr: 1\n", "lungseg train has no setting optim.lrr: did you mean optim.lr?"),
        ("epoch: 3\n", "has no setting epoch: did you mean epochs?"),
        ("optim: 3\n", "has no setting optim"),
        ("7: 3\n", "has no setting 7"),
        ("epochs: 0\n", "run.yaml: --epochs 0: input should be greater than or equal to 1"),
        ("epochs: [1\n", "not YAML in line 2: pass a file as --dry-run prints it"),
        ("- 1\n", "expected names and values, as --dry-run prints them"),
        ("", "expected names and values"),
        ("\xff\xfe", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="latin-1")
    assert message in error_of("train", "--config", str(path))


def test_all_missing_options_are_named() -> None:
    require_options({"--archive FOLDER": "x", "--checkpoint FOLDER": ("y",)})
    with pytest.raises(SettingsError, match=r"^pass --archive FOLDER and --checkpoint FOLDER$"):
        require_options({"--archive FOLDER": "", "--out FOLDER": "x", "--checkpoint FOLDER": ()})
    with pytest.raises(SettingsError, match=r"^pass --checkpoint FOLDER$"):
        require_options({"--archive FOLDER": "x", "--checkpoint FOLDER": ()})


@pytest.mark.parametrize(("job", "other"), [("infer", "train"), ("train", "prepare"), ("report", "adapt")])
def test_file_of_another_job_is_recognised(job: Job, other: Job, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(other, RECIPES[other]["demo"][1]))
    assert f"{path}: settings of lungseg {other}, not of lungseg {job}" in error_of(job, "--config", str(path))


def test_a_missing_file_is_refused() -> None:
    assert "--config nowhere.yaml: no such file or directory" in error_of("train", "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("job", "wrong", "near"),
    [
        ("train", "--optim.lrr", "--optim.lr"),
        ("train", "--modle.encoder", "--model.encoder"),
        ("train", "--epoch", "--epochs"),
        ("prepare", "--preproces.size", "--preprocess.size"),
        ("infer", "--checkpont", "--checkpoint"),
        ("report", "--overlay=3", "--overlays"),
        ("prepare", "--size", "--preprocess.size"),
        ("train", "--lr=1", "--optim.lr"),
        ("train", "--batch-size", "--loader.batch-size"),
        ("train", "--batch_size", "--loader.batch-size"),
        ("prepare", "--histgram", "--preprocess.histogram"),
        ("infer", "--no-holes", "--postprocess.holes"),
    ],
)
def test_a_misspelt_option_names_the_near_one(job: Job, wrong: str, near: str) -> None:
    text = error_of(job, wrong, "3")
    assert f"unknown option {wrong.split('=', maxsplit=1)[0]}: did you mean {near}?" in text
    assert f"see lungseg {job} --help" in text


def test_an_option_like_no_other_gets_no_suggestion() -> None:
    text = error_of("train", "small", "--qqqqqqqqqq", "1")
    assert text == "unknown option --qqqqqqqqqq; see lungseg train small --help"


@pytest.mark.parametrize("job", JOBS)
def test_an_unknown_recipe_lists_the_known_ones(job: Job) -> None:
    text = error_of(job, "large")
    assert "'large'" in text
    assert all(name in text for name in RECIPES[job])


def test_a_misspelt_recipe_names_the_near_one() -> None:
    assert "lungseg train has no recipe 'smal': did you mean small?" in error_of("train", "smal")


def test_a_path_instead_of_a_recipe_names_the_option(tmp_path: Path) -> None:
    assert "or options only; a path needs its option, --archive or --checkpoint" in error_of("infer", str(tmp_path))
    with pytest.raises(SettingsError, match="has no recipe"):
        parse("infer", ["x" * 300])  # longer than a file name may be


def test_a_recipe_after_options_is_refused() -> None:
    assert "recipe small after an option: the recipe comes first" in error_of("train", "--epochs", "3", "small")


@pytest.mark.parametrize(
    ("job", "args", "message"),
    [
        ("train", ["--optim.lr", "fast"], "--optim.lr fast: expected a number; see"),
        ("train", ["--epochs", "1.5"], "--epochs 1.5: expected a whole number; see"),
        ("train", ["--runs-at-once", "some"], "--runs-at-once some: expected 'auto' or a whole number; see"),
        (
            "train",
            ["--loader.processes", "-1"],
            "--loader.processes -1: input should be greater than or equal to 0; see",
        ),
        ("infer", ["--workers", "0"], "--workers 0: input should be greater than or equal to 1; see"),
        ("infer", ["--threshold", "abc"], "--threshold abc: expected a number; see"),
        ("train", ["--optim.lr", "-1"], "--optim.lr -1: input should be greater than 0"),
        ("train", ["--optim.lr", "nan"], "--optim.lr nan: input should be"),
        ("train", ["--epochs"], "--epochs: expected one argument; see"),
        ("train", ["--wandb.artifact=3"], "--wandb.artifact"),
        ("train", ["--seed", "-1"], "--seed -1: input should be greater than or equal to 0"),
        (
            "train",
            ["--protocols", "best"],
            "--protocols best: expected 'pooled', 'source-to-source', 'leave-one-dataset-out' or 'all'",
        ),
        ("train", ["--only-folds", "7"], "--only-folds 7 of 4 folds: pass 0 to 3; see"),
        ("train", ["--loss.bce", "0", "--loss.dice", "0"], "give one of them a weight"),
        ("train", ["demo", "stray"], "unknown option stray; see lungseg train demo --help"),
        ("prepare", ["--preprocess.size", "100"], "multiple of 16"),
        ("prepare", ["--source", "a", "--images", "b"], "pass one of them"),
        ("prepare", ["--masks", "b"], "pass the folder of images too"),
        ("prepare", ["--dataset", "a/b"], "--dataset 'a/b': expected A-Z, a-z, 0-9, _ and - only: pass such a"),
        ("prepare", ["--preprocess.classes", "lung", "Heart"], "--preprocess.classes Heart: string should match"),
        ("prepare", ["--preprocess.landmarks", "1", "2"], "--preprocess.histogram none, expected match: pass"),
        ("prepare", ["--preprocess.landmarks", "300"], "--preprocess.landmarks 300: input should be less than"),
        ("train", ["--loader.batch-size", "1"], "batch norm has no variance over one image: pass 2 or more, or"),
        (
            "train",
            ["--folds", "2", "--patience", "3"],
            "one is held out, one for validation, none is left to train on: pass 3",
        ),
        ("infer", ["--part-size", "0"], "--part-size 0: input should be greater than or equal to 1"),
        ("report", ["--overlays", "101"], "less than or equal to 100"),
    ],
)
def test_a_wrong_value_is_explained_in_one_line(job: Job, args: list[str], message: str) -> None:
    assert message in error_of(job, *args)


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize(("job", "name"), [*EVERY, *((job, "") for job in JOBS)])
def test_help_shows_recipes_and_every_setting(job: Job, name: str, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = help_text(job, [*filter(None, [name]), "--help"])
    assert text.startswith(f"usage: lungseg {job} [RECIPE] [--config FILE]")
    assert all(f"\n  {recipe} " in text for recipe in RECIPES[job])
    options = options_of(RECIPES[job][name or "demo"][1])
    assert all(f"\n  {option.name}" in text for section in options.values() for option in section)
    assert all(f"\n--{section}.*:" in text for section in options if section)
    assert max(map(len, text.splitlines())) <= int(width)


def test_help_shows_the_defaults_of_the_recipe() -> None:
    assert "learning rate" in help_text("train", ["small"])
    words = [" ".join(help_text("train", [name]).split()) for name in ("small", "paper")]
    assert [("(default: 0.001)" in text, "(default: 0.0001)" in text) for text in words] == [
        (True, False),
        (False, True),
    ]


def test_parsing_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from lungseg.config.command_line import RECIPES, help_text, parse\n"
        "for job in RECIPES: parse(job, ['--dry-run']), help_text(job, [])\n"
        "heavy = {'torch', 'ray', 'numpy', 'cv2', 'pyarrow', 'pandas', 'rich', 'yaml'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text",
    [
        "epochs: !!int x",
        "epochs: 2001-99-99",
        "epochs: " + "9" * 5000,
        "study: &a [*a]",
        "study: " + "[" * 2000,
        "a: &a [x]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 200}]\n" for i in range(200)),
        "a: \0",
    ],
)
def test_a_file_that_is_no_settings_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="--config"):
        parse("train", ["--config", str(path)])
