import logging

import pytest

from lungseg import logs


def test_importing_does_nothing_and_configuring_twice_says_a_line_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("lungseg")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    logs.configure()
    logs.configure(logging.WARNING)
    logging.getLogger("lungseg.x").info("quiet")
    logging.getLogger("lungseg.x").warning("said")
    assert [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()] == ["said"]
