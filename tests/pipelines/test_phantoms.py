from pathlib import Path

import pytest

from lungseg.errors import InputError
from lungseg.imaging import phantom
from lungseg.pipelines.phantoms import draw_phantoms


def test_the_archive_is_the_one_that_is_drawn_at_once(tmp_path: Path) -> None:
    archive = Path(draw_phantoms(str(tmp_path / "out"), 3))
    phantom.write_archive(tmp_path / "once", 3)
    drawn = {path.relative_to(archive): path.read_bytes() for path in archive.rglob("*.png")}
    assert len(drawn) == 12
    assert drawn == {path.relative_to(tmp_path / "once"): path.read_bytes() for path in tmp_path.glob("once/**/*.png")}


def test_a_bucket_and_a_file_in_the_way_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only be written to a local disk"):
        draw_phantoms("s3://bucket/out", 1)
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        draw_phantoms(str(tmp_path / "out"), 1)
