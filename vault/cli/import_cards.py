"""`cardvault import`: moves cards in from another vault, as a client of the server, over the same call as a shop's.

No card number is kept, shown or written here: it goes from its line into one request.
"""

from __future__ import annotations

import csv
import json
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import grpc
import stamina
import typer

from vault.cli.import_source import BadLine, Line, UnfitFile, count_lines, read_cards
from vault.cli.operating import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Terminal, Watch, ending, is_interrupted
from vault.domain.caller import Caller
from vault.domain.errors import CardVaultError
from vault.domain.ids import RANDOM_BYTES, RequestId
from vault.domain.pan import contains_pan
from vault.hardening import harden
from vault.rpc.codec import decode_batch
from vault.rpc.door import Call
from vault.rpc.errors import CODES
from vault.system import settle_memory
from vault.v1 import checkout_pb2, checkout_pb2_grpc

MAX_CARDS = 200
MAX_BYTES = 56 * 1024
"""Of one call; the server takes 64 KiB."""
CONNECT_SECONDS = 15.0
CALL_SECONDS = 25.0
SHOWN = 10
"""Refused lines that the terminal shows; the file of --refused has all."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
_STATUS = grpc.StatusCode
_UNKNOWN = frozenset({_STATUS.UNAVAILABLE, _STATUS.DEADLINE_EXCEEDED, _STATUS.UNKNOWN, _STATUS.INTERNAL})
_REPEAT = _UNKNOWN | {_STATUS.CANCELLED, _STATUS.RESOURCE_EXHAUSTED, _STATUS.ABORTED}
"""Codes after which the same request with the same keys is right, and may go better."""
_BY_NUMBER = {code.value[0]: code for code in _STATUS}

STOPPED = "stopped: what was stored stays so, and the same command with the same --name goes on safely"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Whom to call, and as whom."""

    address: str
    certificate: Path
    private_key: Path
    ca: Path

    def channel(self) -> grpc.Channel:
        """A connection that proves both sides. Raises `OSError`."""
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes(),
            private_key=self.private_key.read_bytes(),
            certificate_chain=self.certificate.read_bytes(),
        )
        return grpc.secure_channel(self.address, credentials, options=[("grpc.enable_retries", 0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to import, and how."""

    file: Path
    is_csv: bool
    name: str
    in_flight: int
    give_up_after: timedelta
    max_rate: float | None
    refused: Path | None
    tokens: Path | None


class _GaveUp(Exception):
    """No call can work now; the text is for people."""


class _Again(Exception):
    """A call, or some items of it, are to be sent once more."""


@dataclass(slots=True)
class _Parcel:
    """The lines of one call, and what became of each."""

    lines: list[Line]
    results: dict[int, checkout_pb2.BatchTokenizeResult] = field(default_factory=dict)
    """By line number."""
    unknown: dict[int, checkout_pb2.BatchTokenizeResult] = field(default_factory=dict)
    """The last answers that left it open whether the card was stored."""


def run(plan: Plan, server: Server | None, *, as_json: bool) -> int:
    """Import; without a server only say what is wrong with the file."""
    harden()
    settle_memory()
    terminal = Terminal(as_json)
    if not plan.file.is_file():
        raise typer.BadParameter("must be a plain file: it is read twice", param_hint="FILE")
    if _NAME.fullmatch(plan.name) is None or contains_pan(plan.name):
        raise typer.BadParameter("must be 1 to 40 of letters, digits and ._- and no card number", param_hint="--name")
    try:
        if plan.file.stat().st_mode & 0o077:
            terminal.trouble("others on this host may read the file with the card numbers: chmod 600")
        with ExitStack() as stack:
            tally = _Tally(
                terminal,
                refused=stack.enter_context(_new_file(plan.refused)) if plan.refused else None,
                tokens=stack.enter_context(_new_file(plan.tokens)) if plan.tokens else None,
            )
            return ending(terminal, lambda: _run(terminal, plan, server, tally), stopped=STOPPED)
    except FileExistsError as e:
        terminal.trouble(f"{e.filename} exists already and is not written over")
    except OSError as e:
        terminal.trouble(f"{e.filename}: {e.strerror}")
    return EXIT_USAGE


def _run(terminal: Terminal, plan: Plan, server: Server | None, tally: _Tally) -> int:
    lines = read_cards(plan.file, is_csv=plan.is_csv, name=plan.name)
    about = count_lines(plan.file) - plan.is_csv
    what = "checking" if server is None else "importing"
    failed = ""
    try:
        with Watch(terminal, what, max_rate=plan.max_rate) as watch:
            parcels = _check(lines) if server is None else _send(terminal, plan, server, lines)
            for parcel in parcels:
                tally.add(parcel)
                watch(tally.seen, about)
    except UnfitFile as e:
        terminal.trouble(f"{plan.file}: {e}")
        return EXIT_USAGE
    except _GaveUp as e:
        failed = str(e)
    tally.report(what)
    if failed:
        terminal.trouble(failed)
    terminal.result(
        {"stored": tally.stored, "refused": tally.refused_lines, "failed": failed, "checked": tally.checked}
    )
    return EXIT_FAILED if failed or tally.refused_lines else EXIT_OK


def _new_file(path: Path) -> TextIO:
    """A file of ours alone that was not there before."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline="")


class _Tally:
    """Counts, and writes what became of the lines."""

    def __init__(self, terminal: Terminal, *, refused: TextIO | None, tokens: TextIO | None) -> None:
        self.stored = self.refused_lines = self.checked = self.seen = 0
        self._terminal = terminal
        self._refused = refused
        self._tokens = csv.writer(tokens, lineterminator="\n") if tokens is not None else None
        if self._tokens is not None:
            self._tokens.writerow(("line", "customer_id", "token", "last4"))

    def add(self, parcel: _Parcel) -> None:
        """The lines of one call, all settled."""
        for line in parcel.lines:
            self.seen += 1
            if isinstance(line.item, BadLine):
                self._refuse(line.number, "INVALID_ARGUMENT", line.item.field, line.item.message)
                continue
            result = parcel.results.get(line.number)
            if result is None:
                self.checked += 1
            elif result.HasField("card"):
                self.stored += 1
                if self._tokens is not None:
                    self._tokens.writerow((line.number, line.item.customer_id, result.card.token, result.card.last4))
            else:
                failure = result.failure
                code = _BY_NUMBER.get(failure.code, _STATUS.UNKNOWN).name
                self._refuse(line.number, code, failure.field, failure.message)

    def report(self, what: str) -> None:
        """For people."""
        if self.refused_lines > SHOWN:
            self._terminal.trouble(f"and {self.refused_lines - SHOWN} more")
        good = f"{self.checked} well-formed" if what == "checking" else f"{self.stored} stored"
        self._terminal.say(f"{good}, {self.refused_lines} refused")

    def _refuse(self, number: int, code: str, at: str, message: str) -> None:
        self.refused_lines += 1
        if self._refused is not None:
            facts: dict[str, Any] = {"line": number, "code": code, "field": at, "message": message}
            self._refused.write(json.dumps(facts) + "\n")
        if self.refused_lines <= SHOWN:
            self._terminal.trouble(f"line {number}: {code} {at + ' ' if at else ''}{message}")


def _parcels(lines: Iterator[Line]) -> Iterator[_Parcel]:
    """As many lines as one call may carry."""
    parcel, size = _Parcel([]), 0
    for line in lines:
        # Two bytes of tag and up to three of length stand before each item.
        more = 0 if isinstance(line.item, BadLine) else line.item.ByteSize() + 5
        if parcel.lines and (len(parcel.lines) >= MAX_CARDS or size + more > MAX_BYTES):
            yield parcel
            parcel, size = _Parcel([]), 0
        parcel.lines.append(line)
        size += more
    if parcel.lines:
        yield parcel


def _check(lines: Iterator[Line]) -> Iterator[_Parcel]:
    """By the rules of the server, without one."""
    nobody = Caller(None, "", "", "", RequestId.from_random(bytes(RANDOM_BYTES)))
    for parcel in _parcels(lines):
        sent = [line for line in parcel.lines if not isinstance(line.item, BadLine)]
        if sent:
            command = decode_batch(_request(sent), Call(nobody, 0), now=datetime.now(UTC))
            for line, item in zip(sent, command.items, strict=True):
                if isinstance(item, CardVaultError):
                    failure = checkout_pb2.BatchTokenizeFailure(
                        code=CODES[item.kind].value[0], field=item.field, message=item.message
                    )
                    parcel.results[line.number] = checkout_pb2.BatchTokenizeResult(failure=failure)
        yield parcel


def _send(terminal: Terminal, plan: Plan, server: Server, lines: Iterator[Line]) -> Iterator[_Parcel]:
    """Parcels in the order of the file, `in_flight` of them under way: no more of the file is held."""
    with server.channel() as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise _GaveUp(f"{server.address} does not answer to these certificates") from None
        sender = _Sender(terminal, checkout_pb2_grpc.CheckoutServiceStub(channel), plan.give_up_after)
        pool = ThreadPoolExecutor(plan.in_flight, "import")
        under_way: deque[Future[_Parcel]] = deque()
        try:
            for parcel in _parcels(lines):
                if len(under_way) == plan.in_flight:
                    yield under_way.popleft().result()
                under_way.append(pool.submit(sender.send, parcel))
            while under_way:
                yield under_way.popleft().result()
        finally:
            sender.stopped.set()
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Sender:
    terminal: Terminal
    checkout: checkout_pb2_grpc.CheckoutServiceStub
    give_up_after: timedelta
    stopped: threading.Event = field(default_factory=threading.Event)

    def send(self, parcel: _Parcel) -> _Parcel:
        """Send, and send again what is unknown, with the same keys, until all is settled. Raises `_GaveUp`."""
        attempts = stamina.retry_context(
            on=lambda e: isinstance(e, _Again) and not is_interrupted() and not self.stopped.is_set(),
            attempts=None,
            timeout=self.give_up_after,
            wait_initial=0.2,
            wait_max=10.0,
        )
        try:
            for attempt in attempts:
                with attempt:
                    self._send_open(parcel)
        except _Again as e:
            # Where nothing at all goes through, the next lines would only wait as long.
            if not parcel.results:
                raise _GaveUp(f"gave up after {e}; {STOPPED}") from None
            parcel.results |= {
                number: parcel.unknown[number] for number in parcel.unknown.keys() - parcel.results.keys()
            }
        return parcel

    def _send_open(self, parcel: _Parcel) -> None:
        is_open = [
            line for line in parcel.lines if not isinstance(line.item, BadLine) and line.number not in parcel.results
        ]
        if not is_open:
            return
        try:
            answer = self.checkout.BatchTokenize(_request(is_open), timeout=CALL_SECONDS)
        except grpc.RpcError as e:
            code = e.code()
            if code in _REPEAT:
                self.terminal.trouble(f"paused: {code.name}; trying again")
                raise _Again(code.name) from None
            raise _GaveUp(f"the server refuses the call ({code.name}); nothing more was sent") from None
        again = ""
        for line, result in zip(is_open, answer.results, strict=True):
            code = _BY_NUMBER.get(result.failure.code, _STATUS.UNKNOWN)
            if result.HasField("failure") and code in _REPEAT:
                again = code.name
                parcel.unknown[line.number] = result
            else:
                parcel.results[line.number] = result
        if again:
            self.terminal.trouble(f"paused: {again} for some cards; trying again")
            raise _Again(again)


def _request(lines: Sequence[Line]) -> checkout_pb2.BatchTokenizeRequest:
    items = [line.item for line in lines if not isinstance(line.item, BadLine)]
    return checkout_pb2.BatchTokenizeRequest(items=items)
