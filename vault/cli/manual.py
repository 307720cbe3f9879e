"""The manual's page of each command: what it changes, what its exit codes mean, how it is typed.

A table beside the commands, so that a test can hold it against them: every command has a page, every example is one
that its command would take. Nothing is imported here, so that help stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NOTHING = "nothing"
_WIDTH = 74
_USAGE = {2: "usage, or the file has problems"}
_DONE: Mapping[int, str] = {0: "done", 1: "failed"} | _USAGE
_OPERATOR: Mapping[int, str] = {
    0: "done",
    1: "failed, or not for every card; the same command goes on",
    2: "usage, or the file has problems",
    5: "a condition does not hold; nothing was done",
    130: "Ctrl-C; nothing is lost",
}
_CHECK: Mapping[int, str] = {0: "it is good", 1: "it is not"} | _USAGE


@dataclass(frozen=True, slots=True)
class Page:
    """One command."""

    short: str
    """For the list of commands."""
    changes: str
    exits: Mapping[int, str]
    examples: tuple[str, ...]

    def epilog(self) -> str:
        r"""As it stands below the options; `\b` keeps lines as they are."""
        exits = "\n".join(f"  {code:<3}  {meaning}" for code, meaning in self.exits.items())
        examples = "\n".join(f"  {example}" for example in self.examples)
        return f"Changes: {self.changes}.\n\n\b\nExit codes:\n{exits}\n\n\b\nExamples:\n{examples}"


def _page(short: str, changes: str, exits: Mapping[int, str], *examples: str) -> Page:
    return Page(short, changes, exits, tuple(map(_fitting, examples)))


def _fitting(example: str) -> str:
    """In lines of a terminal, broken before an option as a shell allows it."""
    lines = ["cardvault"]
    for word in example.replace(" -", "\n-").split("\n"):
        if len(lines[-1]) + len(word) < _WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n  ".join(lines)


_IN_VAULT = "versions of the key in Vault, settings of the database; recorded in the audit log"
_CARDS = "wrapped keys of stored cards; recorded in the audit log"
_READS = "nothing but an audit event that says who read, and why"

PAGES: Mapping[str, Page] = {
    "serve": _page(
        "Serve until SIGTERM, then drain.",
        "the database, as callers ask; keeps the log, erases what is due",
        {0: "ended by SIGTERM or SIGINT", 1: "workers kept dying", 2: "refused to start; every reason is listed"},
        "serve --config server.toml",
        "serve --config server.toml --check-config",
        "serve --config server.toml --workers 4",
    ),
    "dev": _page(
        "A whole stack for development, kept in ./.cardvault.",
        "its own folder and nothing else",
        {0: "ended by Ctrl-C", 1: "failed", 2: "usage"},
        "dev",
        "dev --state /tmp/cardvault",
    ),
    "demo": _page(
        "Walk the main job on a scratch stack, step by step.",
        "a scratch folder, which is removed",
        {0: "every step did what it should", 1: "one did not"},
        "demo",
    ),
    "doctor": _page(
        "Look at a deployment and say what is not as it should be.",
        NOTHING,
        {0: "well", 1: "warnings", 2: "unfit to serve"},
        "doctor --config server.toml",
        "doctor --config server.toml --json",
    ),
    "status": _page(
        "The whole installation on one screen, and what to do.",
        NOTHING,
        {0: "well", 1: "something does not work", 2: "usage, or the file has problems", 3: "something is due"},
        "status --config server.toml",
        "status --config operator.toml --json",
    ),
    "health": _page(
        "Ask a server how it is, for probes.",
        NOTHING,
        {0: "SERVING", 1: "not serving, or no answer", 2: "usage"},
        "health --address localhost:7443 --certificate probe.pem --private-key probe.key --ca ca.pem",
        "health --address localhost:7443 --certificate probe.pem --private-key probe.key --ca ca.pem --service live",
    ),
    "data-map": _page(
        "Every table and column with its class and longest life.",
        NOTHING,
        {0: "printed", 2: "usage"},
        "data-map",
        "data-map --json",
    ),
    "import": _page(
        "Move cards in from another vault.",
        "stores cards through a server; the file stays as it is",
        {0: "all stored", 1: "some refused, or stopped", 2: "usage"},
        "import cards.csv --name move-1 --dry-run",
        (
            "import cards.csv --name move-1 --address vault.internal:7443"
            " --certificate checkout.pem --private-key checkout.key --ca ca.pem"
        ),
    ),
    "evidence": _page(
        "One signed report for the periodic audit.",
        _READS,
        {0: "every line holds", 1: "something does not hold", 2: "usage, or the file has problems"},
        "evidence --config server.toml --out evidence.json",
    ),
    "check-evidence": _page(
        "Check such a report offline.",
        NOTHING,
        {0: "it is signed", 1: "it was altered", 2: "it is none"},
        "check-evidence evidence.json --public-key KEY",
    ),
    "version": _page("Print the version.", NOTHING, {0: "printed"}, "version"),
    "db upgrade": _page(
        "Bring the schema to this release's.",
        "the database's schema; cards stay readable",
        _DONE,
        "db upgrade --config owner.toml --dry-run",
        "db upgrade --config owner.toml",
    ),
    "db status": _page(
        "Say which schema the database has.",
        NOTHING,
        {0: "this release's", 1: "another, or it does not answer", 2: "usage, or the file has problems"},
        "db status --config server.toml",
    ),
    "tenants erase": _page(
        "Erase every card of a shop that leaves.",
        "erases the shop's cards, open grants and one-time keys for good; recorded in the audit log",
        _OPERATOR,
        "tenants erase shop --config operator.toml --reason 'contract ended' --dry-run",
        "tenants erase shop --config operator.toml --reason 'contract ended' --yes",
    ),
    "consent show": _page(
        "Every consent of a customer, for a dispute.",
        _READS,
        {0: "shown", 1: "the ledger has nothing of this customer"} | _USAGE,
        "consent show ada --tenant shop --config operator.toml --reason 'dispute 4711'",
    ),
    "vault setup": _page(
        "Make keys, policies and logins in Vault.",
        "Vault: transit keys, policies, logins; writes the logins' files to --out",
        {0: "done, or nothing to do", 2: "refused"},
        (
            "vault setup --address https://vault.internal:8200 --ca-file ca.pem"
            " --admin-token-file token --out logins --dry-run"
        ),
    ),
    "vault renew-login": _page(
        "Make a login anew and void what a thief may hold.",
        "Vault: role id, secret ids and tokens of the login; its files in --out",
        {0: "done", 2: "refused"},
        (
            "vault renew-login release --address https://vault.internal:8200"
            " --ca-file ca.pem --admin-token-file token --out logins"
        ),
    ),
    "keys status": _page(
        "Every key: versions, age, what needs which.",
        NOTHING,
        {
            0: "well",
            1: "something does not work",
            2: "usage, or the file has problems",
            3: "due within 14 days, or something waits",
            4: "overdue",
        },
        "keys status --config operator.toml",
    ),
    "keys rotate": _page(
        "Make exactly one new version of a key.",
        _IN_VAULT,
        _OPERATOR,
        "keys rotate --config operator.toml --reason 'planned rotation'",
        "keys rotate -c operator.toml --key fingerprint --reason exposure --again",
    ),
    "keys rewrap": _page(
        "Move every card to the newest version of its key.",
        _CARDS,
        _OPERATOR,
        "keys rewrap --config operator.toml --reason 'planned rotation'",
        "keys rewrap --config operator.toml --reason 'planned rotation' --max-rate 500",
    ),
    "keys retire": _page(
        "Stop older versions of a key from being used.",
        _IN_VAULT + "; reversible until `trim`",
        _OPERATOR,
        "keys retire --config operator.toml --reason 'planned rotation'",
    ),
    "keys unretire": _page(
        "Make retired versions usable again.",
        _IN_VAULT,
        _OPERATOR,
        "keys unretire --config operator.toml --reason 'retired too early'",
    ),
    "keys trim": _page(
        "Destroy retired versions for good.",
        _IN_VAULT + "; cannot be undone",
        _OPERATOR,
        "keys trim --config operator.toml --reason 'planned rotation' --dry-run",
        "keys trim --config operator.toml --reason 'planned rotation' --snapshot-confirmed",
    ),
    "keys rekey": _page(
        "Give cards new data keys under the same tokens.",
        "data keys, ciphertext and fingerprints of stored cards; recorded in the audit log",
        _OPERATOR,
        "keys rekey --config operator.toml --reason 'suspected exposure'",
        "keys rekey --config operator.toml --reason 'suspected exposure' --tenant shop",
    ),
    "keys verify": _page(
        "Open every card, printing none.",
        "nothing but audit events",
        {0: "all open", 1: "one does not"} | _USAGE,
        "keys verify --config operator.toml --reason quarterly",
    ),
    "keys maintain": _page(
        "Daily care of the one-time key, for a timer.",
        _IN_VAULT,
        _OPERATOR,
        "keys maintain --config operator.toml",
    ),
    "keys recover": _page(
        "After another Vault snapshot was restored.",
        _CARDS,
        _OPERATOR,
        "keys recover --config operator.toml --reason 'Vault restored' --dry-run",
        "keys recover --config operator.toml --reason 'Vault restored'",
    ),
    "keys certificate": _page(
        "A signed report on the newest rotation.",
        "writes a file",
        {0: "written", 1: "failed", 2: "usage, or there is nothing to certify", 3: "written; the rewrap is unfinished"},
        "keys certificate --config operator.toml --out rotation.json",
    ),
    "keys check-certificate": _page(
        "Check such a report offline.",
        NOTHING,
        _CHECK,
        "keys check-certificate rotation.json --public-key KEY",
    ),
    "audit verify": _page(
        "Find any edit, removal or truncation of the log.",
        _READS,
        {0: "the log is intact", 1: "it is not; the first place is named"} | _USAGE,
        "audit verify --config operator.toml --checkpoint kept-checkpoint",
        "audit verify --export /mnt/audit/cardvault --key auditor.keys",
    ),
    "audit prove": _page(
        "Prove to anybody that an event is in the log.",
        _READS,
        _DONE,
        "audit prove evt_abc --config operator.toml --out proof.json",
    ),
    "audit consistency": _page(
        "Prove that a newer checkpoint only adds to an older.",
        _READS,
        _DONE,
        "audit consistency old-checkpoint new-checkpoint --config operator.toml",
    ),
    "audit check-proof": _page(
        "Check a proof offline.",
        NOTHING,
        {0: "it proves", 1: "it does not"} | _USAGE,
        "audit check-proof proof.json --key auditor.keys",
    ),
    "audit tail": _page(
        "Show the newest events.",
        _READS,
        {0: "shown", 1: "failed", 130: "Ctrl-C"} | _USAGE,
        "audit tail --config operator.toml --count 50",
        "audit tail --config operator.toml --follow --json",
    ),
    "audit report": _page(
        "What stands out of the last hours or days.",
        _READS,
        {0: "nothing stands out", 1: "something does: look"} | _USAGE,
        "audit report --config operator.toml --since 24h",
    ),
    "audit export": _page(
        "Write the whole log to a folder.",
        "the folder; and an audit event that says who read",
        _DONE,
        "audit export --config operator.toml --out /mnt/auditor/log",
    ),
    "audit checkpoint": _page(
        "Sign what is in the log now.",
        "adds a checkpoint to the database",
        {0: "signed", 1: "failed", 5: "the log is empty"} | _USAGE,
        "audit checkpoint --config operator.toml --out kept-checkpoint",
    ),
    "audit keys": _page(
        "Print the public keys that sign checkpoints.",
        NOTHING,
        _DONE,
        "audit keys --config operator.toml",
    ),
    "audit status": _page(
        "How far the log is: waiting, signed, copied.",
        NOTHING,
        _DONE,
        "audit status --config operator.toml --json",
    ),
    "restore reconcile": _page(
        "Put back what a restored database forgot.",
        "log, erasures, grants and one-time keys of the database; recorded in the audit log",
        _OPERATOR,
        "restore reconcile --config operator.toml --reason 'database restored' --dry-run",
        "restore reconcile --config operator.toml --reason 'database restored' --yes",
    ),
    "retention plan": _page(
        "Count what is due now, and within 30 days.",
        NOTHING,
        _DONE,
        "retention plan --config operator.toml",
    ),
    "retention run": _page(
        "Remove what is due without waiting for a server.",
        "erases cards, grants, keys and answers that may not be kept; recorded in the audit log",
        _OPERATOR,
        "retention run --config operator.toml --dry-run",
        "retention run --config operator.toml --max-rate 100",
    ),
    "retention verify": _page(
        "Prove that nothing is overdue.",
        "nothing but an audit event with the result",
        {0: "nothing is overdue", 1: "something is"} | _USAGE,
        "retention verify --config operator.toml",
    ),
    "retention compact": _page(
        "Write SQLite's file anew after erasures.",
        "the database's file, not what is in it; recorded in the audit log",
        {
            0: "written anew",
            1: "failed, or a long reader still holds the old bytes: run it again",
            2: "usage, or the file has problems",
            5: "PostgreSQL, somebody in the way or no room; nothing was done",
            130: "Ctrl-C; the file is whole",
        },
        "retention compact --config operator.toml --reason 'after erasures' --dry-run",
        "retention compact --config operator.toml --reason 'after erasures'",
    ),
}
"""By the words that are typed."""
