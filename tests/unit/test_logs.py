"""Logs as they come out: keys of the list, plain values, no words of libraries or exceptions."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from tests.support.cards import fresh_digits
from vault.telemetry import configure_logs, where
from vault.v1 import cards_pb2


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged, in a process whose hooks are put back afterwards."""
    import threading

    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logs(stream)
    yield stream
    structlog.reset_defaults()
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_key_that_is_not_in_the_list_is_left_out(written: io.StringIO) -> None:
    digits = fresh_digits()

    structlog.get_logger().info("call.refused", reason="role", pan=digits, request=digits, exc_info=True)

    (line,) = lines(written)
    assert set(line) == {"event", "level", "timestamp", "reason"}
    assert digits not in written.getvalue()


def test_an_object_is_never_shown_as_it_represents_itself(written: io.StringIO) -> None:
    digits = fresh_digits()
    card = cards_pb2.CardInput(pan=digits)

    structlog.get_logger().info("call.refused", reason=card, problem=ValueError(digits), services=[card], where={1: 2})

    (line,) = lines(written)
    assert (line["reason"], line["problem"], line["services"]) == ("[CardInput]", "[ValueError]", ["[CardInput]"])
    assert digits not in written.getvalue()


def test_a_number_under_an_allowed_key_is_removed(written: io.StringIO) -> None:
    digits = fresh_digits()
    spaced = " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))

    structlog.get_logger().info("call.refused", reason=digits, problem=f"it is {spaced}")

    (line,) = lines(written)
    assert digits not in written.getvalue()
    assert spaced not in written.getvalue()
    assert "removed" in line["reason"]


def test_of_a_library_only_who_spoke_is_kept(written: io.StringIO) -> None:
    digits = fresh_digits()

    logging.getLogger("some.library").error("failed for %s", digits, extra={"pan": digits})

    (line,) = lines(written)
    assert (line["logger"], line["event"]) == ("some.library", "library.message")
    assert digits not in written.getvalue()


def test_where_an_exception_came_from_has_no_word_of_it() -> None:
    digits = fresh_digits()
    try:
        raise ValueError(digits) from KeyError(digits)
    except ValueError as e:
        e.add_note(digits)
        place = where(e)

    assert place.startswith("ValueError at test_logs.py:")
    assert digits not in place


@pytest.mark.parametrize(
    "way",
    [
        "raise Speaking(number)",
        "thread = threading.Thread(target=fail)\nthread.start()\nthread.join()",
        "class Late:\n    def __del__(self):\n        fail()\nLate()",
        "import warnings\nwarnings.warn(number)",
        "import asyncio\nasync def main():\n    asyncio.get_running_loop().call_soon(fail)\nasyncio.run(main())",
    ],
    ids=["interpreter", "thread", "finaliser", "warning", "event-loop"],
)
def test_what_nobody_catches_is_not_printed_with_its_text(way: str) -> None:
    digits = fresh_digits()
    program = textwrap.dedent(
        """
        import sys, threading
        from vault.telemetry import configure_logs

        number = sys.stdin.read()
        configure_logs()

        class Speaking(Exception):
            pass

        def fail():
            raise Speaking(number)

        """
    )

    done = subprocess.run(
        [sys.executable, "-c", program + way], input=digits, capture_output=True, text=True, timeout=30, check=False
    )

    assert digits not in done.stdout + done.stderr
    assert '"event": "' in done.stderr
    assert "Traceback" not in done.stderr
