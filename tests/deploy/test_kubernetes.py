"""The Kubernetes manifests: valid by the cluster's schemas, hardened as its strictest profile asks, nothing open."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.files import DEPLOY, SERVERS, manifests, paths_in, pods, settings
from tests.support.commands import problem_with

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.30", "1.34")
PODS = dict(pods())


def key(found: dict[str, Any]) -> str:
    metadata = found["metadata"]
    return f"{found['kind']} {metadata.get('name', metadata.get('generateName'))}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("found", manifests(), ids=key)
def test_a_manifest_follows_its_schema(found: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(found, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    (found,) = (found for found in manifests() if key(found) == "Deployment cardvault-intake")
    found["spec"]["template"]["spec"]["containers"][0]["securityContxt"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="securityContxt"):
        kubernetes_validate.validate(found, VERSIONS[0], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: the overlay was not rendered")
def test_the_overlay_renders_and_what_comes_out_is_valid() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / "example")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    rendered = [found for found in yaml.safe_load_all(done.stdout) if found]

    assert len(rendered) > 20
    for found in rendered:
        kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
    names = {found["metadata"]["name"] for found in rendered if found["kind"] == "ConfigMap"}
    used = set(re.findall(r"name: (cardvault-[a-z]+(?:-[a-z0-9]{10})?)\n", done.stdout))
    assert names - {"cardvault-owner"} <= used
    (policy,) = (f for f in rendered if f["kind"] == "NetworkPolicy" and f["metadata"]["name"] == "cardvault-intake")
    assert "webshop" in str(policy)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_restricted(name: str) -> None:
    """What the Pod Security Standards call `restricted`, and a file system that is read-only."""
    spec = PODS[name]
    context = spec["securityContext"]

    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == 10001
    # cardvault refuses secrets that its own group may read, so they are handed over through another.
    assert context["fsGroup"] != context["runAsGroup"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert not container.get("envFrom")
        assert all("secretKeyRef" not in str(item) for item in container.get("env", []))
        assert "/" not in container["image"]
        assert not container["image"].endswith(":latest")


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_a_command_that_cardvault_knows_and_has_the_files_that_it_names(name: str) -> None:
    spec = PODS[name]
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    config = next(volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "config")
    named = set(paths_in(settings(FOLDER / "base" / "config" / f"{config.removeprefix('cardvault-')}.toml")))
    is_server = container["args"][0] == "serve"
    # A command looks at no [server].
    needed = {path for path in named if is_server or not re.search(r"/(tls|clients)/", path)}

    assert problem_with(container["args"]) is None
    assert set(mounts) == {volume["name"] for volume in spec["volumes"]}
    assert all(any(path.startswith(mount) for mount in mounts.values()) for path in needed)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if is_server:
            words = container[probe]["exec"]["command"]
            assert words[0] == "cardvault"
            assert problem_with(words[1:]) is None
            files = [word.split("=", 1)[1] for word in words if "=/run" in word]
            assert len(files) == 3
            assert all(any(file.startswith(mount) for mount in mounts.values()) for file in files)


def test_secrets_are_handed_over_unreadable_to_others() -> None:
    for spec in PODS.values():
        for volume in spec["volumes"]:
            for kind in ("secret", "projected"):
                if kind in volume:
                    assert volume[kind]["defaultMode"] == 0o400, volume


def test_a_pods_token_is_for_vault_alone_and_the_role_is_its_own() -> None:
    script = (FOLDER / "vault-roles.sh").read_text(encoding="utf-8")
    roles = dict(re.findall(r"^role (\S+) (\S+)$", script, re.MULTILINE))
    accounts = {found["metadata"]["name"] for found in manifests() if found["kind"] == "ServiceAccount"}

    assert set(roles) == accounts
    for name, spec in PODS.items():
        tokens = [
            source["serviceAccountToken"]
            for volume in spec["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        ]
        if "serviceAccountName" not in spec:
            assert tokens == [], name
            continue
        assert [token["audience"] for token in tokens] == [re.search(r"AUDIENCE:-([a-z-]+)", script)[1]]  # type: ignore[index]
        config = settings(FOLDER / "base" / "config" / f"{spec['serviceAccountName'].removeprefix('cardvault-')}.toml")
        (login,) = (section for section in config["vault"].values() if isinstance(section, dict))
        assert login["jwt_role"] == spec["serviceAccountName"]


def test_nothing_is_let_in_or_out_but_what_is_named() -> None:
    policies = {found["metadata"]["name"]: found["spec"] for found in manifests() if found["kind"] == "NetworkPolicy"}

    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name in SERVERS:
        (rule,) = policies[f"cardvault-{name}"]["ingress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": 7443}]
        assert all({"namespaceSelector", "podSelector"} == set(peer) for peer in rule["from"])
    assert all(set(peer) == {"namespaceSelector", "podSelector"} for peer in _peers(policies["cardvault-egress"]))
    assert policies["cardvault-release"]["ingress"][0]["from"] != policies["cardvault-intake"]["ingress"][0]["from"]


def _peers(policy: dict[str, Any]) -> list[dict[str, Any]]:
    return [peer for rule in policy["egress"] for peer in rule["to"]]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_stays_up_while_nodes_go(name: str) -> None:
    by_kind = {key(found): found for found in manifests()}
    deployment = by_kind[f"Deployment cardvault-{name}"]["spec"]
    budget = by_kind[f"PodDisruptionBudget cardvault-{name}"]["spec"]
    spec = deployment["template"]["spec"]

    assert 0 < budget["minAvailable"] < deployment["replicas"]
    assert budget["selector"] == deployment["selector"]
    assert {rule["topologyKey"] for rule in spec["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert spec["terminationGracePeriodSeconds"] > 20 + 15
    assert by_kind[f"Service cardvault-{name}"]["spec"]["selector"] == deployment["selector"]["matchLabels"]


def test_the_timers_do_what_a_server_does_not() -> None:
    commands = {
        found["metadata"]["name"]: found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"][:2]
        for found in manifests()
        if found["kind"] == "CronJob"
    }

    assert commands == {
        "cardvault-keys-maintain": ["keys", "maintain"],
        "cardvault-retention": ["retention", "run"],
        "cardvault-checkpoint": ["audit", "checkpoint"],
    }
