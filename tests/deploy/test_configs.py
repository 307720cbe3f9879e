"""Every configuration file of the deployments passes the server's own check, with files of its names beside it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.deploy.files import CONFIGS, DEPLOY, SERVERS, paths_in, settings
from vault.cli import serve
from vault.config_file import load, load_for_operator

FOLDERS = {"/audit"} | {f"/var/lib/cardvault-{name}/log" for name in SERVERS}


@pytest.fixture(scope="module")
def pair() -> tuple[bytes, bytes]:
    """A certificate that no development CA made, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a shop of its own")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def placed(tmp_path: Path, pair: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files that configurations name are laid out."""
    for name in ("PGPASSWORD", "VAULT_TOKEN", "BAO_TOKEN", "SSLKEYLOGFILE", "GRPC_TRACE", "PYTHONDEVMODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(config: Path, below: Path, pair: tuple[bytes, bytes]) -> Path:
    """The configuration with everything it names under another root; the copy's path."""
    text = config.read_text(encoding="utf-8")
    for path in sorted(set(paths_in(settings(config))), key=len, reverse=True):
        stand_in = below / path.lstrip("/")
        (stand_in if path in FOLDERS else stand_in.parent).mkdir(parents=True, exist_ok=True)
        if path not in FOLDERS:
            is_key = re.search(r"(_private_key|\.key)$", path) is not None
            is_certificate = re.search(r"(\.pem|\.crt|_ca|_certificate)$", path) is not None
            stand_in.write_bytes(pair[1] if is_key else pair[0] if is_certificate else b"stand-in")
            stand_in.chmod(0o600)
        text = re.sub(rf'(?<=["=]){re.escape(path)}(?=["&])', str(stand_in), text)
    copy = below / "cardvault.toml"
    copy.write_text(text, encoding="utf-8")
    return copy


def test_there_are_files_for_every_deployment() -> None:
    found = {(path.relative_to(DEPLOY).parts[0], path.stem) for path in CONFIGS}

    assert found >= {(kind, name) for kind in ("compose", "kubernetes", "systemd") for name in (*SERVERS, "operator")}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_a_configuration_has_no_problems(
    config: Path, placed: Path, pair: tuple[bytes, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = put(config, placed, pair)

    if config.stem in SERVERS:
        code = serve.check(copy)
        assert (code, capsys.readouterr().err) == (0, "")
        assert load(copy).profile == "production"
    else:
        assert load_for_operator(copy).profile == "production"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_the_check_would_see_a_missing_secret(config: Path, placed: Path, pair: tuple[bytes, bytes]) -> None:
    copy = put(config, placed, pair)
    Path(settings(copy)["database"]["password_file"]).chmod(0o644)

    assert (serve.check(copy) if config.stem in SERVERS else _refuses(copy)) == 2


def _refuses(copy: Path) -> int:
    from vault.config_file import ConfigProblems

    with pytest.raises(ConfigProblems):
        load_for_operator(copy)
    return 2


LOGINS = {"intake": {"intake"}, "release": {"release"}, "account": {"checkpointer"}, "operator": {"operator"}}
SERVICES = {"intake": ["checkout"], "release": ["processor"], "account": ["account"]}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_a_process_has_the_login_that_it_needs_and_no_other(config: Path) -> None:
    found = settings(config)

    logins = {name for name, section in found["vault"].items() if isinstance(section, dict)}

    assert logins == LOGINS.get(config.stem, set())
    assert found.get("server", {}).get("services") == SERVICES.get(config.stem)
    assert f"//cardvault_{config.stem}@" in found["database"]["url"]


@pytest.mark.parametrize("kind", ["compose", "kubernetes", "systemd"])
def test_one_process_keeps_the_order_of_the_log_and_all_know_the_same_callers(kind: str) -> None:
    found = {path.stem: settings(path) for path in CONFIGS if path.relative_to(DEPLOY).parts[0] == kind}

    orders = {name for name in SERVERS if found[name]["audit"].get("sequence", True)}

    assert orders == {"account"}
    assert found["intake"]["identities"] == found["account"]["identities"] == found["release"]["identities"]
    assert len({found[name]["environment"] for name in found}) == 1
