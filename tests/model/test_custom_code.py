"""Own objects by import path: import, signature, errors, digest, and what a checkpoint may import."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lungseg.errors import SettingsError
from lungseg.model.custom_code import (
    AUGMENTATION,
    LOSS,
    NETWORK,
    STEP,
    ExtensionPoint,
    load_object,
    require_allowed,
    source_digest,
)
from tests.custom_modules import importable

SOURCE = """
from functools import partial
from othermodule import shared

VALUE = 3

class Focal:
    def __call__(self, logits, masks):
        return logits

class NeedsGamma:
    def __init__(self, gamma):
        pass

def loss(logits, masks, gamma=2.0):
    return logits

def one_argument(logits):
    return logits

with_gamma = partial(loss, gamma=1.0)

class Net:
    def __init__(self, width=8):
        pass

    def forward(self, images):
        return images
"""
SOURCES = {
    "ownlab.methods": SOURCE,
    "ownlab.broken": "x = 1\nraise ValueError('no licence\\nsecond line')\n",
    "ownlab.unclosed": "def f(:\n",
    "ownlab.needs": "import not_installed_anywhere\n",
    "othermodule": "def shared(logits, masks):\n    return logits\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path) -> Iterator[None]:
    with importable(tmp_path, SOURCES):
        yield


@pytest.mark.parametrize("name", ["Focal", "loss", "with_gamma", "shared"])
def test_functions_and_classes_are_losses(name: str) -> None:
    assert load_object(LOSS, f"ownlab.methods:{name}")("logits", "masks") == "logits"


def test_a_network_is_built_later() -> None:
    assert load_object(NETWORK, "ownlab.methods:Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("point", "path", "message"),
    [
        (LOSS, "focal", "--loss.custom focal: expected package.module:Name, such as mypackage.focal:Focal"),
        (LOSS, "ownlab/methods.py:Focal", "expected package.module:Name"),
        (LOSS, "ownlab.methods:Focal()", "expected package.module:Name"),
        (LOSS, "nowhere.methods:Focal", "no module nowhere here: set PYTHONPATH to the folder that holds it, or on a"),
        (LOSS, "ownlab.nothing:Focal", "no module ownlab.nothing here: set PYTHONPATH"),
        (LOSS, "ownlab.methods:Focl", "ownlab.methods has no Focl: did you mean Focal?"),
        (LOSS, "ownlab.methods:zzz", "ownlab.methods has no zzz: name a function or class of that module"),
        (LOSS, "ownlab.methods:VALUE", "cannot be called, expected: logits f32[B,1,H,W] and masks"),
        (LOSS, "ownlab.methods:one_argument", "cannot be called with (logits, masks), expected: logits f32[B,1,H,W]"),
        (LOSS, "ownlab.methods:NeedsGamma", "failed: NeedsGamma.__init__() missing 1 required positional"),
        (NETWORK, "ownlab.methods:NeedsGamma", "cannot be called with (), expected: no arguments; it returns a torch"),
        (AUGMENTATION, "ownlab.methods:loss", None),
        (
            STEP,
            "ownlab.methods:loss",
            "cannot be called with (model, images, masks, loss), expected: a network, images",
        ),
        (LOSS, "ownlab.broken:f", "importing it failed in broken.py, line 2: no licence"),
        (LOSS, "ownlab.unclosed:f", "importing it failed in unclosed.py, line 1: "),
        (LOSS, "ownlab.needs:f", "importing it failed in needs.py, line 1: No module named 'not_installed_anywhere'"),
    ],
)
def test_an_unusable_object_is_refused_in_one_line(point: ExtensionPoint, path: str, message: str | None) -> None:
    if message is None:
        assert callable(load_object(point, path))
        return
    with pytest.raises(SettingsError) as error:
        load_object(point, path)
    assert str(error.value).startswith(f"{point.option} {path}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_digest_follows_the_source(tmp_path: Path) -> None:
    digests = {}
    for folder, source in (("a", SOURCE), ("b", SOURCE), ("c", SOURCE.replace("VALUE = 3", "VALUE = 4"))):
        with importable(tmp_path / folder, {"ownmoved.methods": source}):
            digests[folder] = source_digest(LOSS, "ownmoved.methods:Focal")
    assert digests["a"] == digests["b"] != digests["c"]


def test_the_digest_covers_the_defining_module(tmp_path: Path) -> None:
    before = source_digest(LOSS, "ownlab.methods:shared")
    source_digest.cache_clear()
    (tmp_path / "othermodule.py").write_text(SOURCES["othermodule"] + "CHANGED = True\n")
    assert source_digest(LOSS, "ownlab.methods:shared") != before


def test_compiled_code_without_a_source_is_refused() -> None:
    with pytest.raises(SettingsError, match="no Python source file, whose digest is part of a run's name"):
        source_digest(LOSS, "math:dist")


def test_a_checkpoint_imports_only_what_the_user_names() -> None:
    require_allowed("runs/one", "", "")
    require_allowed("runs/one", "", "ownlab.methods:Net")
    require_allowed("runs/one", "ownlab.methods:Net", "ownlab.methods:Net")
    with pytest.raises(
        SettingsError, match=r"network is evil:run, code .* pass --model.custom evil:run to .* if you trust it"
    ):
        require_allowed("runs/one", "evil:run", "")
    with pytest.raises(SettingsError, match=r"network is evil:run, not ownlab.methods:Net, code"):
        require_allowed("runs/one", "evil:run", "ownlab.methods:Net")
