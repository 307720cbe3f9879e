"""The Compose file: valid, every service hardened, nothing secret in it, and everybody sees only what they need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest

from tests.deploy.files import DEPLOY, SERVERS, compose, paths_in, settings
from tests.support.commands import problem_with

FOLDER = DEPLOY / "compose"
FILE = FOLDER / "compose.yaml"
SERVICES: dict[str, Any] = compose()["services"]


def sources(service: dict[str, Any], kind: str) -> dict[str, str]:
    """Where in the container each config or secret is, by its name in the file."""
    given: list[Any] = service.get(kind, [])
    prefix = "/run/secrets/" if kind == "secrets" else "/"
    found = {}
    for item in given:
        name, target = (item, item) if isinstance(item, str) else (item["source"], item.get("target", item["source"]))
        found[name] = target if target.startswith("/") else prefix + target
    return found


def read_strictly(file: dict[str, Any]) -> None:
    compose_spec.PyCompose.from_json(json.dumps(file)).validate()


def test_it_follows_the_specification() -> None:
    read_strictly(compose())


@pytest.mark.parametrize("spoil", [{"read_only": ["yes"]}, {"cap_dropp": ["ALL"]}, {"networks": ["nowhere"]}])
def test_what_the_specification_does_not_know_would_be_found(spoil: dict[str, Any]) -> None:
    file = compose()
    file["services"]["intake"] = {**file["services"]["intake"], **spoil}

    with pytest.raises(ValueError, match=r"expected a boolean|cap_dropp|nowhere"):
        read_strictly(file)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["ulimits"]["core"] == 0
    assert any(mount.startswith("/tmp:") and "noexec" in mount for mount in service["tmpfs"])
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & service.keys()


@pytest.mark.parametrize("name", [name for name in SERVICES if "postgres" not in SERVICES[name]["image"]])
def test_what_holds_numbers_or_keys_is_never_swapped_out(name: str) -> None:
    assert SERVICES[name]["memswap_limit"] == SERVICES[name]["mem_limit"]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_named_by_a_tag_of_its_own_and_by_no_host(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")

    assert re.fullmatch(r"[a-z0-9]+(/[a-z0-9]+)?", image)
    assert re.match(r"\d+\.\d+", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_the_file_or_the_environment(name: str) -> None:
    for key, value in SERVICES[name].get("environment", {}).items():
        assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", key) or key.endswith("_FILE"), key
        assert not str(value).startswith("s.")


def test_secrets_come_from_files_that_are_not_in_the_repository() -> None:
    ignored = (FOLDER / ".gitignore").read_text(encoding="utf-8").splitlines()

    for name, secret in compose()["secrets"].items():
        assert set(secret) == {"file"}, name
        assert secret["file"].startswith("secrets/") or secret["file"] == "../vault/setup.hcl", name
    assert {"secrets/", "logins/", "audit/"} <= set(ignored)
    assert all((FOLDER / config["file"]).is_file() for config in compose()["configs"].values())


@pytest.mark.parametrize("name", [*SERVERS, "operator", "migrate"])
def test_a_container_has_every_file_that_its_configuration_names_and_no_other_secret(name: str) -> None:
    service = SERVICES[name]
    (config,) = (source for source, target in sources(service, "configs").items() if target.endswith("cardvault.toml"))
    named = set(paths_in(settings(FOLDER / compose()["configs"][config]["file"])))
    secrets = set(sources(service, "secrets").values())
    folders = {volume.split(":")[1] for volume in service.get("volumes", [])}
    probe = {word.split("=", 1)[1] for word in service.get("healthcheck", {}).get("test", []) if "=/run" in word}

    assert {path for path in named if path.startswith("/run/secrets/")} | probe == secrets
    assert all(any(path.startswith(folder) for folder in folders) for path in named if not path.startswith("/run/sec"))
    assert config == {"migrate": "owner"}.get(name, name)


def test_a_login_reaches_its_own_process_alone() -> None:
    mounts = {
        name: [volume.split(":")[0] for volume in service.get("volumes", []) if "logins" in volume]
        for name, service in SERVICES.items()
    }

    assert {name: found for name, found in mounts.items() if found} == {
        "intake": ["./logins/intake"],
        "account": ["./logins/checkpointer"],
        "release": ["./logins/release"],
        "operator": ["./logins/operator"],
        "vault-setup": ["./logins"],
    }


def test_database_and_keys_meet_in_cardvault_alone_and_have_no_way_out() -> None:
    networks = compose()["networks"]

    assert networks["database"]["internal"] is True
    assert networks["keys"]["internal"] is True
    assert {name for name, service in SERVICES.items() if {"database", "keys"} <= set(service["networks"])} == {
        *SERVERS,
        "operator",
    }
    assert "shop" not in SERVICES["release"]["networks"]
    assert not {"processor"} & (set(SERVICES["intake"]["networks"]) | set(SERVICES["account"]["networks"]))
    assert [name for name, service in SERVICES.items() if "ports" in service] == list(SERVERS)


@pytest.mark.parametrize("name", [name for name in SERVICES if SERVICES[name]["image"].startswith("cardvault")])
def test_commands_and_probes_are_ones_that_cardvault_knows(name: str) -> None:
    service = SERVICES[name]

    assert problem_with(service["command"]) is None
    if name in SERVERS:
        words = service["healthcheck"]["test"]
        assert words[:2] == ["CMD", "cardvault"]
        assert problem_with(words[2:]) is None
        assert int(service["stop_grace_period"].removesuffix("s")) > 20 + 15


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text(encoding="utf-8")

    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text


def test_what_is_mounted_exists_before_docker_makes_it_root_s_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    # The users of the containers may not exist here, and only root could give files away.
    owners = tmp_path / "owners"
    chown = tmp_path / "bin" / "chown"
    chown.parent.mkdir()
    chown.write_text(f'#!/bin/sh\necho "$@" >> {owners}\n', encoding="utf-8")
    chown.chmod(0o755)
    place = tmp_path / "compose"
    place.mkdir()
    shutil.copy(FOLDER / "prepare.sh", place)
    runs = []

    for _ in range(2):
        subprocess.run(["sh", place / "prepare.sh"], check=True, env={"PATH": f"{chown.parent}:/usr/bin:/bin"})
        runs.append({path: path.read_bytes() for path in (place / "secrets").iterdir()})

    mounted = {
        volume.split(":")[0].removeprefix("./")
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    }
    assert mounted >= {"audit", "logins", "logins/intake"}
    assert {f"10001 {folder}" for folder in mounted} <= set(owners.read_text(encoding="utf-8").splitlines())
    assert all((place / folder).stat().st_mode & 0o777 == 0o700 for folder in mounted)
    assert runs[0] == runs[1]
