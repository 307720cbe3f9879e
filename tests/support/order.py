"""In which order workers take the test files: the longest first, so that none begins a long one when the other ends.

An estimate, and no more than that: a number that is wrong costs seconds, a file that is missing counts as short.
"""

from __future__ import annotations

import pytest

SECONDS = {
    "tests/integration/test_import_command.py": 122,
    "tests/integration/test_keys_command.py": 97,
    "tests/integration/test_audit_command.py": 77,
    "tests/faults/test_kill_sweep.py": 47,
    "tests/integration/test_retention.py": 43,
    "tests/integration/test_runbook.py": 39,
    "tests/faults/test_live_rotation.py": 31,
    "tests/examples/test_browser.py": 31,
    "tests/faults/test_log_crashes.py": 30,
    "tests/integration/test_status_command.py": 29,
    "tests/integration/rpc/test_outages.py": 28,
    "tests/integration/test_start.py": 25,
    "tests/testing/test_server.py": 25,
    "tests/testing/test_plugin.py": 25,
    "tests/testing/test_workers.py": 25,
    "tests/examples/test_trouble.py": 25,
    "tests/integration/test_commands.py": 23,
    "tests/integration/test_metrics.py": 23,
    "tests/integration/test_consent_command.py": 22,
    "tests/examples/test_start.py": 21,
    "tests/integration/test_workers.py": 21,
    "tests/integration/client/test_faults.py": 18,
    "tests/integration/test_evidence_command.py": 15,
    "tests/integration/rpc/test_races.py": 13,
    "tests/deploy/test_systemd.py": 13,
    "tests/integration/audit/test_log.py": 12,
    "tests/integration/rpc/test_batch_tokenize.py": 10,
    "tests/integration/keyring/test_jwt_login.py": 10,
}
"""What a file takes, where it is ten seconds or more; `pytest --durations=0` tells."""


def longest_first(items: list[pytest.Item]) -> None:
    """Sort by files; within a file, and among those that are short, everything stays as it is."""
    items.sort(key=lambda item: -SECONDS.get(item.nodeid.partition("::")[0], 0))
