"""Settings of infer and report: rules between fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from lungseg.config import InferSettings, ReportSettings, Settings


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (InferSettings, {"part": 0}),
        (InferSettings, {"workers": -1}),
        (InferSettings, {"postprocess": "crf"}),
        (ReportSettings, {"overlays": 101}),
    ],
)
def test_what_cannot_be_is_refused(kind: type[Settings], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)
