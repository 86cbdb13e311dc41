"""The exception hierarchy, and results and errors that pass from a task to the driver."""

import pickle

import pytest

from lungseg import errors
from lungseg.errors import CheckpointError, ImageError, InputError, LungsegError, SettingsError, TaskResult

CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.LungsegError)
]


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("kind", CLASSES)
def test_module_docstring_lists_every_class(kind: type[LungsegError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_only_settings_errors_end_with_status_2() -> None:
    assert [kind for kind in CLASSES if kind.exit_status != 1] == [SettingsError]


@pytest.mark.parametrize("kind", CLASSES)
def test_error_survives_json_and_pickle(kind: type[LungsegError]) -> None:
    args = ("blank", "x.png holds one grey value") if kind is ImageError else ("x.png: cannot be read",)
    error = kind(*args)
    result = TaskResult.of(_fail, error)
    for copy in (pickle.loads(pickle.dumps(result)), TaskResult.from_json(result.to_json())):
        assert type(copy.error) is kind
        assert (copy.error.args, str(copy.error), copy.error.exit_status) == (args, str(error), kind.exit_status)
        with pytest.raises(kind):
            copy.unwrap()


def test_image_error_keeps_its_reason_code() -> None:
    result = TaskResult(error=ImageError("blank", "x.png holds one grey value"))
    error = TaskResult.from_json(result.to_json()).error
    assert isinstance(error, ImageError)
    assert (error.code, str(error)) == ("blank", "x.png holds one grey value")


@pytest.mark.parametrize("value", [None, 3, "text", [1, 2], {"counts": {"ok": 4}}])
def test_value_survives_json(value: object) -> None:
    assert TaskResult.from_json(TaskResult.of(lambda: value).to_json()).unwrap() == value


def test_subclass_defined_elsewhere_keeps_its_class() -> None:
    class OtherError(InputError):
        pass

    assert type(TaskResult.from_json(TaskResult(error=OtherError("x")).to_json()).error) is OtherError


def test_unknown_class_becomes_a_lungseg_error() -> None:
    error = TaskResult.from_json('{"error": "GoneError", "args": ["x"]}').error
    assert (type(error), str(error)) == (LungsegError, "x")


def test_a_bug_is_raised_and_not_kept() -> None:
    with pytest.raises(ZeroDivisionError):
        TaskResult.of(lambda: 1 / 0)


def test_wrapped_exception_is_unwrapped() -> None:
    inner = CheckpointError("model.safetensors: damaged")
    task, worker = RuntimeError("task"), RuntimeError("worker")
    task.cause, worker._base_exc = inner, task  # type: ignore[attr-defined]
    assert errors.unwrapped(worker) is inner
    assert errors.unwrapped(inner) is inner


@pytest.mark.parametrize(("text", "line"), [("\n one\ntwo", "one"), ("", "no details known")])
def test_first_line(text: str, line: str) -> None:
    assert errors.first_line(ValueError(text)) == line


def test_a_message_cannot_control_the_terminal() -> None:
    assert str(InputError("a\x1b[31m\x00b\nc")) == "a\\x1b[31m\\x00b\\nc"
    assert len(str(InputError("x" * 100_000))) < 1100
