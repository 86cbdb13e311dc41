"""Given files with an alpha channel or an orientation tag."""

from pathlib import Path

import numpy as np
import pytest

from lungseg import storage
from lungseg.imaging import codecs
from lungseg.ingest import record_checks, sources
from lungseg.schema import Record


def folder_of(config: pytest.Config, name: str) -> Path:
    folder = (config.rootpath / ".." / "shared" / "cases" / name).resolve()
    if not folder.is_dir():
        pytest.skip(f"the cases are not at hand: no folder {folder}")
    return folder


@pytest.mark.parametrize("kind", ["white-on-transparent", "red-on-transparent", "black-on-transparent"])
def test_masks_in_alpha_are_used_and_recorded(pytestconfig: pytest.Config, kind: str) -> None:
    records = sources.discover(str(folder_of(pytestconfig, "mask-in-alpha") / kind))
    assert len(records) == 2
    for planned in records:
        record, _, mask = record_checks.open_record(planned)
        assert (record.status, record.codes) == ("repaired", ("mask_from_alpha",))
        assert mask is not None
        assert 0.1 < mask.mean() < 0.4


def test_opaque_masks_stay_as_they_were(pytestconfig: pytest.Config) -> None:
    for planned in sources.discover(str(folder_of(pytestconfig, "mask-in-alpha") / "opaque-control")):
        record, _, mask = record_checks.open_record(planned)
        drawn = codecs.decode(storage.read_bytes(planned.mask_uris[0]), "mask") > 127
        assert (record.status, record.codes) == ("ok", ())
        np.testing.assert_array_equal(mask, [drawn])


def test_tagged_pictures_are_upright_and_recorded(pytestconfig: pytest.Config) -> None:
    folder = folder_of(pytestconfig, "orientation")
    upright = codecs.decode((folder / "png1.png").read_bytes(), "png1.png").astype(int)
    for path in sorted(folder.iterdir()):
        record, image, _ = record_checks.open_record(Record(path.stem, "d", str(path)))
        assert image is not None
        assert image.shape == upright.shape
        assert np.abs(image - upright).mean() < 1
        number = int(path.stem[-1])
        assert record.orientation == number
        assert record.codes == (() if number == 1 else ("orientation_tag",))
        assert (record.height, record.width) == (upright.shape if number < 5 else upright.shape[::-1])
        assert "not_chest_like" not in record.flags
