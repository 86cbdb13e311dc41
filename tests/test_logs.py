import logging

import pytest

from lungseg import logs


def test_configuring_twice_logs_each_line_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("lungseg")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    logs.configure(prefix="rank 1: ")
    logs.configure(logging.WARNING)
    logging.getLogger("lungseg.x").info("below the level")
    logging.getLogger("lungseg.x").warning("shown")
    assert [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()] == ["rank 1: shown"]
