"""The way into Ray: to a cluster that is there, and with one line where none comes up."""

import os
import socket
from pathlib import Path

import pytest
import ray

from lungseg.cluster import connection
from lungseg.errors import ResourceError, SettingsError


def test_a_killed_cluster_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's note of the last cluster here outlives a killed one, and Ray would knock there for minutes."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert connection._address() == "local"
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as living:
        note.write_text(f"127.0.0.1:{living.getsockname()[1]}")
        assert connection._address() is None
    assert connection._address() == "local"
    note.write_text("torn")
    assert connection._address() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert connection._address() == "auto"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense", "127.0.0.1"])
def test_what_is_no_address_of_a_cluster_is_told_in_a_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS={address}: .*HOST:PORT") as refused:
        connection.connect()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("refused"),
            r"no Ray answers at local, or it refuses the token \(RAY_AUTH_MODE, RAY_AUTH_TOKEN\): .* RAY_ADDRESS=local",
        ),
        (
            Exception("The current node timed out. This could happen"),
            r"Ray did not start \(The current node timed out\)",
        ),
    ],
    ids=["nobody there", "not in time"],
)
def test_a_ray_that_does_not_come_up_is_told(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError, match=said):
        connection.connect()
    error = KeyError("a bug")
    with pytest.raises(KeyError, match="a bug"):
        connection.connect()


@pytest.mark.parametrize(("address", "own"), [("local", True), ("192.0.2.1:6379", False)])
def test_what_a_cluster_needs_and_a_ray_of_our_own_does_not(
    address: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def fail(**options: object) -> None:
        given.update(options)
        raise ConnectionError

    monkeypatch.setenv("RAY_ADDRESS", address)
    own_settings = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "MALLOC_ARENA_MAX": "2"}
    for name in own_settings:
        monkeypatch.setenv(name, "")  # so that it is put back in the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ResourceError):
        connection.connect()
    assert given["address"] == address
    assert (given.get("include_dashboard") is False) == own
    assert {name: os.environ.get(name) for name in own_settings} == (
        own_settings if own else dict.fromkeys(own_settings)
    )
