"""Logs: JSON lines made of allow-listed keys only, and never an exception's own words."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from vault.domain.pan import contains_pan

ALLOWED: Mapping[str, str] = {
    "event": "what happened, as `call.refused`; a fixed word of the code",
    "level": "`debug`, `info`, `warning`, `error`, `critical`",
    "timestamp": "when, UTC, ISO 8601",
    "address": "where a server listens",
    "code": "gRPC status code of a refused call; exit code of a worker or of the log's process",
    "count": "how many",
    "error_id": "id of the call that the caller was told as well",
    "field": "path of the field that was refused, as `card.pan`; never its value",
    "identity": "SPIFFE URI of a client that the configuration knows",
    "logger": "which library spoke; its words are left out",
    "method": "name of the RPC",
    "milliseconds": "how long it took",
    "pid": "process id of a worker",
    "problem": "what is wrong with a file or a key, in words of ours",
    "reason": "why, as one of a fixed list of words",
    "service": "readiness check, or look of the metrics",
    "services": "what a server serves",
    "state": "`up` or `down`",
    "where": "type of an exception and the functions and lines it came through; never its text",
}
"""Every key that a log line may have, with its meaning; others are left out. A test fails when code uses another."""

_SUSPICIOUS = re.compile(r"[0-9][0-9 .\-/_]{10,}[0-9]")


def configure_logs(stream: TextIO | None = None, *, level: str = "INFO", as_json: bool = True) -> None:
    """Set up logging for this process, also for libraries: what they say appears by level and logger name alone."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            _scrub,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(logging.WARNING)
    # What nobody catches would be printed with its text: by the interpreter, by a thread, by a finaliser.
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda hooked: _log_uncaught(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)
    sys.unraisablehook = lambda hooked: _log_uncaught(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)
    logging.captureWarnings(True)


def where(error: BaseException) -> str:
    """Where an exception was raised, as `module:function:line` of each frame; no text, no values."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.name}:{frame.lineno}" for frame in reversed(frames)
    )
    return f"{type(error).__name__} at {places}"


def _only_allowed(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _plain(value) for key, value in event.items() if key in ALLOWED}


def _plain(value: object) -> object:
    """Texts and numbers, and lists of them. The representation of anything else could hold whatever it holds."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return str.__str__(value)
    return value if value is None or isinstance(value, bool | int | float) else f"[{type(value).__name__}]"


def _scrub(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The net below the typed redaction; it should never catch anything."""
    for key, value in event.items():
        text = str(value)
        if key != "timestamp" and _SUSPICIOUS.search(text) and contains_pan(text):
            event[key] = "[removed: looks like a card number]"
    return event


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    place = where(error.with_traceback(trace)) if error is not None else kind.__name__
    structlog.get_logger().critical("process.uncaught", where=place)


class _LibraryHandler(logging.Handler):
    """Libraries put values into their messages, so only who spoke and how loudly is kept."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().warning("library.message", logger=record.name, level=record.levelname.lower())
