"""Logs: JSON lines made of allow-listed keys only, and never an exception's own words."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from vault.domain.pan import contains_pan

ALLOWED = frozenset(
    {
        *("event", "level", "timestamp", "logger"),
        *("address", "attempts", "code", "count", "data_dir", "database", "environment", "error_id", "identity"),
        *("field", "kind", "method", "milliseconds", "peer", "pid", "problem", "reason", "role", "service"),
        *("services", "signal", "state", "tenant", "version", "where"),
    }
)
"""Every key that a log line may have; a test fails when code uses another."""

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
    sys.excepthook = _log_uncaught


def where(error: BaseException) -> str:
    """Where an exception was raised, as `module:function:line` of each frame; no text, no values."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.name}:{frame.lineno}" for frame in reversed(frames)
    )
    return f"{type(error).__name__} at {places}"


def _only_allowed(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: value for key, value in event.items() if key in ALLOWED}


def _scrub(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The net below the typed redaction; it should never catch anything."""
    for key, value in event.items():
        text = str(value)
        if key != "timestamp" and _SUSPICIOUS.search(text) and contains_pan(text):
            event[key] = "[removed: looks like a card number]"
    return event


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("process.uncaught", where=where(error.with_traceback(trace)))


class _LibraryHandler(logging.Handler):
    """Libraries put values into their messages, so only who spoke and how loudly is kept."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().warning("library.message", logger=record.name, level=record.levelname.lower())
