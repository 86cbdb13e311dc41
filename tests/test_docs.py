"""README and docs: links resolve, commands parse, snippets run, generated tables are current."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from lungseg import storage
from lungseg.config import ListingColumns
from lungseg.config.command_line import parse
from lungseg.config.overview import DAILY_COMMANDS, JOB_COMMANDS, OTHER_COMMANDS
from lungseg.config.recipes import RECIPES
from lungseg.config.segment import parse_segment
from lungseg.dataset.catalog import open_dataset
from lungseg.dataset.fold_table import write_fold_files
from lungseg.dataset.folds import ASSIGNED_FOLD
from lungseg.dataset.shard_format import class_fields, encode_masks
from lungseg.ingest import sources
from lungseg.result_columns import PREDICTIONS, STUDY_ROWS
from lungseg.schema import NOT_ANNOTATED

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "cluster" / "README.md"])
COLUMN_TABLES = {"inference.md": PREDICTIONS, "training.md": STUDY_ROWS}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"```(?:{language})\n(.*?)```", text, re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_resolves(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name}: {link}"


def test_named_test_files_exist() -> None:
    named = set(re.findall(r"`(test_[\w*]+\.py)`", (ROOT / "cluster" / "README.md").read_text()))
    assert named
    assert not [name for name in named if not list((ROOT / "tests").rglob(name))]


def _commands() -> list[str]:
    """Return the commands in all shell blocks, with continued lines joined and comments removed."""
    blocks = [block for page in PAGES for block in _fenced(page.read_text(), "sh|bash|console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({command for line in lines if (command := line.split(" #")[0].strip().removeprefix("$ "))})


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") < 200
    assert {"make demo", "make test"} <= set(_commands())


@pytest.mark.parametrize("command", _commands())
def test_a_documented_command_parses(command: str) -> None:
    words = shlex.split(command.split(" > ", maxsplit=1)[0])
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "make":
        assert all(word in targets for word in words[1:] if "=" not in word)
        return
    if words[0] == "lungseg":
        assert words[1] in {*DAILY_COMMANDS, *JOB_COMMANDS, *OTHER_COMMANDS}
        if words[1] == "segment":
            assert parse_segment(words[2:])
    jobs = [i for i, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
    jobs += [1] if words[0] == "lungseg" and words[1] in JOB_COMMANDS else []
    for i in jobs:
        job = Path(words[i]).stem
        assert job in RECIPES
        if "--config" not in words:
            assert parse(job, words[i + 1 :]) is not None  # type: ignore[arg-type]
    files = [word for word in words if word.startswith(("cluster/", ".venv/bin/", ".ci/", "tests/"))]
    assert all((ROOT / word).exists() for word in files)
    known = {
        "openssl",
        "python",
        "ray",
        "eval",
        "export",
        "git",
        "cd",
        "kubectl",
        "pip",
        "uv",
        "wandb",
        "lungseg",
        "RAY_ADDRESS=local",
    }
    assert jobs or files or words[0] in known, f"nothing shows that this exists: {command}"


def test_the_python_snippets_run(
    prepared: Path, study: Path, predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"run": "pooled-fold0-test", "fold": 0, "image_id": "south_00"}
    rows = [
        {"train_on": "north", "dataset": "south", "role": role, "dice": 0.9, "class": "lung", **ids}
        for role in ("cross", "held-out")
    ]
    folders = {
        "data/prepared/montgomery": prepared / "north",
        "data/prepared/south": prepared / "south",
        "predictions": predicted,
    }
    for name, target in folders.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    import pandas as pd

    first = tmp_path / "runs" / "first"
    pd.DataFrame(rows).to_parquet(first / "study.parquet")
    for path in study.iterdir():
        (first / path.name).symlink_to(path)
    images = [row for part in ("north", "south") for row in open_dataset(str(prepared / part)).index.to_pylist()]
    with_folds = [{**row, ASSIGNED_FOLD: number % 2} for number, row in enumerate(images)]
    write_fold_files(str(first), pa.Table.from_pylist(with_folds))
    monkeypatch.chdir(tmp_path)
    snippets = _fenced((ROOT / "docs" / "building-on-lungseg.md").read_text(), "python")
    names: dict[str, object] = {}
    exec("\n".join(snippets), names)
    batch = next(iter(names["loader"]))  # type: ignore[call-overload]
    assert batch["image"].shape == batch["mask"].shape
    assert batch["image"].shape[1:] == (1, 64, 64)
    assert names["logits"].shape == names["batch"]["mask"].shape  # type: ignore[attr-defined,index]
    assert names["probabilities"].shape == (1, 1, 64, 64)  # type: ignore[attr-defined]
    assert 0 < len(names["unseen"]) < len(names["folds"]) == 8  # type: ignore[arg-type]
    assert len(names["held_out"]) == 1  # type: ignore[arg-type]
    assert names["mask"].shape == tuple(names["row"][["height", "width"]])  # type: ignore[attr-defined,index]


def test_four_tools_read_the_documented_folder(
    predicted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "predictions").symlink_to(predicted)
    monkeypatch.chdir(tmp_path)
    snippet, *others = _fenced((ROOT / "docs" / "inference.md").read_text(), "python")
    for other in others:
        exec(other, {})
    names: dict[str, Any] = {}
    exec(snippet, names)
    ids = set(names["frame"]["image_id"])
    assert len(ids) == len(names["frame"]) == 8
    assert set(names["table"].column("image_id").to_pylist()) == ids
    assert set(names["polars_frame"]["image_id"]) == ids
    assert {image_id for (image_id,) in names["relation"].select("image_id").fetchall()} == ids
    assert "`predictions/rows`" in (ROOT / "README.md").read_text()


def test_the_layout_snippet_recognises_its_files() -> None:
    names: dict[str, Any] = {}
    exec(_fenced((ROOT / "docs" / "archives.md").read_text(), "python")[3], names)
    records = names["recognise"]("x", ["x/00000001_000.png", "x/other.png"], ["lung"])
    assert [(record.image_id, record.patient_id) for record in records] == [("00000001_000", "00000001")]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("end", ["", "/"])
def test_the_snippet_lists_the_images_of_a_folder(scheme: str, end: str, tmp_path: Path) -> None:
    names = dict[str, Any]()
    files = [tmp_path / "archive" / name for name in ("a b/1.dcm", "c/2.DCM", "c/notes.txt")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    exec(_fenced((ROOT / "docs" / "archives.md").read_text(), "python")[0], names)
    names["list_images"](f"{scheme}{tmp_path}/archive{end}", str(tmp_path / "list.parquet"))
    records = list(sources.Listing(str(tmp_path / "list.parquet"), ListingColumns()))
    assert [storage.exists(record.image_uri) for record in records] == [True, True]
    assert {storage.name_of(record.image_uri) for record in records} == {"1.dcm", "2.DCM"}


def test_the_snippet_writes_masks_of_normal_images(tmp_path: Path) -> None:
    images, names = tmp_path / "north" / "images", dict[str, Any]()
    images.mkdir(parents=True)
    for name in ("a", "b"):
        assert cv2.imwrite(str(images / f"{name}.png"), np.full((40, 30), 90, np.uint8))
    exec(_fenced((ROOT / "docs" / "archives.md").read_text(), "python")[1], names)
    names["write_empty_masks"]([images / "a.png"], images.parent / "opacity")
    first, second = sources.discover(str(tmp_path), classes=("lung", "opacity"))
    assert (first.mask_classes, second.mask_classes) == (("opacity",), ())
    assert not cv2.imread(first.mask_uris[0], cv2.IMREAD_UNCHANGED).any()  # type: ignore[union-attr]


def test_the_snippet_reads_the_masks_of_a_sample() -> None:
    names: dict[str, Any] = {}
    exec(_fenced((ROOT / "docs" / "archives.md").read_text(), "python")[2], names)
    classes = ("lung", "heart", "opacity")
    masks = np.stack([np.eye(8, dtype=np.uint8), np.full((8, 8), NOT_ANNOTATED, np.uint8), np.tri(8, dtype=np.uint8)])
    about = {"image_id": "a", **class_fields(masks, classes)}
    read = names["masks_of"]({"json": json.dumps(about).encode(), "mask.png": encode_masks(masks)})
    assert list(read) == ["lung", "opacity"]
    np.testing.assert_array_equal(read["opacity"] > 0, masks[2])


def test_the_task_table_names_existing_files() -> None:
    paths = re.findall(r"`((?:lungseg|jobs|tests)/[\w/.]*)`", (ROOT / "docs" / "development.md").read_text())
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_column_tables_match_the_schemas() -> None:
    """`python tests/test_docs.py` updates the tables."""
    for page, columns in COLUMN_TABLES.items():
        assert _with_columns(page, columns) == (ROOT / "docs" / page).read_text()


def _with_columns(page: str, columns: pa.Schema) -> str:
    rows = ["| column | type | description |", "|---|---|---|"]
    for field in columns:
        kind = str(field.type).replace("list<item: ", "list of ").replace("element: ", "")
        kind = kind.removesuffix(">") if isinstance(field.type, pa.ListType) else kind
        rows.append(f"| `{field.name}` | {kind} | {field.metadata[b'description'].decode()} |")
    return re.sub(
        r"(<!-- columns:start -->\n).*?(<!-- columns:end -->)",
        lambda match: match[1] + "\n".join(rows) + "\n" + match[2],
        (ROOT / "docs" / page).read_text(),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for name, schema in COLUMN_TABLES.items():
        (ROOT / "docs" / name).write_text(_with_columns(name, schema))
