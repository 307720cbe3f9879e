"""The deployment's files, read as those read them that run them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVERS = ("intake", "account", "release")
CONFIGS = sorted(DEPLOY.rglob("*.toml"))


def load_yaml(path: Path) -> list[dict[str, Any]]:
    """Every document of a file."""
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def compose() -> dict[str, Any]:
    """The Compose file, with what it shares between services in its place."""
    return load_yaml(DEPLOY / "compose" / "compose.yaml")[0]


def manifests() -> list[dict[str, Any]]:
    """Every Kubernetes object of the base, and the job that is made by hand."""
    folder = DEPLOY / "kubernetes"
    files = [*sorted((folder / "base").glob("*.yaml")), folder / "upgrade-job.yaml"]
    return [found for file in files if file.name != "kustomization.yaml" for found in load_yaml(file)]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod specification of everything that runs in Kubernetes."""
    for found in manifests():
        metadata = found["metadata"]
        name = metadata.get("name", metadata.get("generateName"))
        spec = found.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if found["kind"] == "CronJob" else spec
        if "template" in spec:
            yield name, spec["template"]["spec"]


def unit(path: Path) -> Mapping[str, list[str]]:
    """Settings of a systemd unit by name, sections put together."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([A-Za-z]+)=(.*)", line)
        if match:
            found.setdefault(match[1], []).append(match[2])
    return found


def settings(path: Path) -> dict[str, Any]:
    """A configuration file, unchecked."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def paths_in(value: Any) -> Iterator[str]:
    """Every file or folder that a configuration names."""
    if isinstance(value, dict):
        for below in value.values():
            yield from paths_in(below)
    elif isinstance(value, list):
        for below in value:
            yield from paths_in(below)
    elif isinstance(value, str):
        if value.startswith("/"):
            yield value
        yield from re.findall(r"sslrootcert=(/[^&]+)", value)
