"""The images that are measured: those of the user, or phantoms that are prepared and enlarged."""

from pathlib import Path

import pytest

from lungseg import storage
from lungseg.bench import inputs
from lungseg.config import BenchSettings, PreprocessSettings
from lungseg.errors import InputError
from lungseg.imaging import codecs

PREPROCESS = PreprocessSettings(size=64)


def test_without_data_the_phantoms_are_prepared(archive: Path, tmp_path: Path) -> None:
    data = inputs.open_data(BenchSettings(out=str(tmp_path), size=64), str(archive))
    assert [dataset.name for dataset in data] == ["north", "south"]
    assert {dataset.preprocess.size for dataset in data} == {64}


def test_without_an_archive_phantoms_are_enlarged_to_the_size_of_radiographs(archive: Path, tmp_path: Path) -> None:
    settings = BenchSettings(out=str(tmp_path), size=64)
    opened = inputs.open_images(settings, PREPROCESS, str(archive))
    assert len(opened) == 8
    for item, image in opened:
        assert codecs.decode(storage.read_bytes(item.record.image_uri), "x").shape == (256, 256)
        assert image.square is not None
        assert not image.references


def test_masks_of_an_archive_are_not_read(archive: Path, tmp_path: Path) -> None:
    settings = BenchSettings(archive=str(archive), out=str(tmp_path))
    opened = inputs.open_images(settings, PREPROCESS, "")
    assert len(opened) == 8
    assert all(not image.references for _, image in opened)


def test_an_archive_of_prepared_data_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is prepared data: pass it as --data"):
        inputs.open_images(BenchSettings(archive=str(prepared), out=str(tmp_path)), PREPROCESS, "")


def test_an_archive_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(InputError, match=r"none of 1 images can be segmented; first: .*broken\.png"):
        inputs.open_images(BenchSettings(archive=str(tmp_path)), PREPROCESS, "")


def test_the_assumed_prediction_shows_two_soft_lungs() -> None:
    probability = inputs.plausible_probability(64)
    assert probability.shape == (64, 64)
    assert 0.0 <= probability.min() < 0.1
    assert 0.9 < probability.max() <= 1.0
    assert ((probability > 0.1) & (probability < 0.9)).any()
