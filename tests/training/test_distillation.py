"""Distillation: the loss, its pull to the teacher, errors, and runs that resume to the same bits."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from lungseg import storage
from lungseg.config import OptimSettings, PreprocessSettings, TrainSettings
from lungseg.errors import SettingsError
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint import Checkpoint
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import NOT_ANNOTATED
from lungseg.study import study_plan
from lungseg.training.distillation import DistillingLearner, Teacher, check_teacher, find_teacher
from lungseg.training.study_classes import study_classes
from lungseg.training.study_data import open_training_data
from lungseg.training.train_step import Learner
from tests.training.test_run_loop import PLAN, a_run, changed, folders, go_until, same_result  # noqa: F401  # a fixture
from tests.training.test_train_step import CPU, a_batch, a_learner, a_settings, network

STEPS = 12


@pytest.fixture(scope="module")
def models(trained: Path) -> list[Checkpoint]:
    return find_teacher(str(trained))


@pytest.fixture(scope="module")
def teacher(models: list[Checkpoint]) -> Teacher:
    return Teacher(models, ["lung"], CPU)


def a_student(teacher: Callable[[Tensor], Tensor]) -> DistillingLearner:
    return DistillingLearner(network(), CPU, a_settings(), teacher)  # type: ignore[arg-type]


def distance(learner: Learner, soft: Tensor) -> float:
    learner.model.eval()
    with torch.no_grad():
        found = torch.sigmoid(learner.model(a_batch(1, 2).to(CPU)[0]))
    return float(binary_cross_entropy(found, soft))


def test_loss_is_the_mean_of_masks_and_teacher(teacher: Teacher) -> None:
    batch = a_batch(1, 2)
    images = batch.to(CPU)[0]
    plain, student = a_learner(model=network()), a_student(teacher)
    student.model.eval()
    with torch.no_grad():
        logits = student.model(images)  # batch norm is frozen: the same in training, without dropout
    distances = binary_cross_entropy(torch.sigmoid(logits), teacher(images), reduction="none").mean((1, 2, 3))
    assert torch.allclose(student(batch, 1e-2), (plain(batch, 1e-2) + distances) / 2, atol=1e-5)


def test_a_student_moves_towards_its_teacher() -> None:
    soft = torch.zeros(2, 1, 64, 64)
    soft[..., :32] = 0.9  # nothing like the masks
    plain, student = a_learner(model=network()), a_student(lambda _: soft)
    for _ in range(STEPS):
        for learner in (plain, student):
            learner(a_batch(1, 2), 1e-2)
    assert distance(student, soft) < distance(plain, soft) / 4


def test_a_teacher_is_the_mean_of_its_models_and_learns_nothing(study: Path, models: list[Checkpoint]) -> None:
    images = a_batch(1, 2).to(CPU)[0]
    both = find_teacher(str(study))
    assert len(both) == 2
    alone = [Teacher([model], ["lung"], CPU)(images) for model in both]
    together = Teacher(both, ["lung"], CPU)(images)
    assert torch.allclose(together, (alone[0] + alone[1]) / 2)
    assert not together.requires_grad
    assert not torch.equal(*alone)


def test_images_of_another_size_are_resized(teacher: Teacher) -> None:
    images = a_batch(1).to(CPU)[0]
    small = torch.nn.functional.avg_pool2d(images, 2)
    enlarged = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.avg_pool2d(teacher(enlarged), 2)  # as bilinear halving
    assert torch.allclose(teacher(small), expected, atol=1e-6)


def test_a_killed_run_resumes_to_the_same_bits(
    folders: tuple[str, ...],  # noqa: F811
    trained: Path,
    tmp_path: Path,
) -> None:
    settings = changed(epochs=2, save_steps=1, teacher=str(trained), optim=OptimSettings(lr=5e-3, ema_decay=0.9))
    whole, killed = (a_run(folders, tmp_path / name, settings) for name in ("whole", "killed"))
    go_until(whole, lambda _: False)
    assert go_until(killed, lambda event: event[:3] == ("shown", "1", "2"))[-1] == ("killed",)
    go_until(killed, lambda _: False)
    same_result(killed, whole)
    plain = a_run(folders, tmp_path / "plain", changed(epochs=2, save_steps=1, optim=settings.optim))
    go_until(plain, lambda _: False)
    digests = [checkpoint.find_all(run.folder)[0].digest for run in (whole, plain)]
    assert digests[0] != digests[1]


def test_a_run_is_named_after_its_teacher(
    folders: tuple[str, ...],  # noqa: F811
    study: Path,
    tmp_path: Path,
) -> None:
    names = {a_run(folders, tmp_path, changed(teacher=path)).name for path in ("", *map(str, study.glob("pooled*")))}
    assert len(names) == 3


def changed_teacher(monkeypatch: pytest.MonkeyPatch, model: Checkpoint, **preprocess: object) -> None:
    other = Checkpoint(model.folder, model.config | {"preprocess": model.config["preprocess"] | preprocess})
    monkeypatch.setattr("lungseg.training.distillation.find_teacher", lambda _: [other])


def test_a_teacher_without_a_class_is_refused_before_training(
    folders: tuple[str, ...],  # noqa: F811
    models: list[Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed_teacher(monkeypatch, models[0], classes=["heart"])
    with pytest.raises(SettingsError, match="--teacher other has no class lung, but the data have: pass a model of l"):
        check_teacher(changed(teacher="other"), open_training_data(folders))


def test_a_teacher_of_another_geometry_is_refused(
    folders: tuple[str, ...],  # noqa: F811
    models: list[Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed_teacher(monkeypatch, models[0], geometry="crop")
    with pytest.raises(SettingsError, match=r"other preprocessing than .*found --preprocess.geometry crop"):
        check_teacher(changed(teacher="other"), open_training_data(folders))


def test_a_teacher_that_saw_the_images_is_reported(
    folders: tuple[str, ...],  # noqa: F811
    trained: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_teacher(changed(teacher=str(trained)), open_training_data(folders))
    assert "was trained on 4 of 8 images of this study" in caplog.text


@pytest.fixture(scope="module")
def with_more_images(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The datasets north, south, and east whose images have no masks; two images of north have none either."""
    folder = tmp_path_factory.mktemp("partly")
    shutil.copytree(archive, folder / "archive")
    for number in (1, 2):
        (folder / "archive" / "north" / "masks" / f"north_0{number}.png").unlink()
    (folder / "archive" / "south").rename(folder / "archive" / "east")
    shutil.rmtree(folder / "archive" / "east" / "masks")
    shutil.copytree(archive / "south", folder / "archive" / "south")
    for picture in (folder / "archive" / "east" / "images").iterdir():  # no copy of an image of south
        cv2.imwrite(str(picture), 255 - cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)[:, ::-1])
    records = sources.discover(str(folder / "archive"))
    plans = plan_shards(records, str(folder / "data"), PreprocessSettings(size=64), images_per_shard=2)
    dataset_writer.write_datasets(plans)
    return tuple(str(folder / "data" / name) for name in ("north", "south", "east"))


@pytest.mark.parametrize("halves", [False, True])
def test_images_without_masks_are_trained_on_and_never_tested(
    with_more_images: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    halves: bool,
) -> None:
    plan = replace(PLAN, folds=3)
    settings = changed(epochs=2, folds=3, teacher=str(trained), half_size_epochs=int(halves))
    run = a_run(with_more_images, tmp_path / "run", settings, plan)
    go_until(run, lambda _: False)
    (model,) = checkpoint.find_all(run.folder)
    seen = {(row["dataset"], row["image_id"]) for row in checkpoint.trained_on_table(model).to_pylist()}
    tested = storage.read_table(f"{run.folder}/tested.parquet").to_pylist()
    without_mask = {("north", "north_01"), ("north", "north_02"), *(("east", f"south_0{i}") for i in range(3))}
    assert without_mask < seen
    assert {name for name, _ in seen} == {"north", "east"}
    assert {row["dataset"] for row in tested} == {"north", "south"}
    assert not seen & {(row["dataset"], row["image_id"]) for row in tested}
    plain = study_plan.plan_runs(settings, open_training_data(with_more_images, settings))
    assert [one.train_on for one in plain] == [("north", "south")] * 3


def test_images_without_masks_need_neither_folds_nor_unique_ids(
    with_more_images: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    settings = changed(folds=3, teacher=str(trained))
    data = open_training_data(with_more_images, settings)
    index = study_plan.index_of(settings, data)
    plans = study_plan.plan_runs(settings, data)
    assert study_plan.require_feasible(settings, index, plans) == [9, 9, 9]  # four with a mask, five without
    more = changed(folds=4, teacher=str(trained))
    index, plans = study_plan.index_of(more, data), study_plan.plan_runs(more, data)
    with pytest.raises(SettingsError, match="--folds 4: north has 3 groups of images"):
        study_plan.require_feasible(more, index, plans)
    table = tmp_path / "folds.csv"
    rows = [f"{name}_0{number},{number % 3}" for name, number in (*(("north", n) for n in (0, 3, 4)), ("south", 1))]
    table.write_text("\n".join(["image_id,fold", *rows, "south_00,0", "south_02,2"]))
    given = open_training_data(with_more_images, settings.model_copy(update={"folds_from": str(table)}))
    assert [dataset.index.column("fold").null_count for dataset in given] == [2, 0, 3]


def test_classes_of_datasets_without_masks_do_not_count(prepared: Path) -> None:
    data = open_training_data([str(prepared / "north"), str(prepared / "south")])
    unmasked = data[1].index.set_column(
        data[1].index.schema.get_field_index("mask_size"), "mask_size", pa.array([0] * 3, pa.int64())
    )
    other = data[1].preprocess.model_copy(update={"classes": ("right_lung", "left_lung")})
    assert study_classes([replace(data[1], index=unmasked, preprocess=other), data[0]]) == ("lung",)


def test_images_without_masks_learn_from_the_teacher_alone(teacher: Teacher) -> None:
    batch = a_batch(1, 2)
    batch.masks[0] = NOT_ANNOTATED
    student = a_student(teacher)
    student.model.eval()
    images = batch.to(CPU)[0]
    with torch.no_grad():
        logits = student.model(images)
    distances = binary_cross_entropy(torch.sigmoid(logits), teacher(images), reduction="none").mean((1, 2, 3))
    own = a_learner(model=network())(a_batch(1, 2), 1e-2)
    assert torch.allclose(student(batch, 1e-2), torch.stack([distances[0], (own[1] + distances[1]) / 2]), atol=1e-5)
    assert all(weight.isfinite().all() for weight in student.model.parameters())


def test_images_without_masks_are_skipped_without_a_teacher(
    with_more_images: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    data = open_training_data(with_more_images, changed())
    assert [(dataset.name, dataset.index.num_rows) for dataset in data] == [("north", 3), ("south", 3)]
    assert "east: 3 of 3 images have no mask and are skipped" in caplog.text


def test_a_teacher_and_a_custom_step_are_refused() -> None:
    with pytest.raises(ValidationError, match="both compute the losses"):
        TrainSettings(teacher="lungs", optim=OptimSettings(custom_step="a:b"))
