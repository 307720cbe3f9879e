"""Reads a configuration file: one TOML file, secrets only by file path, every problem listed at once."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from vault.config import (
    INTAKE_SERVICES,
    LOOPBACK,
    RELEASE_SERVICES,
    SQLITE_PREFIX,
    AuditSection,
    CommonSettings,
    DatabaseSection,
    IdentitySection,
    MetricsSection,
    OperatorSettings,
    Section,
    ServerSection,
    Settings,
    TracesSection,
    VaultSection,
)

if TYPE_CHECKING:
    from cryptography import x509

SECRET_VARIABLES = ("VAULT_TOKEN", "BAO_TOKEN", "PGPASSWORD")
"""Environment variables that hold a secret; every process of the user can read them (PCI DSS 8.6.2)."""

LEAKING_VARIABLES = ("SSLKEYLOGFILE", "GRPC_TRACE", "PYTHONINSPECT", "PYTHONDEVMODE", "PYTHONBREAKPOINT")
"""Environment variables under which keys or messages end up in files, terminals or debuggers (PCI DSS 3.5.1)."""

DEVELOPMENT_MARK = "cardvault development"
"""Stands in the subject of every certificate of the development CA; production refuses them."""

F = TypeVar("F", bound=CommonSettings)


class ConfigProblems(Exception):
    """The configuration cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def load(path: Path) -> Settings:
    """Read and check a file for a server. Raises `ConfigProblems`."""
    return _load(path, Settings)


def with_workers(settings: Settings, count: int) -> Settings:
    """The same with another number of workers. Raises `ConfigProblems`."""
    changed = settings.model_copy(update={"server": settings.server.model_copy(update={"workers": count})})
    problems = [*_worker_problems(changed), *_metrics_problems(changed)]
    if problems:
        raise ConfigProblems(problems)
    return changed


def load_for_operator(path: Path) -> OperatorSettings:
    """Read and check a file for operator commands; `[server]` and `[[identities]]` may be absent.

    Raises `ConfigProblems`.
    """
    return _load(path, OperatorSettings)


def _load(path: Path, kind: type[F]) -> F:
    """Relative paths in the file count from its own folder."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigProblems([f"{path}: cannot be read ({e.strerror})"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigProblems([f"{path}: is not valid TOML"]) from None
    resolved = _resolve(raw, path.parent.resolve())
    try:
        settings = kind.model_validate(resolved)
    except ValidationError as e:
        errors = e.errors(include_url=False, include_input=False, include_context=False)
        problems = [
            f"{'.'.join(str(part) for part in error['loc']) or 'file'}: {error['msg'].removeprefix('Value error, ')}"
            for error in errors
        ]
        unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
        parts = _readable_parts(resolved, unknown)
        raise ConfigProblems(problems + problems_with(parts, os.environ)) from None
    looked_at = settings if isinstance(settings, Settings) else _readable_parts(resolved, []).for_operator()
    problems = problems_with(looked_at, os.environ)
    if problems:
        raise ConfigProblems(problems)
    return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What can be read of a file that is wrong elsewhere, so that one look at it finds every problem."""

    profile: str
    server: ServerSection | None
    database: DatabaseSection | None
    vault: VaultSection | None
    audit: AuditSection | None
    metrics: MetricsSection | None
    traces: TracesSection | None
    identities: tuple[IdentitySection, ...] | None

    def for_operator(self) -> _Parts:
        """Without what concerns a server alone."""
        return replace(self, server=None, metrics=None, traces=None, identities=None)


S = TypeVar("S", bound=Section)


def _readable_parts(raw: Mapping[str, Any], unknown: Sequence[tuple[int | str, ...]]) -> _Parts:
    known = copy.deepcopy(dict(raw))
    for *parents, key in unknown:
        place: Any = known
        for part in parents:
            place = place[part]
        del place[key]
    listed = known.get("identities")
    items = listed if isinstance(listed, list) else [None]
    identities = tuple(section for item in items if (section := _readable(IdentitySection, item)) is not None)
    return _Parts(
        # Of an unknown profile nothing is known, so nothing is demanded for it.
        profile="production" if known.get("profile", "production") == "production" else "development",
        server=_readable(ServerSection, known.get("server")),
        database=_readable(DatabaseSection, known.get("database")),
        vault=_readable(VaultSection, known.get("vault")),
        audit=_readable(AuditSection, known.get("audit", {})),
        metrics=_readable(MetricsSection, known.get("metrics", {})),
        traces=_readable(TracesSection, known.get("traces", {})),
        identities=None if items and not identities else identities,
    )


def _readable(kind: type[S], value: object) -> S | None:
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None


_PATH_KEYS = frozenset(
    {"certificate", "private_key", "client_ca", "ca_file", "password_file", "directory"}
    | {"role_id_file", "secret_id_file", "token_file", "jwt_file"}
)


def _resolve(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_resolve(item, base) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _resolve_text(key, item, base) if isinstance(item, str) else _resolve(item, base)
        for key, item in value.items()
    }


def _resolve_text(key: str, text: str, base: Path) -> str:
    if key in _PATH_KEYS:
        return str(base / text)
    if key == "url" and text.startswith(SQLITE_PREFIX) and _names_a_file(text):
        return f"{SQLITE_PREFIX}{base / text.removeprefix(SQLITE_PREFIX)}"
    return text


def _names_a_file(sqlite_url: str) -> bool:
    name = sqlite_url.removeprefix(SQLITE_PREFIX)
    return bool(name) and not name.startswith((":", "file:"))


DATABASE_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE", "PGSSLROOTCERT", "PGOPTIONS")
"""Environment variables by which a connection would differ from what the file says."""


def problems_with(settings: Settings | _Parts, environ: Mapping[str, str]) -> list[str]:
    """What the file's shape alone does not show."""
    return [
        *(
            f"environment variable {name} is set: production takes the database from the file alone; unset it"
            for name in DATABASE_VARIABLES
            if settings.profile == "production" and environ.get(name)
        ),
        *_environment_problems(environ),
        *_file_problems(settings),
        *_database_problems(settings),
        *_worker_problems(settings),
        *_vault_problems(settings),
        *_audit_problems(settings),
        *_metrics_problems(settings),
        *_traces_problems(settings, environ),
        *_identity_problems(settings),
    ]


def _environment_problems(environ: Mapping[str, str]) -> list[str]:
    found = [name for name in LEAKING_VARIABLES if environ.get(name)]
    if environ.get("GRPC_VERBOSITY", "").upper() == "DEBUG":
        found.append("GRPC_VERBOSITY")
    leaks = [f"environment variable {name} is set: it would leak keys or messages; unset it" for name in found]
    secrets = [name for name in SECRET_VARIABLES if environ.get(name)]
    return leaks + [f"environment variable {name} is set: secrets come from files; unset it" for name in secrets]


def _files_of(settings: Settings | _Parts) -> list[tuple[str, Path, bool]]:
    """Name, path, and whether it is secret."""
    files = []
    if settings.server is not None:
        files.append(("server.certificate", settings.server.certificate, False))
        files.append(("server.private_key", settings.server.private_key, True))
        files.append(("server.client_ca", settings.server.client_ca, False))
    if settings.traces is not None and settings.traces.ca_file is not None:
        files.append(("traces.ca_file", settings.traces.ca_file, False))
    if settings.database is not None and settings.database.password_file is not None:
        files.append(("database.password_file", settings.database.password_file, True))
    if settings.vault is None:
        return files
    files.append(("vault.ca_file", settings.vault.ca_file, False))
    for name in ("intake", "release", "operator", "checkpointer"):
        login = getattr(settings.vault, name)
        if login is None:
            continue
        for key in ("role_id_file", "secret_id_file", "token_file", "jwt_file"):
            path = getattr(login, key)
            if path is not None:
                files.append((f"vault.{name}.{key}", path, key != "role_id_file"))
    return files


def _file_problems(settings: Settings | _Parts) -> list[str]:
    problems = []
    for name, path, secret in _files_of(settings):
        if not path.is_file():
            problems.append(f"{name}: no such file: {path}")
        elif not os.access(path, os.R_OK):
            problems.append(f"{name}: cannot be read: {path}")
        elif secret and is_exposed(path):
            problems.append(f"{name}: others may read it: chmod 600 {path}")
        elif name in _CERTIFICATES and not _certificates_in(path):
            problems.append(f"{name}: is no PEM certificate: {path}")
        elif name in _CERTIFICATES and settings.profile == "production" and _is_from_development_ca(path):
            problems.append(f"{name}: comes from the development CA, which production refuses")
        elif name == "server.private_key" and settings.server is not None:
            problems += _key_problems(path, settings.server.certificate)
    return problems


def is_exposed(path: Path) -> bool:
    """Whether a secret's file can be read by others than this process's user. Raises `OSError`."""
    return exposes(path.stat(), user=os.geteuid(), group=os.getegid(), groups=os.getgroups())


def exposes(found: os.stat_result, *, user: int, group: int, groups: Sequence[int]) -> bool:
    """Whether mode and owner let others read: only the owner may, as a rule (PCI DSS 8.6.2).

    Where somebody else puts the file there, its group may read it: a file of root's that a server of its own user could
    not open otherwise, and one of a group that this process was given beside its own. So do Kubernetes (`fsGroup`),
    systemd's credentials and Debian (`ssl-cert`).
    """
    if found.st_mode & 0o037:
        return True
    is_handed_over = (found.st_uid == 0 and user != 0) or (found.st_gid in groups and found.st_gid not in (group, 0))
    return bool(found.st_mode & 0o040) and not is_handed_over


_CERTIFICATES = frozenset({"server.certificate", "server.client_ca", "vault.ca_file", "traces.ca_file"})


def _certificates_in(path: Path) -> Sequence[x509.Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []


def _key_problems(path: Path, certificate: Path) -> list[str]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return [f"server.private_key: is no PEM private key without a password: {path}"]
    chain = _certificates_in(certificate)
    if chain and chain[0].public_key() != key.public_key():
        return ["server.private_key: does not belong to server.certificate"]
    return []


def _is_from_development_ca(path: Path) -> bool:
    return any(DEVELOPMENT_MARK in found.issuer.rfc4514_string() for found in _certificates_in(path))


def _database_problems(settings: Settings | _Parts) -> list[str]:
    if settings.database is None:
        return []
    text = settings.database.url
    url, query = urlsplit(text), parse_qs(urlsplit(text).query)
    if url.scheme == "sqlite":
        if not text.startswith(SQLITE_PREFIX) or not _names_a_file(text):
            return ["database.url: must name a file, as in sqlite:////var/lib/cardvault/vault.db"]
        folder = Path(text.removeprefix(SQLITE_PREFIX)).parent
        return [] if folder.is_dir() else [f"database.url: no such folder: {folder}"]
    if url.scheme != "postgresql":
        return ["database.url: must begin with sqlite:/// or postgresql://"]
    if re.search(r"[#\s]", text):
        # Where one reader ends the address, another goes on: what was checked would not be what is connected to.
        return ["database.url: holds a space or a #; write them as %20 and %23"]
    problems = []
    if url.password or "password" in query:
        problems.append("database.url: holds a password; put it into a file and name it in database.password_file")
    if settings.profile == "production":
        named = [url.netloc.rpartition("@")[2], *query.get("host", []), *query.get("hostaddr", [])]
        hosts = [host for text in named for host in text.split(",")]
        over_network = any(host and not host.startswith("/") for host in hosts)
        if over_network and query.get("sslmode") != ["verify-full"]:
            problems.append("database.url: production needs sslmode=verify-full (PCI DSS 4.2.1)")
        if "service" in query:
            problems.append("database.url: production takes no service file: what it says cannot be checked")
    return problems


def _worker_problems(settings: Settings | _Parts) -> list[str]:
    if settings.server is None or settings.server.workers == 1:
        return []
    problems = []
    if settings.database is not None and settings.database.url.startswith(SQLITE_PREFIX):
        problems.append("server.workers: SQLite has one writer, so one worker is all it can use; take PostgreSQL")
    if sys.platform != "linux":
        problems.append("server.workers: more than one needs Linux")
    return problems


def _problem_with_address(address: str) -> str:
    try:
        parts = urlsplit(address)
        has_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port above 65535
        return _NO_PLACE
    if parts.scheme != "https":
        return "must begin with https://"
    return "" if has_place else _NO_PLACE


_NO_PLACE = "must name a host, and no port or one from 1 to 65535"


def _vault_problems(settings: Settings | _Parts) -> list[str]:
    problems = []
    if settings.vault is not None and (problem := _problem_with_address(settings.vault.address)):
        problems.append(f"vault.address: {problem}")
    if settings.server is None:
        return problems
    served = set(settings.server.services)
    if not served:
        problems.append("server.services: names no service")
    if settings.vault is None:
        return problems
    if served & INTAKE_SERVICES and settings.vault.intake is None:
        problems.append("vault.intake: is needed to serve checkout")
    if served & RELEASE_SERVICES and settings.vault.release is None:
        problems.append("vault.release: is needed to serve the processor")
    return problems


def _audit_problems(settings: Settings | _Parts) -> list[str]:
    if settings.profile != "production" or settings.server is None or settings.vault is None:
        return []
    if settings.vault.checkpointer is None or settings.audit is None or settings.audit.directory is not None:
        return []
    # PCI DSS 10.3.3: logs are backed up where they are hard to change; and a backup must not bring erased cards back.
    problem = "audit.directory: is needed in production beside vault.checkpointer: without a copy of the log elsewhere"
    return [f"{problem} nobody notices that the database was set back, with erased cards and used grants in it"]


_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):[0-9]{1,5}")
_MAX_PORT = 65535


def _metrics_problems(settings: Settings | _Parts) -> list[str]:
    if settings.metrics is None or settings.metrics.listen is None:
        return []
    listen, problems = settings.metrics.listen, []
    workers = settings.server.workers if settings.server is not None else 1
    if _ADDRESS.fullmatch(listen) is None or int(listen.rpartition(":")[2]) + workers - 1 > _MAX_PORT:
        return ["metrics.listen: must be host:port, as in 127.0.0.1:9464, with a port left for each worker"]
    if not listen.startswith(LOOPBACK) and not settings.metrics.beyond_loopback:
        problems.append(
            "metrics.listen: plain HTTP that other hosts can reach; take 127.0.0.1, or set metrics.beyond_loopback "
            "where the network keeps strangers away"
        )
    first = int(listen.rpartition(":")[2])
    served = settings.server.listen.rpartition(":")[2] if settings.server is not None else ""
    if served.isdigit() and first and first <= int(served) < first + workers:
        problems.append("metrics.listen: takes the port that server.listen has")
    return problems


def _traces_problems(settings: Settings | _Parts, environ: Mapping[str, str]) -> list[str]:
    if settings.traces is None or settings.traces.otlp_endpoint is None:
        return []
    url, problems = urlsplit(settings.traces.otlp_endpoint), []
    where = url.netloc.rpartition("@")[2]
    if url.scheme not in ("http", "https") or _ADDRESS.fullmatch(where) is None or "@" in url.netloc or url.path:
        return ["traces.otlp_endpoint: must look like https://host:port, of an OTLP/gRPC collector"]
    if url.scheme == "http" and not where.startswith(LOOPBACK):
        problems.append("traces.otlp_endpoint: must begin with https:// unless the collector is on this host")
    problems += [
        f"environment variable {name} is set: traces go where the file says and nowhere else; unset it"
        for name in sorted(environ)
        if name.startswith("OTEL_") and environ[name]
    ]
    if importlib.util.find_spec("opentelemetry") is None:
        problems.append("traces.otlp_endpoint: needs the extra `otel`: pip install 'cardvault[otel]'")
    return problems


def _identity_problems(settings: Settings | _Parts) -> list[str]:
    if settings.identities is None:
        return []
    problems = []
    seen: set[str] = set()
    for section in settings.identities:
        if section.uri in seen:
            problems.append(f"identities: {section.uri} stands twice")
        seen.add(section.uri)
    if not settings.identities:
        problems.append("identities: none, so nobody could call")
    return problems
