"""Custom loss, network, augmentation and step, as the documentation shows them, in a whole run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungseg import storage
from lungseg.config import (
    AdaptSettings,
    AugmentSettings,
    LoaderSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    TrainSettings,
    WandbSettings,
)
from lungseg.dataset import catalog, folds
from lungseg.errors import SettingsError
from lungseg.inference.ensemble import Predictor
from lungseg.inference.items import PredictOptions
from lungseg.inference.model_selection import find_models
from lungseg.model import checkpoint
from lungseg.pipelines import adapt
from lungseg.schema import NOT_ANNOTATED
from lungseg.training import run_loop, run_state, study_data
from lungseg.training.custom_augmentation import CustomAugmentation
from lungseg.training.custom_code_check import check_custom_code
from lungseg.training.run import Progress, Run, name_run
from tests.custom_modules import documented_module, importable

ODD = """
import numpy as np, torch

def scalar(logits, masks):
    return (logits - masks).pow(2).mean()

def detached(logits, masks):
    return (logits - masks).pow(2).mean(dim=(1, 2, 3)).detach()

def infinite(logits, masks):
    return (logits / masks.sum()).log().mean(dim=(1, 2, 3))

def divides(logits, masks):
    return 1 / 0

def none():
    return None

def frozen():
    return torch.nn.Identity()

class Halves(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 2, 2)
    def forward(self, images):
        return self.net(images)

class ThreeChannels(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 1, 1)
    def forward(self, images):
        return self.net(images)

def only_image(image, mask, random):
    return image

def as_floats(image, mask, random):
    return image / 255, mask

def white_mask(image, mask, random):
    return image, mask * 255

def in_place(image, mask, random):
    image[:] = 0
    mask[:] = 1
    return image, mask

def draws(image, mask, random):
    return np.full_like(image, random.integers(0, 255)), mask

def returns_logits(model, images, masks, loss):
    return model(images)
"""
TINY = ModelSettings(encoder="tu-test_efficientnet", weights="none")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path) -> Iterator[None]:
    with importable(tmp_path / "code", {"mylab.methods": documented_module(), "odd": ODD}):
        yield


def settings(**custom: str) -> TrainSettings:
    return TrainSettings(
        folds=2,
        epochs=1,
        model=TINY.model_copy(update={"custom": custom.get("model", "")}),
        loss=LossSettings(custom=custom.get("loss", "")),
        augment=AugmentSettings(custom=custom.get("augment", "")),
        optim=OptimSettings(lr=1e-2, custom_step=custom.get("step", "")),
        loader=LoaderSettings(batch_size=4),
        wandb=WandbSettings(mode="disabled"),
    )


def run_of(prepared: Path, folder: Path, chosen: TrainSettings) -> Run:
    data = catalog.find_datasets([str(prepared)])
    opened = study_data.open_training_data(data)
    (plan,) = folds.plan_study(("pooled",), [part.name for part in opened], 2, (0,), 0)
    return Run(chosen, plan, tuple(data), name_run(chosen, plan, opened), str(folder))


def train(prepared: Path, folder: Path, chosen: TrainSettings) -> dict[str, Any]:
    run = run_of(prepared, folder, chosen)
    return run_loop.finish(run_state.start(run, torch.device("cpu")), lambda _: None)


@pytest.fixture(scope="module")
def plain(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without custom code; read-only."""
    folder = tmp_path_factory.mktemp("plain")
    assert train(prepared, folder, settings())["custom_code"] == {}
    return folder


CUSTOM = {"loss": "Focal", "model": "SmallNet", "augment": "erase", "step": "mixup"}


@pytest.mark.parametrize(("door", "name"), [*CUSTOM.items(), ("model", "own_encoder")])
def test_each_documented_object_passes_and_changes_the_run(
    door: str, name: str, prepared: Path, plain: Path, tmp_path: Path
) -> None:
    chosen = settings(**{door: f"mylab.methods:{name}"})
    check_custom_code(chosen, 64)
    assert run_of(prepared, tmp_path, chosen).name != run_of(prepared, tmp_path, settings()).name
    train(prepared, tmp_path / door, chosen)
    losses = [json.loads((folder / "metrics.jsonl").read_text())["loss"] for folder in (tmp_path / door, plain)]
    assert np.isfinite(losses[0])
    assert losses[0] != losses[1]


def test_a_run_of_custom_code_is_predicted_when_named_again(prepared: Path, tmp_path: Path) -> None:
    chosen = settings(**{door: f"mylab.methods:{name}" for door, name in CUSTOM.items()})
    check_custom_code(chosen, 64)
    summary = train(prepared, tmp_path / "run", chosen)
    assert set(summary["custom_code"]) == {f"mylab.methods:{name}" for name in CUSTOM.values()}
    assert storage.read_json(f"{tmp_path}/run/run.json")["custom_code"] == summary["custom_code"]
    (saved,) = checkpoint.find_all(str(tmp_path / "run"))
    path = "mylab.methods:SmallNet"
    square = np.zeros((64, 64), np.uint8)
    checkpoint.require_custom_code([saved], path)
    assert Predictor(saved, PredictOptions(custom_network=path)).probabilities([square]).shape == (1, 1, 64, 64)
    folders = (str(tmp_path / "run"),)
    refusals = (
        lambda: Predictor(saved),
        lambda: find_models(folders),
        lambda: adapt.run(AdaptSettings(checkpoint=folders, data=(str(prepared),))),
    )
    for refuse in refusals:
        with pytest.raises(SettingsError, match=rf"its network is {path}, code .* pass --model.custom {path}"):
            refuse()


def test_a_killed_run_of_custom_code_gives_the_same_weights(prepared: Path, tmp_path: Path) -> None:
    chosen = settings(**{door: f"mylab.methods:{name}" for door, name in CUSTOM.items()})
    chosen = chosen.model_copy(update={"epochs": 2})

    def end_in_epoch_2(progress: Progress) -> None:
        if progress.epoch == 2:
            raise InterruptedError

    killed = run_of(prepared, tmp_path / "killed", chosen)
    with pytest.raises(InterruptedError):
        run_loop.finish(run_state.start(killed, torch.device("cpu")), end_in_epoch_2)
    assert checkpoint.find_all(killed.folder)[0].epoch == 1
    for folder in ("killed", "whole"):
        train(prepared, tmp_path / folder, chosen)
    digests = {checkpoint.find_all(str(tmp_path / folder))[0].digest for folder in ("killed", "whole")}
    assert len(digests) == 1


def test_a_checkpoint_never_imports_what_it_names(plain: Path, tmp_path: Path) -> None:
    with importable(tmp_path / "bad", {"trap": "raise SystemExit('imported')\n"}):
        (saved,) = checkpoint.find_all(str(plain))
        saved.config["settings"]["model"]["custom"] = "trap:net"
        for allowed in ("", "mylab.methods:SmallNet"):
            with pytest.raises(SettingsError, match="its network is trap:net"):
                checkpoint.require_custom_code([saved], allowed)
            with pytest.raises(SettingsError, match="its network is trap:net"):
                Predictor(saved, PredictOptions(custom_network=allowed))


def test_a_network_that_no_checkpoint_names_is_refused(plain: Path) -> None:
    (saved,) = checkpoint.find_all(str(plain))
    checkpoint.require_custom_code([saved], "")
    with pytest.raises(SettingsError, match="no model of --checkpoint has a custom network: leave it out"):
        checkpoint.require_custom_code([saved], "mylab.methods:SmallNet")


def test_a_changed_network_is_reported(prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(prepared, tmp_path / "run", settings(model="mylab.methods:SmallNet"))
    (saved,) = checkpoint.find_all(str(tmp_path / "run"))
    checkpoint.require_custom_code([saved], "mylab.methods:SmallNet")
    assert not caplog.records
    saved.config["custom_code"]["mylab.methods:SmallNet"] = "0" * 12
    checkpoint.require_custom_code([saved], "mylab.methods:SmallNet")
    assert "mylab.methods:SmallNet changed since a model was trained with it" in caplog.text


def test_a_changed_source_renames_the_run(prepared: Path, tmp_path: Path) -> None:
    names = set()
    for number, source in enumerate((ODD, ODD, ODD.replace("pow(2)", "abs()"))):
        with importable(tmp_path / str(number), {"changing": source}):
            names.add(run_of(prepared, tmp_path, settings(loss="changing:scalar")).name)
    assert len(names) == 2


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"loss": "odd:scalar"}, "returned a tensor of shape () for 2 images, expected shape (2,): one loss for each"),
        ({"loss": "odd:detached"}, "returned losses without a gradient, so nothing would be learned"),
        ({"loss": "odd:infinite"}, "expected finite values"),
        ({"loss": "odd:divides"}, "--loss.custom odd:divides failed in odd.py, line 14: division by zero"),
        (
            {"model": "odd:none"},
            "--model.custom odd:none returned NoneType, expected: no arguments; it returns a torch",
        ),
        ({"model": "odd:frozen"}, "returned a network without weights to train"),
        ({"model": "odd:Halves"}, "gives (2, 1, 32, 32) for (2, 1, 64, 64), expected (2, 1, 64, 64)"),
        ({"model": "odd:ThreeChannels"}, "--model.custom odd:ThreeChannels failed in odd.py, line 34: "),
        ({"augment": "odd:only_image"}, "returned one array, uint8 of shape (64, 64), expected an image and a mask"),
        (
            {"augment": "odd:as_floats"},
            "returned float64 of shape (64, 64) up to 0.0 and uint8 of shape (64, 64) up to",
        ),
        ({"augment": "odd:white_mask"}, "uint8 of shape (64, 64) up to 255, expected an image and a mask in {0,1}"),
        ({"step": "odd:returns_logits"}, "returned a tensor of shape (2, 1, 64, 64) for 2 images, expected shape (2,)"),
    ],
)
def test_custom_code_that_does_not_fit_is_refused_first(custom: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        check_custom_code(settings(**custom), 64)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_custom_augmentation_cannot_change_cached_samples() -> None:
    image, mask = np.full((8, 8), 9, np.uint8), np.zeros((8, 8), np.uint8)
    augmented = CustomAugmentation("odd:in_place")(image, mask[None], (0, 0, "one"))
    assert (augmented[0].max(), augmented[1].min(), image.min(), mask.max()) == (0, 1, 9, 0)


def test_a_custom_augmentation_gets_zeros_where_an_image_has_no_mask() -> None:
    image, masks = np.full((8, 8), 9, np.uint8), np.full((1, 8, 8), NOT_ANNOTATED, np.uint8)
    new_image, new_masks = CustomAugmentation("odd:in_place")(image, masks, (0, 0, "one"))
    assert new_image.max() == 0
    assert (new_masks == NOT_ANNOTATED).all()


def test_custom_random_numbers_depend_on_the_key_only() -> None:
    augmentation, image = CustomAugmentation("odd:draws"), np.zeros((4, 4), np.uint8)
    keys = [(0, 0, "one"), (0, 0, "one"), (1, 0, "one"), (0, 1, "one"), (0, 0, "two")]
    values = [int(augmentation(image, image[None], key)[0][0, 0]) for key in keys]
    assert values[0] == values[1]
    assert len(set(values)) > 2


def test_without_custom_code_nothing_is_checked_or_recorded(plain: Path) -> None:
    check_custom_code(settings(), 64)
    assert storage.read_json(f"{plain}/run.json")["custom_code"] == {}
