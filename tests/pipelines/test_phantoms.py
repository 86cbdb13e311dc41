from pathlib import Path

import pytest

from lungseg.errors import InputError
from lungseg.imaging import phantom
from lungseg.pipelines.phantoms import draw_phantoms


def test_drawn_archive_equals_write_archive(tmp_path: Path) -> None:
    archive = Path(draw_phantoms(str(tmp_path / "out"), 3))
    phantom.write_archive(tmp_path / "once", 3)
    drawn = {path.relative_to(archive): path.read_bytes() for path in archive.rglob("*.png")}
    assert len(drawn) == 12
    assert drawn == {path.relative_to(tmp_path / "once"): path.read_bytes() for path in tmp_path.glob("once/**/*.png")}


def test_bucket_or_file_as_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only be written to a local disk"):
        draw_phantoms("s3://bucket/out", 1)
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        draw_phantoms(str(tmp_path / "out"), 1)
