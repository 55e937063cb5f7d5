from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.inference.engine_process.logs import LogSender, write_log


@pytest.fixture
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_root_as_before")
def test_records_are_sent_those_from_before_the_start_too() -> None:
    sent: list[list[Any]] = []
    sender = LogSender()
    sender.install(level=logging.INFO)
    channel = logging.getLogger("luthier.some.channel")
    channel.warning("early: %s=%d", "n", 3)
    channel.debug("not asked for")
    sender.start(sent.append)
    try:
        raise ValueError("a reason")
    except ValueError:
        channel.error("late", exc_info=True)
    sender.finish()
    early, late = sent
    assert early == ["log", "luthier.some.channel", logging.WARNING, "early: n=3"]
    assert late[:3] == ["log", "luthier.some.channel", logging.ERROR]
    assert late[3].startswith("late\nTraceback (most recent call last):")
    assert late[3].endswith("ValueError: a reason")


@pytest.mark.usefixtures("_root_as_before")
def test_a_malformed_call_is_told_where_logging_tells_it_and_harms_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent: list[list[Any]] = []
    sender = LogSender()
    sender.install(level=logging.INFO)
    sender.start(sent.append)
    channel = logging.getLogger("luthier.some.channel")
    number: Any = "three"
    channel.warning("n=%d", number)
    channel.warning("n=%s", number)
    sender.finish()
    assert [each[3] for each in sent] == ["n=three"]
    told = capsys.readouterr().err
    assert "--- Logging error ---" in told
    assert "n=%d" in told


def test_what_came_is_written_under_its_channel_and_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="luthier.other"):
        write_log("luthier.other", logging.INFO, "100 % of %s")
        write_log("luthier.other", logging.DEBUG, "filtered here")
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("luthier.other", logging.INFO, "100 % of %s")
    ]
