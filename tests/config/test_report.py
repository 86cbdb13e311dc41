"""Settings of lungseg report and lungseg export."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import ExportSettings, ReportSettings, Settings


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ReportSettings, {"overlays": 101}),
        (ReportSettings, {"overlays": -1}),
        (ExportSettings, {"formats": ["nifti"]}),
        (ExportSettings, {"overlay_px": 0}),
    ],
)
def test_invalid_values_are_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)
