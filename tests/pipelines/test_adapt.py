"""Adaptation of trained runs to prepared images: valid checkpoints, and early refusal of unusable input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lungseg import storage
from lungseg.config import AdaptSettings, InferSettings
from lungseg.dataset import catalog
from lungseg.errors import InputError, LungsegError, SettingsError
from lungseg.ingest import sources
from lungseg.model import checkpoint
from lungseg.model.checkpoint_io import load_weights
from lungseg.pipelines import adapt, infer
from lungseg.prepare import dataset_writer
from lungseg.prepare.shard_plan import plan_shards
from lungseg.schema import Record


@pytest.fixture(scope="module")
def adapted(ray_cluster: None, prepared: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs of the study, adapted to both datasets; read only."""
    out = tmp_path_factory.mktemp("adapted")
    adapt.run(AdaptSettings(checkpoint=(str(study),), data=(str(prepared),), out=str(out), batch_size=4))
    return out


def test_adapted_checkpoint_records_its_model_and_data(adapted: Path, prepared: Path, study: Path) -> None:
    assert sorted(path.name for path in adapted.iterdir()) == ["pooled-fold0-test", "pooled-fold1-test"]
    digests = [catalog.open_dataset(folder).digest for folder in catalog.find_datasets([str(prepared)])]
    for name in ("pooled-fold0-test", "pooled-fold1-test"):
        before, after = checkpoint.find_all(str(study / name))[0], checkpoint.find_all(str(adapted / name))[0]
        assert after.config["adapted_to"] == {"model": before.digest, "data": digests, "images": 8, "batch_size": 4}
        assert after.digest != before.digest
        assert checkpoint.trained_on(after) == checkpoint.trained_on(before)
        assert checkpoint.stored_threshold(after) == checkpoint.stored_threshold(before)
        old, new = load_weights(before), load_weights(after)
        changed = {weight for weight in old if not old[weight].equal(new[weight])}
        assert changed
        assert all(weight.rsplit(".")[-1].startswith(("running_", "num_batches")) for weight in changed)


def test_same_command_writes_the_same_models(
    adapted: Path, prepared: Path, trained: Path, tmp_path: Path, ray_cluster: None
) -> None:
    adapt.run(AdaptSettings(checkpoint=(str(trained),), data=(str(prepared),), out=str(tmp_path), batch_size=4))
    again = checkpoint.find_all(str(tmp_path / trained.name))[0]
    assert again.digest == checkpoint.find_all(str(adapted / trained.name))[0].digest


def test_adapted_model_can_predict(adapted: Path, archive: Path, tmp_path: Path, without_ray: None) -> None:
    infer.run(InferSettings(archive=str(archive), checkpoint=(str(adapted / "pooled-fold0-test"),), out=str(tmp_path)))
    (part,) = tmp_path.glob("rows/*.parquet")
    rows = storage.read_table(str(part)).to_pylist()
    assert len(rows) == 8
    assert min(row["dice"] for row in rows) > 0.5


def test_model_and_its_adapted_copy_are_not_averaged(
    adapted: Path, archive: Path, trained: Path, tmp_path: Path
) -> None:
    both = (str(trained), str(adapted / trained.name))
    with pytest.raises(SettingsError, match="was adapted from another of the given models"):
        infer.run(InferSettings(archive=str(archive), checkpoint=both, out=str(tmp_path)))


def test_models_are_not_written_into_the_dataset(prepared: Path, trained: Path) -> None:
    out = str(prepared / "south" / "adapted")
    assert "is inside the dataset" in refusal(checkpoint=(str(trained),), data=(str(prepared),), out=out)


def test_adapting_ignores_masks(adapted: Path, archive: Path, trained: Path, tmp_path: Path, ray_cluster: None) -> None:
    data = (str(_bare(archive, trained, tmp_path)),)
    adapt.run(AdaptSettings(checkpoint=(str(trained),), data=data, out=str(tmp_path / "out"), batch_size=4))
    without_masks = checkpoint.find_all(str(tmp_path / "out" / trained.name))[0]
    assert without_masks.digest == checkpoint.find_all(str(adapted / trained.name))[0].digest


def _bare(archive: Path, trained: Path, tmp_path: Path) -> Path:
    """Prepare the images of the archive without masks."""
    records = [Record(record.image_id, record.dataset, record.image_uri) for record in sources.discover(str(archive))]
    preprocess = checkpoint.find_all(str(trained))[0].preprocess
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path / "bare"), preprocess, images_per_shard=2))
    return tmp_path / "bare"


@given(st.integers(8, 3000), st.integers(8, 1000), st.integers(2, 64))
def test_batches_have_the_size_and_each_image_once(rows: int, images: int, batch: int) -> None:
    images = min(rows, images)
    groups = adapt.select_batches(rows, images, batch)
    chosen = sorted(np.concatenate(groups).tolist())
    assert len(chosen) == len(set(chosen)) == images
    assert (chosen[0], chosen[-1]) == (0, rows - 1)
    assert all(min(batch, images) <= len(group) < 2 * max(batch, images / len(groups)) for group in groups)


def test_batches_mix_the_datasets() -> None:
    groups = adapt.select_batches(96, 96, 16)  # the halves of the index are two hospitals
    assert all(4 <= int((group < 48).sum()) <= 12 for group in groups)


def refusal(**settings: tuple[str, ...] | str) -> str:
    with pytest.raises(LungsegError) as caught:
        adapt.run(AdaptSettings.model_validate(settings))
    return str(caught.value)


def test_no_checkpoint_is_refused() -> None:
    with pytest.raises(SettingsError, match="pass --checkpoint FOLDER"):
        adapt.run(AdaptSettings())


def test_other_preparation_is_refused(archive: Path, trained: Path, tmp_path: Path) -> None:
    other = checkpoint.find_all(str(trained))[0].preprocess.model_copy(update={"histogram": "clahe"})
    records = sources.discover(str(archive))
    dataset_writer.write_datasets(plan_shards(records, str(tmp_path), other, images_per_shard=8))
    message = refusal(checkpoint=(str(trained),), data=(str(tmp_path),))
    assert "(found --preprocess.histogram clahe, expected none)" in message
    assert "prepare the images with the model's settings" in message


def test_too_few_images_are_refused(prepared: Path, trained: Path) -> None:
    assert "3 images, at least 8" in refusal(checkpoint=(str(trained),), data=(str(prepared / "south"),))


def test_two_runs_of_one_name_are_refused(prepared: Path, trained: Path) -> None:
    message = refusal(checkpoint=(str(trained), str(trained)), data=(str(prepared),))
    assert "two runs named pooled-fold0-test" in message


def test_adapted_model_is_not_adapted_again(adapted: Path, prepared: Path) -> None:
    message = refusal(checkpoint=(str(adapted / "pooled-fold0-test"),), data=(str(prepared),))
    assert "adapted already" in message


def test_runs_and_other_results_are_not_overwritten(adapted: Path, prepared: Path, study: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(study, tmp_path / "study"))
    before = checkpoint.find_all(str(own / "pooled-fold0-test"))[0].digest
    shutil.rmtree(own / "pooled-fold1-test")
    runs = (str(own / "pooled-fold0-test"),)
    assert "holds a trained run" in refusal(checkpoint=runs, data=(str(prepared),), out=str(own))
    assert checkpoint.find_all(runs[0])[0].digest == before
    with pytest.raises(InputError, match="adapted to other images or settings"):
        adapt.run(AdaptSettings(checkpoint=runs, data=(str(prepared),), out=str(adapted), batch_size=2))
    incomplete = Path(shutil.copytree(adapted / "pooled-fold1-test", tmp_path / "out" / "pooled-fold1-test")).parent
    # The folder has no model of fold 0 yet, only one of fold 1.
    with pytest.raises(InputError, match=r"pooled-fold1-test was adapted to other images"):
        adapt.run(AdaptSettings(checkpoint=runs, data=(str(prepared),), out=str(incomplete), batch_size=2))


def test_damaged_tar_is_refused(own_prepared: Path, trained: Path, tmp_path: Path, ray_cluster: None) -> None:
    for tar in own_prepared.glob("*/*.tar"):
        content = bytearray(tar.read_bytes())
        content[600:1200] = bytes(600)
        tar.write_bytes(content)
    with pytest.raises(InputError, match=r"lungseg prepare"):
        adapt.run(
            AdaptSettings(
                checkpoint=(str(trained),), data=(str(own_prepared),), out=str(tmp_path / "out"), batch_size=4
            )
        )
    assert not list((tmp_path / "out").glob("*/checkpoint/*/config.json"))


def test_config_names_the_run(adapted: Path) -> None:
    (config,) = (adapted / "pooled-fold0-test").glob("checkpoint/*/config.json")
    assert json.loads(config.read_text())["run"] == "pooled-fold0-test"
