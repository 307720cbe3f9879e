"""The audit log's tables: what waits, what has its place, hashes, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from vault.domain.audit import AuditEvent, Outcome
from vault.domain.ids import EventId, RequestId, TenantId, Token
from vault.ports_audit import (
    EventPage,
    LoggedEvent,
    LogHead,
    LogState,
    NewLeaf,
    NewNode,
    QueuedEvent,
    QueueHealth,
    StoredCheckpoint,
)
from vault.store.columns import Engine, UtcTime, identifier, is_readable_time
from vault.store.given import Given, inserting
from vault.store.link import Batch, Link
from vault.store.tables import (
    audit_checkpoints,
    audit_events,
    audit_head,
    audit_leaves,
    audit_nodes,
    audit_queue,
    cards,
    erasures,
)

_LIMIT = bindparam("most", type_=Integer(), literal_execute=True)
_START = bindparam("start", type_=BigInteger())
_SIZE = bindparam("expected", type_=BigInteger())
LONGEST = 128 * 1024
"""Bytes in one fact of an event; ours are shorter by far, as messages and certificates are."""


def _as_read(column: Column[Any]) -> ColumnElement[Any]:
    """The column, or null where somebody put what would keep all rows beside it from being read."""
    if isinstance(column.type, UtcTime):
        return case((is_readable_time(column), column)).label(column.name)
    return case((func.octet_length(column) <= literal_column(str(LONGEST)), column)).label(column.name)


_EVENT = tuple(map(_as_read, audit_events.c))

_HEAD = select(audit_head.c.size, audit_head.c.frontier)
_MOVE_HEAD = (
    update(audit_head)
    .values(size=bindparam("new_size"), frontier=bindparam("new_frontier"))
    .where(audit_head.c.size == _SIZE, audit_head.c.frontier == bindparam("expected_frontier"))
)
_SAME_AS_QUEUED = and_(
    audit_events.c.tenant_id == audit_queue.c.tenant_id, audit_events.c.event_id == audit_queue.c.event_id
)
_QUEUED = (
    select(audit_queue.c.arrival, *_EVENT)
    .select_from(audit_queue.join(audit_events, _SAME_AS_QUEUED))
    .where(audit_queue.c.arrival > bindparam("after", type_=BigInteger()))
    .order_by(audit_queue.c.arrival)
    .limit(_LIMIT)
)
_COUNT_QUEUED = select(func.count().label("many")).select_from(audit_queue)
_FIRST_QUEUED = select(*audit_queue.c).order_by(audit_queue.c.arrival).limit(1000).subquery("first")
_TIME = _as_read(audit_events.c.occurred_at)
_TIMES_QUEUED = select(func.min(_TIME).label("oldest"), func.max(_TIME).label("latest")).select_from(
    _FIRST_QUEUED.join(
        audit_events,
        and_(
            audit_events.c.tenant_id == _FIRST_QUEUED.c.tenant_id, audit_events.c.event_id == _FIRST_QUEUED.c.event_id
        ),
    )
)
_LOGGED = (
    select(
        audit_leaves.c.leaf_index,
        audit_leaves.c.tenant_id.label("leaf_tenant"),
        audit_leaves.c.event_id.label("leaf_event"),
        audit_leaves.c.leaf_hash,
        *_EVENT,
    )
    .select_from(
        audit_leaves.outerjoin(
            audit_events,
            and_(
                audit_events.c.tenant_id == audit_leaves.c.tenant_id,
                audit_events.c.event_id == audit_leaves.c.event_id,
            ),
        )
    )
    .where(audit_leaves.c.leaf_index >= _START, audit_leaves.c.leaf_index < bindparam("stop", type_=BigInteger()))
    .order_by(audit_leaves.c.leaf_index)
)
_LEAF_HASHES = (
    select(audit_leaves.c.leaf_index.label("place"), audit_leaves.c.leaf_hash.label("value"))
    .where(audit_leaves.c.leaf_index >= _START, audit_leaves.c.leaf_index < bindparam("stop", type_=BigInteger()))
    .order_by(audit_leaves.c.leaf_index)
)
_NODE_HASHES = (
    select(audit_nodes.c.node_index.label("place"), audit_nodes.c.node_hash.label("value"))
    .where(
        audit_nodes.c.level == bindparam("level"),
        audit_nodes.c.node_index >= _START,
        audit_nodes.c.node_index < bindparam("stop", type_=BigInteger()),
    )
    .order_by(audit_nodes.c.node_index)
)
_CHECKPOINTS = (
    select(*audit_checkpoints.c)
    .where(audit_checkpoints.c.size > bindparam("after", type_=BigInteger()))
    .order_by(audit_checkpoints.c.size)
    .limit(_LIMIT)
)
_NEWEST_CHECKPOINT = select(*audit_checkpoints.c).order_by(audit_checkpoints.c.size.desc()).limit(1)


def _unlogged() -> Any:
    leaf = (
        select(audit_leaves.c.event_id)
        .where(
            audit_leaves.c.tenant_id == audit_events.c.tenant_id,
            audit_leaves.c.event_id == audit_events.c.event_id,
            audit_leaves.c.leaf_index >= 0,
            audit_leaves.c.leaf_index < select(audit_head.c.size).scalar_subquery(),
        )
        .exists()
    )
    queued = (
        select(audit_queue.c.arrival)
        .where(audit_queue.c.tenant_id == audit_events.c.tenant_id, audit_queue.c.event_id == audit_events.c.event_id)
        .exists()
    )
    return select(audit_events.c.event_id).where(~leaf, ~queued).limit(_LIMIT)


_UNLOGGED = _unlogged()


def _health() -> Any:
    """One statement, so that all is of one moment."""
    distinct = select(audit_queue.c.tenant_id, audit_queue.c.event_id).distinct().subquery()
    with_event = select(func.count()).select_from(distinct.join(audit_events, _same(distinct, audit_events)))
    placed = select(func.count()).select_from(distinct.join(audit_leaves, _same(distinct, audit_leaves)))
    beyond = select(func.min(audit_leaves.c.leaf_index)).where(
        or_(audit_leaves.c.leaf_index < 0, audit_leaves.c.leaf_index >= select(audit_head.c.size).scalar_subquery())
    )
    return select(
        _COUNT_QUEUED.scalar_subquery().label("many"),
        select(func.count()).select_from(distinct).scalar_subquery().label("different"),
        with_event.scalar_subquery().label("with_event"),
        placed.scalar_subquery().label("placed"),
        beyond.scalar_subquery().label("beyond"),
    )


def _same(one: Any, other: Any) -> Any:
    return and_(one.c.tenant_id == other.c.tenant_id, one.c.event_id == other.c.event_id)


_HEALTH = _health()


_OUT_OF_TIME = (
    select(func.count().label("many")).select_from(audit_events).where(~is_readable_time(audit_events.c.occurred_at))
)
_ACTORS = (
    select(_as_read(audit_events.c.actor))
    .where(audit_events.c.occurred_at < bindparam("until", type_=UtcTime()))
    .distinct()
)


@cache
def _place(*, of_tenant: bool) -> Any:
    found = (
        select(audit_leaves.c.leaf_index, *_EVENT)
        .select_from(
            audit_leaves.join(
                audit_events,
                and_(
                    audit_events.c.tenant_id == audit_leaves.c.tenant_id,
                    audit_events.c.event_id == audit_leaves.c.event_id,
                ),
            )
        )
        .where(audit_leaves.c.event_id == bindparam("wanted", type_=identifier()))
    )
    return found.where(audit_leaves.c.tenant_id == bindparam("tenant", type_=identifier())) if of_tenant else found


@cache
def _between(*, with_cursor: bool) -> Any:
    # The cursor is of the columns themselves: rows that are no events have their place in the order, too.
    place = (audit_events.c.occurred_at.label("place_time"), audit_events.c.event_id.label("place_id"))
    found = select(*_EVENT, *place).where(
        audit_events.c.occurred_at >= bindparam("since", type_=UtcTime()),
        audit_events.c.occurred_at < bindparam("until", type_=UtcTime()),
    )
    if with_cursor:
        position = tuple_(bindparam("after_time", type_=UtcTime()), bindparam("after_id", type_=identifier()))
        found = found.where(tuple_(audit_events.c.occurred_at, audit_events.c.event_id) > position)
    return found.order_by(audit_events.c.occurred_at, audit_events.c.event_id).limit(_LIMIT)


@cache
def _dequeue(engine: Engine) -> Batch:
    given = Given(engine, [audit_queue.c.arrival])
    return Batch(delete(audit_queue).where(audit_queue.c.arrival.in_(select(given.c.arrival))), given)


@cache
def _dequeue_named(engine: Engine) -> Batch:
    given = Given(engine, [audit_queue.c.tenant_id, audit_queue.c.event_id])
    wanted = select(given.c.tenant_id, given.c.event_id)
    named = tuple_(audit_queue.c.tenant_id, audit_queue.c.event_id)
    return Batch(delete(audit_queue).where(named.in_(wanted)), given)


def _named(table: Table) -> Any:
    tenant, wanted = bindparam("tenant", type_=identifier()), bindparam("wanted", type_=identifier())
    return select(table.c.token).where(table.c.tenant_id == tenant, table.c.token == wanted)


_STORED, _ERASED = _named(cards), _named(erasures)


@cache
def _add_leaves(engine: Engine) -> Batch:
    return Batch(*inserting(engine, audit_leaves))


@cache
def _add_nodes(engine: Engine) -> Batch:
    return Batch(*inserting(engine, audit_nodes))


@cache
def _keep_checkpoint(engine: Engine) -> Batch:
    statement, given = inserting(engine, audit_checkpoints)
    statement = statement.on_conflict_do_nothing(index_elements=[audit_checkpoints.c.size])
    return Batch(statement.returning(audit_checkpoints.c.size), given)


def event_of(row: Any) -> AuditEvent:
    """From the columns of `audit_events`."""
    return AuditEvent(
        event_id=EventId(row.event_id),
        occurred_at=row.occurred_at,
        event=row.event,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        actor=row.actor,
        actor_certificate=row.actor_certificate,
        role=row.role,
        peer=row.peer,
        request_id=RequestId(row.request_id),
        tenant=row.tenant_id,
        customer=row.customer_id,
        target=row.target,
        order=row.order_id,
        processor=row.processor,
        grant_sha256=row.grant_sha256,
        details=row.details,
    )


_OUTCOMES = frozenset(Outcome)
_texts_of = attrgetter(*(column.name for column in audit_events.c if isinstance(column.type, Text)))
_MAX_NUMBER = 2**63 - 1


def _readable(row: Any) -> AuditEvent | None:
    """None for a row that no program of ours wrote."""
    if row.outcome not in _OUTCOMES or row.occurred_at is None or row.details is None:
        return None
    texts = [*_texts_of(row), *row.details]
    for fact in row.details.values():
        if isinstance(fact, str):
            texts.append(fact)
        elif not isinstance(fact, int) or abs(fact) > _MAX_NUMBER:
            return None
    return event_of(row) if _are_plain(texts) else None


def _are_plain(texts: Sequence[Any]) -> bool:
    """Whether it is text that every database and every terminal takes."""
    try:
        whole = "".join(texts)
    except TypeError:
        return False  # not text at all
    return "\0" not in whole and (whole.isascii() or not any("\ud800" <= each <= "\udfff" for each in whole))


def head(link: Link) -> LogHead:
    """Where the log ends."""
    row = link.rows(_HEAD)[0]
    return LogHead(row.size, row.frontier)


def state(link: Link) -> LogState:
    """The log in numbers."""
    times = link.rows(_TIMES_QUEUED)[0]
    return LogState(
        size=head(link).size,
        queued=count_queued(link),
        oldest_queued=times.oldest,
        latest_queued=times.latest,
        newest_checkpoint=newest_checkpoint(link),
    )


def count_queued(link: Link) -> int:
    """How many events wait."""
    many: int = link.rows(_COUNT_QUEUED)[0].many
    return many


def queued(link: Link, limit: int) -> Sequence[QueuedEvent]:
    """Events that wait."""
    found: list[QueuedEvent] = []
    after: int | None = None
    while len(found) < limit:
        found_here = link.page(_QUEUED, {"most": limit, "after": -1 if after is None else after})
        page = sorted(found_here, key=attrgetter("arrival"))
        # One that cannot be read keeps waiting, and others do not wait for it.
        events = [(row.arrival, _readable(row)) for row in page]
        found += [QueuedEvent(arrival, event) for arrival, event in events if event is not None]
        if len(page) < limit:
            break
        after = page[-1].arrival
    return tuple(found[:limit])


def logged(link: Link, start: int, limit: int) -> Sequence[LoggedEvent]:
    """Places of the log in order."""
    return tuple(
        LoggedEvent(
            index=row.leaf_index,
            tenant=row.leaf_tenant,
            event_id=EventId(row.leaf_event),
            leaf_hash=row.leaf_hash,
            event=_readable(row),
        )
        for row in sorted(link.page(_LOGGED, {"start": start, "stop": start + limit}), key=attrgetter("leaf_index"))
    )


def place_of(link: Link, event_id: EventId, tenant: TenantId | None) -> tuple[int, AuditEvent] | None:
    """Where an event stands."""
    parameters: dict[str, Any] = {"wanted": event_id} | ({} if tenant is None else {"tenant": tenant})
    found = sorted(link.page(_place(of_tenant=tenant is not None), parameters), key=attrgetter("leaf_index"))
    event = _readable(found[0]) if found else None
    return None if event is None else (found[0].leaf_index, event)


def nodes(link: Link, level: int, start: int, count: int) -> Sequence[bytes]:
    """Stored hashes of a level."""
    parameters = {"start": start, "stop": start + count}
    rows = link.page(_LEAF_HASHES, parameters) if level == 0 else link.page(_NODE_HASHES, parameters | {"level": level})
    return [row.value for row in sorted(rows, key=attrgetter("place"))]


def checkpoints(link: Link, after: int, limit: int) -> Sequence[StoredCheckpoint]:
    """Checkpoints in order."""
    return tuple(_checkpoint(row) for row in link.rows(_CHECKPOINTS, {"after": after, "most": limit}))


def newest_checkpoint(link: Link) -> StoredCheckpoint | None:
    """The one of the greatest size."""
    found = link.rows(_NEWEST_CHECKPOINT)
    return _checkpoint(found[0]) if found else None


def queue_health(link: Link, limit: int) -> QueueHealth:
    """What waits, and what a forger left behind."""
    row = link.rows(_HEALTH)[0]
    return QueueHealth(
        waiting=row.many,
        orphaned=row.different - row.with_event,
        repeated=row.many - row.different + row.placed,
        unlogged=tuple(EventId(each.event_id) for each in link.rows(_UNLOGGED, {"most": limit})),
        beyond=row.beyond,
    )


def between(link: Link, since: datetime, until: datetime, after: tuple[datetime, str] | None, limit: int) -> EventPage:
    """Events of a time."""
    parameters: dict[str, Any] = {"since": since, "until": until, "most": limit}
    if after is not None:
        parameters |= {"after_time": after[0], "after_id": after[1]}
    found = link.page(_between(with_cursor=after is not None), parameters)
    rows = sorted(found, key=lambda row: (row.place_time, row.place_id or ""))
    last: tuple[datetime, str] | None = None
    if len(rows) == limit:
        # The next page begins behind a name that the database can be asked about.
        names = [place for place, row in enumerate(rows) if _are_plain([row.place_id])]
        rows = rows[: names[-1] + 1] if names else rows
        end = rows[-1]
        last = (end.place_time, end.place_id) if names else (end.place_time + datetime.resolution, "")
    events = tuple(event for event in map(_readable, rows) if event is not None)
    return EventPage(events, len(rows) - len(events), last)


def count_out_of_time(link: Link) -> int:
    """Rows whose time is none."""
    many: int = link.rows(_OUT_OF_TIME)[0].many
    return many


def actors_before(link: Link, moment: datetime) -> frozenset[str]:
    """Everybody who stands in an event before that time."""
    return frozenset(row.actor for row in link.page(_ACTORS, {"until": moment}) if row.actor is not None)


def append(
    link: Link,
    before: LogHead,
    after: LogHead,
    leaves: Sequence[NewLeaf],
    new_nodes: Sequence[NewNode],
    numbers: Sequence[int],
) -> bool:
    """Add to the log, if it still ends at `before`."""
    moved = link.count(
        _MOVE_HEAD,
        {
            "expected": before.size,
            "expected_frontier": before.frontier,
            "new_size": after.size,
            "new_frontier": after.frontier,
        },
    )
    if not moved:
        return False
    link.batch_count(_add_leaves(link.engine), [(x.index, x.tenant, x.event_id, x.leaf_hash) for x in leaves])
    link.batch_count(_add_nodes(link.engine), [(x.level, x.index, x.value) for x in new_nodes])
    link.batch_count(_dequeue(link.engine), [(number,) for number in numbers])
    return True


def dequeue_events(link: Link, events: Sequence[AuditEvent]) -> None:
    """Take events out of the queue by name."""
    link.batch_count(_dequeue_named(link.engine), [(each.tenant, each.event_id) for each in events])


def is_stored_or_erased(link: Link, tenant: TenantId, token: Token) -> bool:
    """Whether a card of this token is there, or a tombstone of it."""
    return any(link.rows(statement, {"tenant": tenant, "wanted": token}) for statement in (_STORED, _ERASED))


def add_checkpoint(link: Link, checkpoint: StoredCheckpoint) -> bool:
    """Keep a checkpoint."""
    row = (checkpoint.size, checkpoint.root, checkpoint.note, checkpoint.signed_at)
    return bool(link.batch_rows(_keep_checkpoint(link.engine), [row]))


def _checkpoint(row: Any) -> StoredCheckpoint:
    return StoredCheckpoint(row.size, row.root, row.note, row.signed_at)
