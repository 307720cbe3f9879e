"""Reads the metrics page of a server as Prometheus does."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody has."""
    for _ in range(50):
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        try:
            for each in range(port, port + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port
    raise AssertionError("no free ports")


def get(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """Status and body of one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def samples(port: int) -> Samples:
    """Values by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(port)[1])
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum of all samples that have at least these labels; -1 if there is none."""
    wanted = set(labels.items())
    values = [each for (its_name, its), each in found.items() if its_name == name and wanted <= set(its)]
    return sum(values) if values else -1.0
