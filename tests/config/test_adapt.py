"""Settings of lungseg adapt."""

import pytest
from pydantic import ValidationError

from lungseg.config import AdaptSettings


@pytest.mark.parametrize("settings", [{"max_images": 7}, {"batch_size": 1}, {"picture": 9}])
def test_invalid_values_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        AdaptSettings.model_validate(settings)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        AdaptSettings().batch_size = 4  # type: ignore[misc]
