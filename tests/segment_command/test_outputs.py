"""Which DICOM segmentations lungseg segment holds back."""

from pathlib import Path

import numpy as np
import pytest

from lungseg.config.segment import SegmentSettings
from lungseg.schema import Record
from lungseg.segment_command.inputs import GivenImage
from lungseg.segment_command.outputs import Outputs
from tests.conftest import DrawPair
from tests.export.prediction_files import prediction_row
from tests.imaging.dicom.dicom_files import write_dicom


@pytest.mark.parametrize(("doubt", "include", "written"), [(0.09, False, True), (0.2, False, False), (0.2, True, True)])
def test_unusual_doubt_holds_a_dicom_segmentation_back(
    draw_pair: DrawPair, tmp_path: Path, doubt: float, include: bool, written: bool
) -> None:
    image, mask = draw_pair(7, 64, 72)
    path = tmp_path / "x.dcm"
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "SOPInstanceUID": "1.2.5"}
    path.write_bytes(write_dicom(image.astype(np.uint16), **uids))
    given = GivenImage(Record("x", "", str(path)), "scans.zip/x.dcm", "x")
    row = prediction_row("x", "scans.zip/x.dcm", mask, doubt=doubt)
    settings = SegmentSettings(paths=("x",), out=str(tmp_path), formats=("dicom-seg",), include_doubtful=include)
    outputs = Outputs(str(tmp_path), settings)
    result = outputs.write_segmentation(given, row, max_doubt=0.1)
    assert result.get("dicom_seg_file") == ("dicom-seg/x.dcm" if written else None)
    assert (tmp_path / "dicom-seg" / "x.dcm").exists() == written
    assert written or "scans.zip/x.dcm has the doubt 0.200, usual are 0.100 or less" in outputs.refused[0]
