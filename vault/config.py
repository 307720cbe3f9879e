"""Settings: what a configuration file may say, section by section. `config_file` reads and checks one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vault.domain.caller import Identity, Role
from vault.domain.card import CardState
from vault.domain.errors import InvalidField
from vault.domain.ids import ProcessorName, TenantId
from vault.domain.retention import RetentionLimits

ServiceName = Literal["checkout", "account", "processor"]
SERVICES: tuple[ServiceName, ...] = ("checkout", "account", "processor")
INTAKE_SERVICES = frozenset({"checkout"})
RELEASE_SERVICES = frozenset({"processor"})

SQLITE_PREFIX = "sqlite:///"
MAX_WORKERS = 64
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/[A-Za-z0-9._-]+)+")
_LABEL = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Section(BaseModel):
    """A part of the file: nothing unknown in it, and no value of it in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _label(text: str) -> str:
    if _LABEL.fullmatch(text) is None:
        raise ValueError("must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter")
    return text


Label = Annotated[str, AfterValidator(_label)]


class ServerSection(Section):
    """Where and as whom this process serves."""

    listen: str = "127.0.0.1:7443"
    services: tuple[ServiceName, ...] = SERVICES
    certificate: Path
    private_key: Path
    client_ca: Path
    threads: int = Field(default=16, ge=2, le=256)
    default_deadline_seconds: float = Field(default=10, gt=0, le=30)
    drain_seconds: float = Field(default=20, ge=0, le=120)
    max_waiting: int = Field(default=2000, ge=1, le=100_000)
    """Calls that may wait for their batch, for each RPC; above it RESOURCE_EXHAUSTED."""
    one_cpu: bool = True
    """Whether the threads of a process that run Python share one CPU, on Linux; which one follows what others use."""
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    """Processes that share the port; each has threads, logins to Vault and connections of its own."""


class DatabaseSection(Section):
    """The database. The URL holds no password; `password_file` does."""

    url: str
    password_file: Path | None = None
    pool_size: int = Field(default=16, ge=2, le=200)


class LoginSection(Section):
    """How one kind of process logs in to Vault, in one of three ways.

    AppRole by two files; a JWT, such as the token that Kubernetes projects into a pod, for Vault's auth methods `jwt`
    and `kubernetes`; or a Vault token in a file that an agent keeps fresh.
    """

    role_id_file: Path | None = None
    secret_id_file: Path | None = None
    approle_mount: str = "approle"
    jwt_file: Path | None = None
    jwt_role: str | None = Field(default=None, min_length=1)
    jwt_mount: str = "jwt"
    token_file: Path | None = None

    @model_validator(mode="after")
    def _one_way(self) -> LoginSection:
        ways = ((self.role_id_file, self.secret_id_file), (self.jwt_file, self.jwt_role), (self.token_file,))
        begun = [way for way in ways if any(part is not None for part in way)]
        if len(begun) > 1:
            raise ValueError(
                "give role_id_file and secret_id_file, or jwt_file and jwt_role, or token_file, one of them"
            )
        if not begun or None in begun[0]:
            raise ValueError("give role_id_file and secret_id_file, or jwt_file and jwt_role, or token_file")
        return self


class VaultSection(Section):
    """Vault or OpenBao."""

    address: str
    ca_file: Path
    mount: str = "transit"
    timeout_seconds: float = Field(default=5, gt=0, le=30)
    unwrap_threads: int = Field(default=8, ge=1, le=64)
    intake: LoginSection | None = None
    release: LoginSection | None = None
    operator: LoginSection | None = None
    """For `cardvault keys`. A server that has it cares for the one-time key itself; else a timer runs `keys maintain`.

    It can destroy keys, not read cards: give it to as few processes as can be.
    """
    checkpointer: LoginSection | None = None


class AuditSection(Section):
    """The audit log."""

    directory: Path | None = None
    """A second place for the log: a folder for every event, checkpoint and public key, best on another machine."""
    sequence: bool = True
    """Whether this process gives events their places in the log; one process at a time does."""
    checkpoint_events: int = Field(default=1000, ge=1, le=1_000_000)
    """A checkpoint is signed after so many events."""
    checkpoint_seconds: float = Field(default=10, ge=1, le=3600)
    """Or after so long, if there is anything new."""


def _kept_at_most(longest: float, unit: str) -> AfterValidator:
    def check(value: float) -> float:
        if value > longest:
            raise ValueError(f"may be made shorter, not longer: at most {longest:g} {unit} (PCI DSS 3.2.1)")
        return value

    return AfterValidator(check)


class RetentionSection(Section):
    """How long anything is kept (PCI DSS 3.2.1). Every limit can be made shorter, none longer than its ceiling."""

    after_expiry_days: Annotated[int, _kept_at_most(30, "days")] = Field(default=30, ge=0)
    """Stored cards, after the end of their expiry month."""
    unused_days: Annotated[int, _kept_at_most(395, "days")] = Field(default=395, ge=1)
    """Stored cards, after they were last stored or released."""
    pending_hours: Annotated[float, _kept_at_most(24, "hours")] = Field(default=24, ge=1)
    """Cards that wait for their first approval."""
    closed_grant_days: Annotated[int, _kept_at_most(90, "days")] = Field(default=30, ge=2)
    """Rows of grants, after their expiry."""
    sweep_minutes: float = Field(default=60, gt=0, le=1440)
    """How often a server looks for what is due; servers that share a database take turns."""

    def limits(self) -> RetentionLimits:
        """As the use case takes them."""
        return RetentionLimits(
            after_expiry=timedelta(days=self.after_expiry_days),
            unused=timedelta(days=self.unused_days),
            pending=timedelta(hours=self.pending_hours),
            closed_grants=timedelta(days=self.closed_grant_days),
        )


class CardsSection(Section):
    """What becomes of cards that are stored."""

    activate_on: Literal["tokenize", "first_approval"] = "tokenize"
    """`first_approval`: a new card is pending until the processor reports that its first payment was approved."""

    def first_state(self) -> CardState:
        """The state of a card that is stored for the first time."""
        return CardState.ACTIVE if self.activate_on == "tokenize" else CardState.PENDING


LOOPBACK = ("127.0.0.1:", "[::1]:", "localhost:")


class MetricsSection(Section):
    """Metrics for Prometheus over plain HTTP, for whoever can reach the address. Off without `listen`."""

    listen: str | None = None
    """`127.0.0.1:9464`. Each worker listens on a port of its own: the first on this one, the second on the next."""
    beyond_loopback: bool = False
    """Allows an address that other hosts can reach, where the network keeps strangers away."""
    refresh_seconds: float = Field(default=15, ge=1, le=3600)
    """How often the state of the audit log and what waits for retention is looked at."""

    def address(self, worker: int = 0) -> tuple[str, int] | None:
        """Host and port of one worker; None: off. The file was checked."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port) + worker if int(port) else 0


class TracesSection(Section):
    """OpenTelemetry traces, with the extra `otel`. Off without `otlp_endpoint`."""

    otlp_endpoint: str | None = None
    """An OTLP/gRPC collector: `https://collector.internal:4317`, or `http://` on this host."""
    ca_file: Path | None = None
    """CA of its certificate; else those of the system."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of calls without a `traceparent` of their own that are traced."""


class IdentitySection(Section):
    """One client certificate's URI and what it may be."""

    uri: str
    role: Literal["checkout", "account", "processor"]
    tenant: str | None = None
    tenants: tuple[str, ...] = ()
    processor: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> IdentitySection:
        if _SPIFFE.fullmatch(self.uri) is None:
            raise ValueError("uri must look like spiffe://trust-domain/path")
        if self.role == "processor":
            if not self.processor or not self.tenants or self.tenant is not None:
                raise ValueError("a processor needs `processor` and `tenants`, and no `tenant`")
        elif not self.tenant or self.tenants or self.processor is not None:
            raise ValueError("checkout and account need `tenant` alone")
        try:
            self.identity()
        except InvalidField as e:
            raise ValueError(f"{e.field} {e.message}") from None
        return self

    def identity(self) -> Identity:
        """The identity that it maps to."""
        names = self.tenants if self.role == "processor" else (self.tenant or "",)
        return Identity(
            uri=self.uri,
            role=Role[self.role.upper()],
            tenants=tuple(TenantId.parse(name, field="tenant") for name in names),
            processor=ProcessorName.parse(self.processor, field="processor") if self.processor else None,
        )


class CommonSettings(Section):
    """What every command that uses a file needs of it."""

    environment: Label
    """Label of this installation. It is part of what every card is bound to and can never be changed."""
    profile: Literal["production", "development"] = "production"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    database: DatabaseSection
    vault: VaultSection
    audit: AuditSection = AuditSection()
    retention: RetentionSection = RetentionSection()

    def database_url(self) -> str:
        """The URL with the password from its file. Never print it. Raises `OSError`."""
        if self.database.password_file is None:
            return self.database.url
        password = self.database.password_file.read_text(encoding="utf-8").strip()
        url = urlsplit(self.database.url)
        user, _, host = url.netloc.rpartition("@")
        return urlunsplit(url._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))

    def sqlite_file(self) -> Path | None:
        """The file of a SQLite database."""
        return (
            Path(self.database.url.removeprefix(SQLITE_PREFIX)) if self.database.url.startswith(SQLITE_PREFIX) else None
        )


class Settings(CommonSettings):
    """The whole file, for a server."""

    server: ServerSection
    cards: CardsSection = CardsSection()
    metrics: MetricsSection = MetricsSection()
    traces: TracesSection = TracesSection()
    identities: tuple[IdentitySection, ...]

    def identities_by_uri(self) -> Mapping[str, Identity]:
        """Identities by the URI of their certificates."""
        return {section.uri: section.identity() for section in self.identities}

    def processors(self) -> Mapping[ProcessorName, frozenset[TenantId]]:
        """Which processor serves which tenants."""
        served: dict[ProcessorName, frozenset[TenantId]] = {}
        for identity in self.identities_by_uri().values():
            if identity.processor is not None:
                served[identity.processor] = served.get(identity.processor, frozenset()) | set(identity.tenants)
        return served


class OperatorSettings(CommonSettings):
    """The file for operator commands; what it says of a server is not looked at."""

    server: object = None
    cards: object = None
    metrics: object = None
    traces: object = None
    identities: object = None
