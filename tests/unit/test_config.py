"""The configuration file: every problem at once, by name, and never a value that may be secret."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vault.config import Settings
from vault.config_file import (
    LEAKING_VARIABLES,
    SECRET_VARIABLES,
    ConfigProblems,
    exposes,
    load,
    load_for_operator,
    problems_with,
    with_workers,
)
from vault.domain.caller import Role
from vault.domain.card import CardState
from vault.embedded.pki import CertificateFiles, DevelopmentCa

SECRET = "correct-horse-battery"
SHOP = {"uri": "spiffe://shop.example/checkout", "role": "checkout", "tenant": "shop"}
ACQUIRER = {
    "uri": "spiffe://acquirer.example/gateway",
    "role": "processor",
    "processor": "acquirer",
    "tenants": ["shop", "other"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return DevelopmentCa.load_or_create(tmp_path_factory.mktemp("pki")).issue_server()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LEAKING_VARIABLES, *SECRET_VARIABLES, "GRPC_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def facts(files: CertificateFiles, tmp_path: Path) -> dict[str, Any]:
    """A good file."""
    for name in ("role_id", "secret_id", "token"):
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o600)
    return {
        "environment": "test",
        "profile": "development",
        "server": {
            "certificate": str(files.cert_file),
            "private_key": str(files.key_file),
            "client_ca": str(files.ca_file),
        },
        "database": {"url": "sqlite:///vault.db"},
        "vault": {
            "address": "https://vault.example:8200",
            "ca_file": str(files.ca_file),
            "intake": {"role_id_file": "role_id", "secret_id_file": "secret_id"},
            "release": {"token_file": "token"},
        },
        "identities": [SHOP, ACQUIRER],
    }


def write(facts: Mapping[str, Any], folder: Path) -> Path:
    """As TOML: inline tables everywhere, whose keys are those of JSON."""

    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{json.dumps(k)} = {shown(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(shown(item) for item in value) + "]"
        return json.dumps(value)

    file = folder / "cardvault.toml"
    file.write_text("".join(f"{json.dumps(k)} = {shown(v)}\n" for k, v in facts.items()), encoding="utf-8")
    return file


def problems_of(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Why the file is refused."""
    try:
        load(write(facts, folder))
    except ConfigProblems as e:
        found = list(e.problems)
    else:
        found = []
    assert SECRET not in repr(found)
    return found


def changed(facts: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """With one key replaced; None removes it."""
    copied: dict[str, Any] = json.loads(json.dumps(facts))
    *parents, key = path.split(".")
    place: Any = copied
    for part in parents:
        place = place[part]
    if value is None:
        place.pop(key)
    else:
        place[key] = value
    return copied


def test_a_good_file_is_read_and_its_paths_count_from_its_folder(facts: dict[str, Any], tmp_path: Path) -> None:
    settings = load(write(facts, tmp_path))

    assert settings.vault.intake is not None
    assert settings.vault.intake.role_id_file == tmp_path / "role_id"
    assert settings.sqlite_file() == tmp_path / "vault.db"
    assert settings.database_url() == f"sqlite:///{tmp_path / 'vault.db'}"
    assert [identity.role for identity in settings.identities_by_uri().values()] == [Role.CHECKOUT, Role.PROCESSOR]
    assert {name: set(tenants) for name, tenants in settings.processors().items()} == {"acquirer": {"shop", "other"}}


@pytest.mark.parametrize("name", LEAKING_VARIABLES)
def test_each_variable_that_leaks_is_refused(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, SECRET)

    assert problems_of(facts, tmp_path) == [
        f"environment variable {name} is set: it would leak keys or messages; unset it"
    ]


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_a_secret_in_the_environment_is_refused(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, SECRET)

    assert problems_of(facts, tmp_path) == [f"environment variable {name} is set: secrets come from files; unset it"]


@pytest.mark.parametrize(("value", "leaks"), [("DEBUG", True), ("debug", True), ("INFO", False), ("", False)])
def test_grpc_may_speak_but_not_of_everything(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, *, leaks: bool
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", value)

    assert bool(problems_of(facts, tmp_path)) is leaks


NO_PLACE = "must name a host, and no port or one from 1 to 65535"

SHAPES: dict[str, tuple[str, Any, str]] = {
    "unknown key": ("surprise", SECRET, "surprise: Extra inputs are not permitted"),
    "unknown key of a section": ("vault.token", SECRET, "vault.token: Extra inputs are not permitted"),
    "unknown key of a login": (
        "vault.intake.secret_id",
        SECRET,
        "vault.intake.secret_id: Extra inputs are not permitted",
    ),
    "no environment": ("environment", None, "environment: Field required"),
    "odd environment": (
        "environment",
        "Live 1",
        "environment: must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter",
    ),
    "no section": ("database", None, "database: Field required"),
    "a section that is none": (
        "database",
        7,
        "database: Input should be a valid dictionary or instance of DatabaseSection",
    ),
    "unknown profile": ("profile", "staging", "profile: Input should be 'production' or 'development'"),
    "too few threads": ("server.threads", 1, "server.threads: Input should be greater than or equal to 2"),
    "two ways in": (
        "vault.intake.token_file",
        "token",
        "vault.intake: give role_id_file and secret_id_file, or jwt_file and jwt_role, or token_file, one of them",
    ),
    "half a way in": (
        "vault.intake.secret_id_file",
        None,
        "vault.intake: give role_id_file and secret_id_file, or jwt_file and jwt_role, or token_file",
    ),
    "cards active at some other time": (
        "cards",
        {"activate_on": "later"},
        "cards.activate_on: Input should be 'tokenize' or 'first_approval'",
    ),
    "no worker": ("server.workers", 0, "server.workers: Input should be greater than or equal to 1"),
    "too many workers": ("server.workers", 65, "server.workers: Input should be less than or equal to 64"),
    "no service": ("server.services", [], "server.services: names no service"),
    "unknown service": (
        "server.services",
        ["admin"],
        "server.services.0: Input should be 'checkout', 'account' or 'processor'",
    ),
    "no login for checkout": ("vault.intake", None, "vault.intake: is needed to serve checkout"),
    "no login for the processor": ("vault.release", None, "vault.release: is needed to serve the processor"),
    "Vault in clear": ("vault.address", "http://vault.example:8200", "vault.address: must begin with https://"),
    "Vault at no port": ("vault.address", "https://vault.example:82000", "vault.address: " + NO_PLACE),
    "Vault at port 0": ("vault.address", "https://vault.example:0", "vault.address: " + NO_PLACE),
    "Vault nowhere": ("vault.address", "https://:8200", "vault.address: " + NO_PLACE),
    "Vault behind half a bracket": ("vault.address", "https://[::1:8200", "vault.address: " + NO_PLACE),
    "nobody": ("identities", [], "identities: none, so nobody could call"),
    "the same twice": ("identities", [SHOP, SHOP], f"identities: {SHOP['uri']} stands twice"),
    "a URI of the web": (
        "identities",
        [{**SHOP, "uri": "https://shop.example/checkout"}],
        "identities.0: uri must look like spiffe://trust-domain/path",
    ),
    "a processor with one tenant": (
        "identities",
        [SHOP, {**ACQUIRER, "tenant": "shop"}],
        "identities.1: a processor needs `processor` and `tenants`, and no `tenant`",
    ),
    "a checkout with two": (
        "identities",
        [{**SHOP, "tenants": ["other"]}],
        "identities.0: checkout and account need `tenant` alone",
    ),
    "an odd tenant": (
        "identities",
        [{**SHOP, "tenant": "Shop"}],
        "identities.0: tenant must be 1 to 63 lower-case letters, digits and dashes, beginning with a letter",
    ),
    "another database": ("database.url", "mysql://db/x", "database.url: must begin with sqlite:/// or postgresql://"),
    "SQLite in memory": (
        "database.url",
        "sqlite:///:memory:",
        "database.url: must name a file, as in sqlite:////var/lib/cardvault/vault.db",
    ),
    "SQLite without a file": (
        "database.url",
        "sqlite://",
        "database.url: must name a file, as in sqlite:////var/lib/cardvault/vault.db",
    ),
    "SQLite nowhere": ("database.url", "sqlite:////nowhere/vault.db", "database.url: no such folder: /nowhere"),
}


@pytest.mark.parametrize(("path", "value", "problem"), SHAPES.values(), ids=SHAPES)
def test_what_is_wrong_is_said_by_name(
    facts: dict[str, Any], tmp_path: Path, path: str, value: Any, problem: str
) -> None:
    assert problems_of(changed(facts, path, value), tmp_path) == [problem]


@pytest.mark.parametrize(
    ("section", "state"),
    [
        (None, CardState.ACTIVE),
        ({}, CardState.ACTIVE),
        ({"activate_on": "tokenize"}, CardState.ACTIVE),
        ({"activate_on": "first_approval"}, CardState.PENDING),
    ],
)
def test_a_new_card_is_active_unless_it_is_to_wait_for_its_first_approval(
    facts: dict[str, Any], tmp_path: Path, section: dict[str, str] | None, state: CardState
) -> None:
    file = write(facts if section is None else {**facts, "cards": section}, tmp_path)

    assert load(file).cards.first_state() is state
    # What it says of new cards is nothing to operator commands.
    assert load_for_operator(file).environment == "test"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://cardvault:{SECRET}@db.example/cardvault",
        f"postgresql://cardvault@db.example/cardvault?password={SECRET}",
        f"postgresql:///cardvault?host=/run/postgresql&user=cardvault&password={SECRET}",
    ],
)
def test_a_password_in_the_url_is_refused(facts: dict[str, Any], tmp_path: Path, url: str) -> None:
    assert problems_of(changed(facts, "database.url", url), tmp_path) == [
        "database.url: holds a password; put it into a file and name it in database.password_file"
    ]


@pytest.mark.parametrize(
    "url",
    [
        # The driver's library knows no fragment and goes on to a host that was not looked at.
        "postgresql://#@db.example/cardvault",
        "postgresql:///cardvault?application_name=a#&host=db.example",
        "postgresql://cardvault@db.example/cardvault?sslmode=verify-full&ssl\tmode=disable",
    ],
)
def test_an_address_that_two_readers_would_read_differently_is_refused(
    facts: dict[str, Any], tmp_path: Path, url: str
) -> None:
    assert problems_of(changed(facts, "database.url", url), tmp_path) == [
        "database.url: holds a space or a #; write them as %20 and %23"
    ]


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("postgresql://cardvault@db.example/cardvault?sslmode=verify-full", True),
        ("postgresql:///cardvault?host=/run/postgresql", True),
        ("postgresql://cardvault@db.example/cardvault", False),
        ("postgresql://cardvault@db.example/cardvault?sslmode=require", False),
        ("postgresql://cardvault@db.example/cardvault?sslmode=verify-ca", False),
        ("postgresql://cardvault@db.example/cardvault?sslmode=verify-full&sslmode=disable", False),
        ("postgresql:///cardvault?host=db.example", False),
        ("postgresql://cardvault@one.example:5432,two.example:5432/cardvault?sslmode=verify-full", True),
        ("postgresql://cardvault@one.example:5432,two.example:5432/cardvault", False),
        ("postgresql:///cardvault?host=/run/postgresql,two.example", False),
        ("postgresql:///cardvault?hostaddr=192.0.2.1", False),
    ],
)
def test_production_talks_to_postgresql_over_verified_tls(
    facts: dict[str, Any], tmp_path: Path, url: str, *, is_safe: bool
) -> None:
    settings = load(write(changed(facts, "database.url", url), tmp_path)).model_copy(update={"profile": "production"})

    found = [problem for problem in problems_with(settings, {}) if problem.startswith("database")]

    assert found == ([] if is_safe else ["database.url: production needs sslmode=verify-full (PCI DSS 4.2.1)"])


def test_production_is_what_an_unnamed_profile_is(facts: dict[str, Any], tmp_path: Path) -> None:
    problems = problems_of(changed(facts, "profile", None), tmp_path)

    assert problems == [
        f"{name}: comes from the development CA, which production refuses"
        for name in ("server.certificate", "server.client_ca", "vault.ca_file")
    ]


@pytest.mark.parametrize(
    ("profile", "has_login", "directory", "is_fit"),
    [
        ("production", True, "/mnt/audit", True),
        ("production", True, None, False),
        # Another server signs and keeps the copy.
        ("production", False, None, True),
        ("development", True, None, True),
    ],
)
def test_who_signs_the_log_in_production_keeps_a_copy_of_it(
    facts: dict[str, Any], tmp_path: Path, profile: str, directory: str | None, *, has_login: bool, is_fit: bool
) -> None:
    if has_login:
        login = {"role_id_file": "role_id", "secret_id_file": "secret_id"}
        facts = changed(facts, "vault.checkpointer", login)
    facts = changed(facts, "audit", {"directory": directory} if directory else {})
    settings = load(write(facts, tmp_path)).model_copy(update={"profile": profile})

    found = [problem for problem in problems_with(settings, {}) if problem.startswith("audit")]

    assert [problem.partition(":")[0] for problem in found] == ([] if is_fit else ["audit.directory"])


def test_a_problem_of_shape_hides_no_other(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "secret_id").chmod(0o640)
    wrong = changed(facts, "server.threads", "many")
    wrong = changed(wrong, "vault.surprise", SECRET)
    wrong = changed(wrong, "vault.address", "http://vault.example")
    wrong = changed(wrong, "database.url", "oracle://db")
    wrong = changed(wrong, "identities", [SHOP, SHOP, {**SHOP, "uri": "nobody"}])

    assert problems_of(wrong, tmp_path) == [
        "vault.surprise: Extra inputs are not permitted",
        "server.threads: Input should be a valid integer, unable to parse string as an integer",
        "identities.2: uri must look like spiffe://trust-domain/path",
        f"vault.intake.secret_id_file: others may read it: chmod 600 {tmp_path / 'secret_id'}",
        "database.url: must begin with sqlite:/// or postgresql://",
        "vault.address: must begin with https://",
        f"identities: {SHOP['uri']} stands twice",
    ]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
@pytest.mark.parametrize(
    "key", ["server.private_key", "database.password_file", "vault.intake.secret_id_file", "vault.release.token_file"]
)
def test_a_secret_that_others_may_read_is_refused(
    facts: dict[str, Any], files: CertificateFiles, tmp_path: Path, key: str, mode: int
) -> None:
    file = tmp_path / "open"
    file.write_bytes(files.key_file.read_bytes())
    file.chmod(mode)

    assert problems_of(changed(facts, key, str(file)), tmp_path) == [f"{key}: others may read it: chmod 600 {file}"]


@pytest.mark.parametrize(
    "key",
    [
        *("server.certificate", "server.private_key", "server.client_ca", "vault.ca_file"),
        *("vault.intake.role_id_file", "vault.intake.secret_id_file", "vault.release.token_file"),
    ],
)
def test_a_missing_file_is_refused(facts: dict[str, Any], tmp_path: Path, key: str) -> None:
    assert problems_of(changed(facts, key, "nowhere"), tmp_path) == [f"{key}: no such file: {tmp_path / 'nowhere'}"]


def test_files_that_are_not_what_they_should_be_are_refused(
    facts: dict[str, Any], files: CertificateFiles, tmp_path: Path
) -> None:
    other = DevelopmentCa.load_or_create(tmp_path / "other").issue_server()

    assert [
        problems_of(changed(facts, key, str(value)), tmp_path)
        for key, value in (
            ("server.certificate", tmp_path / "token"),
            ("server.private_key", tmp_path / "token"),
            ("server.private_key", other.key_file),
            ("server.client_ca", files.key_file),
        )
    ] == [
        [f"server.certificate: is no PEM certificate: {tmp_path / 'token'}"],
        [f"server.private_key: is no PEM private key without a password: {tmp_path / 'token'}"],
        ["server.private_key: does not belong to server.certificate"],
        [f"server.client_ca: is no PEM certificate: {files.key_file}"],
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"a = \n" + SECRET.encode(), "is not valid TOML"), (b"\xff\xfe", "is not valid TOML"), (None, "cannot be read")],
)
def test_what_is_no_file_of_ours_is_refused_without_its_text(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "cardvault.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigProblems) as caught:
        load(file)

    [found] = caught.value.problems
    assert found.startswith(f"{file}: {problem}")
    assert SECRET not in found


def test_the_password_comes_from_its_file_whatever_letters_it_has(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss/w:rd?#%\n")
    (tmp_path / "password").chmod(0o600)
    facts["database"] = {"url": "postgresql://cardvault@db.example:5433/cards?x=1", "password_file": "password"}

    settings = load(write(facts, tmp_path))

    assert settings.database_url() == "postgresql://cardvault:p%40ss%2Fw%3Ard%3F%23%25@db.example:5433/cards?x=1"
    assert "p@ss" not in repr(settings)


def test_workers_asked_for_on_the_command_line_need_their_metrics_ports_too(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    url = "postgresql://cardvault@db.example/cardvault?sslmode=verify-full"
    facts = changed(facts, "database.url", url) | {"metrics": {"listen": "127.0.0.1:65534"}}
    settings = load(write(facts, tmp_path))

    assert with_workers(settings, 2).server.workers == 2
    with pytest.raises(ConfigProblems, match="with a port left for each worker"):
        with_workers(settings, 3)


def test_settings_cannot_be_changed(facts: dict[str, Any], tmp_path: Path) -> None:
    settings: Settings = load(write(facts, tmp_path))

    with pytest.raises(ValueError, match="frozen"):
        settings.profile = "production"


# --- who may read a secret's file ---

US, OUR_GROUP, HANDED, STRANGERS = 10001, 10001, 10002, 50


@pytest.mark.parametrize(
    ("mode", "owner", "group", "exposed"),
    [
        (0o600, US, OUR_GROUP, False),
        (0o400, US, OUR_GROUP, False),
        (0o640, US, OUR_GROUP, True),
        (0o604, US, OUR_GROUP, True),
        (0o644, 0, 0, True),
        # PostgreSQL's rule, and systemd's credentials: root's file, which we could not open otherwise.
        (0o440, 0, OUR_GROUP, False),
        (0o640, 0, STRANGERS, False),
        (0o660, 0, OUR_GROUP, True),
        # Kubernetes' fsGroup: a group beside our own that this process was given for this.
        (0o640, US, HANDED, False),
        (0o440, 0, HANDED, False),
        (0o660, US, HANDED, True),
        (0o640, US, STRANGERS, True),
        (0o640, 10009, STRANGERS, True),
    ],
)
def test_a_secret_is_for_its_owner_and_for_whom_it_was_handed_to(
    mode: int, owner: int, group: int, exposed: bool
) -> None:
    found = os.stat_result((mode, 1, 1, 1, owner, group, 1, 0, 0, 0))

    assert exposes(found, user=US, group=OUR_GROUP, groups=[OUR_GROUP, HANDED]) is exposed


def test_root_has_no_excuse() -> None:
    found = os.stat_result((0o640, 1, 1, 1, 0, 0, 1, 0, 0, 0))

    assert exposes(found, user=0, group=0, groups=[0])


@pytest.mark.parametrize(
    "login",
    [
        {},
        {"jwt_file": "token"},
        {"jwt_role": "cardvault-intake"},
        {"jwt_file": "token", "jwt_role": ""},
        {"jwt_file": "token", "jwt_role": "cardvault-intake", "token_file": "token"},
        {"jwt_file": "token", "jwt_role": "cardvault-intake", "role_id_file": "role_id", "secret_id_file": "secret_id"},
        {"role_id_file": "role_id"},
        {"role_id_file": "role_id", "token_file": "token"},
    ],
)
def test_a_login_is_given_whole_and_in_one_way(facts: dict[str, Any], tmp_path: Path, login: dict[str, str]) -> None:
    facts["vault"]["intake"] = login

    with pytest.raises(ConfigProblems) as caught:
        load(write(facts, tmp_path))

    assert any(problem.startswith("vault.intake") for problem in caught.value.problems)


def test_a_login_by_jwt_is_a_secret_file_beside_the_configuration(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text(SECRET)
    (tmp_path / "jwt").chmod(0o600)
    facts["vault"]["intake"] = {"jwt_file": "jwt", "jwt_role": "cardvault-intake"}

    good = load(write(facts, tmp_path))
    (tmp_path / "jwt").chmod(0o644)
    with pytest.raises(ConfigProblems) as caught:
        load(write(facts, tmp_path))

    assert good.vault.intake is not None
    assert good.vault.intake.jwt_file == tmp_path / "jwt"
    assert caught.value.problems == (f"vault.intake.jwt_file: others may read it: chmod 600 {tmp_path / 'jwt'}",)
