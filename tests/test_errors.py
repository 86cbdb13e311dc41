import inspect
import pickle

import pytest

from lungseg import errors

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", ALL)
def test_the_docstring_draws_the_tree(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.LungsegError)
    assert kind.__name__ in (errors.__doc__ or "")


def test_settings_end_with_2_and_work_with_1() -> None:
    statuses = {kind.__name__: kind.exit_status for kind in ALL}
    assert statuses.pop("SettingsError") == 2
    assert set(statuses.values()) == {1}


def test_a_reason_survives_the_way_from_another_process() -> None:
    error = errors.ImageError("blank", "x.png holds one grey value")
    back = pickle.loads(pickle.dumps(error))
    assert (back.reason, str(back)) == ("blank", "blank: x.png holds one grey value")
