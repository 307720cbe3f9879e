"""Every `cardvault keys …` command as an operator types it, with the logins of production, beside a running server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import eventually
from tests.support.raw import execute, rows, scalar
from tests.support.seal import seal
from tests.support.terminal import DUE, FAILED, INTERRUPTED, OK, REFUSED, USAGE, Terminal, Typed
from vault.keyring.setup import LoginName


def test_a_planned_rotation_typed_from_status_to_trim(terminal: Terminal, tmp_path: Path) -> None:
    operator_only = (LoginName.OPERATOR,)

    well = terminal.type("status")
    assert well.code == OK, well.out + well.err
    assert "canary wrap and unwrap: ok" in well.out
    facts = terminal.type("status", "--json").facts
    assert (facts["level"], facts["canary"], len(facts["keys"])) == ("ok", "ok", 4)

    planned = terminal.type("rotate", "--reason", "planned", "--dry-run")
    assert (planned.code, planned.out.strip()) == (OK, "would make version 2 of cardvault-cards")
    done = terminal.type("rotate", "--reason", "planned", "--json")
    assert (done.code, done.facts["before"], done.facts["after"]) == (OK, 1, 2)
    again = terminal.type("rotate", "--reason", "planned")
    assert again.code == OK
    assert "nothing to do" in again.out

    refused = terminal.type("retire", "--reason", "planned", "--settle", "0")
    assert refused.code == REFUSED
    assert "5 rows still need a version" in refused.err
    waiting = terminal.type("status", "--json", logins=operator_only)
    assert waiting.facts["canary"] == "not checked"
    assert "5 cards wait" in str(waiting.facts["keys"][0]["notes"])

    would = terminal.type("rewrap", "--reason", "planned", "--dry-run", "--json", logins=operator_only)
    assert (would.code, would.facts) == (OK, {"would_rewrap": 5, "version": 2})
    assert terminal.wraps() == {1: 5}
    unproven = terminal.type("rewrap", "--reason", "planned", logins=operator_only)
    assert unproven.code == OK
    assert "0 proven" in unproven.out
    assert "not opened" in unproven.err
    assert terminal.wraps() == {2: 5}
    again = terminal.type("rewrap", "--reason", "planned", "--json")
    assert (again.code, again.facts["total"], again.facts["failures"]) == (OK, 0, [])
    terminal.redeem_all()

    assert terminal.type("retire", "--reason", "planned", "--settle", "0").code == OK
    unconfirmed = terminal.type("trim", "--reason", "planned", "--yes")
    assert unconfirmed.code == REFUSED
    assert "snapshot" in unconfirmed.err
    assert terminal.type("trim", "--reason", "planned", "--snapshot-confirmed", "--dry-run").code == OK
    assert scalar(terminal.url, "SELECT count(*) FROM card_secrets WHERE previous_wrapped_key IS NOT NULL") == 5
    trimmed = terminal.type("trim", "--reason", "planned", "--snapshot-confirmed", "--yes", "--json")
    assert (trimmed.code, trimmed.facts["trimmed"]) == (OK, True)
    assert scalar(terminal.url, "SELECT count(*) FROM card_secrets WHERE previous_wrapped_key IS NOT NULL") == 0

    certificate = tmp_path / "certificate.json"
    assert terminal.type("certificate", "--out", str(certificate)).code == OK
    shown = terminal.type_bare("check-certificate", str(certificate))
    assert (shown.code, json.loads(shown.out)["cards"]) == (OK, 5)
    certificate.write_text(certificate.read_text().replace('\\"cards\\": 5', '\\"cards\\": 6'))
    assert terminal.type_bare("check-certificate", str(certificate)).code == FAILED
    terminal.redeem_all()
    actors = "SELECT DISTINCT substr(actor, 1, 9) FROM audit_events WHERE event LIKE 'key.%' OR event LIKE 'cards.%'"
    assert rows(terminal.url, actors) == [("operator:",)]


def test_rewrap_with_the_release_login_proves_rekey_renews_verify_finds_damage(terminal: Terminal) -> None:
    assert terminal.type("rotate", "--reason", "leak").code == OK
    proven = terminal.type("rewrap", "--reason", "leak", "--verify", "all", "--json")
    assert (proven.code, proven.facts["rewrapped"], proven.facts["proven"]) == (OK, 5, 5)
    would = terminal.type("rekey", "--reason", "leak", "--dry-run", "--json")
    assert (would.code, would.facts) == (OK, {"would_rekey": 5})
    renewed = terminal.type("rekey", "--reason", "leak")
    assert renewed.code == OK
    assert "5 cards have new data keys under version 2" in renewed.out
    again = terminal.type("rekey", "--reason", "leak")
    assert "nothing was due" in again.out
    well = terminal.type("verify", "--json")
    assert (well.code, well.facts["opened"], well.facts["fingerprints_checked"]) == (OK, 5, 5)
    terminal.redeem_all()

    token = next(iter(terminal.cards))
    execute(terminal.url, f"UPDATE card_secrets SET record_version = 9 WHERE token = '{token}'")
    damaged = terminal.type("verify")
    assert damaged.code == FAILED
    assert "4 of 5 cards open" in damaged.out
    assert f"{token}: seal_broken" in damaged.err


def test_maintain_and_recover_may_be_typed_twice(terminal: Terminal) -> None:
    first, second = terminal.type("maintain"), terminal.type("maintain", "--json")
    assert (first.code, second.code) == (OK, OK)
    assert "version 1, not due; nothing to destroy" in first.out
    assert second.facts == {"version": 1, "rotated": False, "trimmed_below": 0}

    idle = terminal.type("recover", "--reason", "restored", "--json")
    assert (idle.code, idle.facts) == (OK, {"beyond": 0, "latest": 1})
    # As after a rewrap, and a Vault restored from before the rotation.
    execute(
        terminal.url,
        "UPDATE card_secrets SET previous_wrapped_key = wrapped_key, previous_kek_version = 1",
        "UPDATE card_secrets SET wrapped_key = replace(wrapped_key, 'vault:v1:', 'vault:v2:'), kek_version = 2",
    )
    lost = terminal.type("status", "--json")
    assert (lost.code, lost.facts["level"]) == (FAILED, "failed")
    assert terminal.type("recover", "--reason", "restored", "--dry-run").code == OK
    back = terminal.type("recover", "--reason", "restored", "--json")
    assert (back.code, back.facts) == (OK, {"restored": 5, "without_former_wrap": 0, "latest": 1})
    assert terminal.type("recover", "--reason", "restored").code == OK
    terminal.redeem_all()


def test_what_is_missing_or_mistyped_is_said(terminal: Terminal, tmp_path: Path) -> None:
    serving = (LoginName.INTAKE, LoginName.RELEASE)

    no_operator = terminal.type("rotate", "--reason", "x", logins=serving)
    no_release = terminal.type("verify", logins=(LoginName.OPERATOR,))
    no_checkpointer = terminal.type("certificate", "--out", str(tmp_path / "c"), logins=(LoginName.OPERATOR,))
    no_intake = terminal.type("rekey", "--reason", "x", logins=(LoginName.OPERATOR,))
    unknown = terminal.type("rotate", "--reason", "x", "--key", "card")
    no_reason = terminal.type("rotate")
    idle = terminal.type("trim", "--reason", "x")
    unreadable = terminal.type_bare("check-certificate", str(tmp_path / "absent"))

    assert "vault.operator" in no_operator.err
    assert no_operator.code == USAGE
    assert (no_release.code, no_checkpointer.code, no_intake.code) == (USAGE, USAGE, USAGE)
    assert "release" in no_release.err
    assert "checkpointer" in no_checkpointer.err
    assert not (tmp_path / "c").exists()
    assert (unknown.code, no_reason.code, unreadable.code) == (USAGE, USAGE, USAGE)
    assert "cards, once, fingerprint, audit" in " ".join(unknown.err.replace("│", " ").split())
    # Nothing is retired, so there is no question that somebody would have to answer.
    assert (idle.code, idle.out) == (OK, "cardvault-cards: nothing to trim\n")
    assert rows(terminal.url, "SELECT event FROM audit_events WHERE role = 'operator'") == []


def test_a_run_whose_vault_is_gone_for_a_moment_waits_for_it_and_json_stays_json(terminal: Terminal) -> None:
    terminal.type("rotate", "--reason", "planned")
    command = [sys.executable, "-m", "vault", "keys", "rewrap", "-c", str(terminal.config()), "--reason", "x", "--json"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seal(terminal.openbao)
    assert running.stderr is not None
    first = running.stderr.readline()
    terminal.openbao.unseal()
    out, err = running.communicate(timeout=60)
    terminal.printed += [out, first, err]

    assert "paused: vault_" in first
    assert running.returncode == OK, err
    assert terminal.wraps() == {2: 5}
    begins = re.search(r"^\{$", out, re.MULTILINE)
    assert begins is not None
    facts = out[begins.start() :]
    assert json.loads(facts)["rewrapped"] == 5
    if facts != out:
        pytest.xfail("notices of the retry library stand on stdout before the JSON")


def test_retired_versions_are_usable_again_after_unretire(terminal: Terminal) -> None:
    terminal.move_to_version_2()
    terminal.type("retire", "--reason", "planned", "--settle", "0")
    assert terminal.oldest_usable() == 2

    would = terminal.type("unretire", "--reason", "too early", "--dry-run", "--json")
    still = terminal.oldest_usable()
    done = terminal.type("unretire", "--reason", "too early")

    assert (would.code, would.facts, still) == (OK, {"key": "cardvault-cards", "version": 1}, 2)
    assert (done.code, done.out) == (OK, "cardvault-cards: versions from 1 on are usable\n")
    assert terminal.oldest_usable() == 1
    assert rows(terminal.url, "SELECT value FROM settings WHERE name = 'oldest.cardvault-cards'") == []


def test_recover_leads_forward_again_when_the_newer_vault_is_back(terminal: Terminal) -> None:
    terminal.move_to_version_2()
    terminal.type("retire", "--reason", "planned", "--settle", "0")
    # As an earlier `recover` left them, while Vault had been restored from before the rotation.
    execute(
        terminal.url,
        "UPDATE card_secrets SET wrapped_key = previous_wrapped_key, kek_version = previous_kek_version, "
        "previous_wrapped_key = wrapped_key, previous_kek_version = kek_version",
    )
    lost = terminal.type("status")

    done = terminal.type("recover", "--reason", "newer snapshot found", "--json")

    assert lost.code == FAILED
    assert "5 rows need a version that is retired" in lost.out
    assert (done.code, done.facts) == (OK, {"restored": 5, "without_former_wrap": 0, "latest": 2})
    assert terminal.wraps() == {2: 5}
    terminal.redeem_all()


def test_trim_destroys_nothing_where_nobody_can_be_asked_and_nobody_said_yes(terminal: Terminal) -> None:
    terminal.move_to_version_2()
    terminal.type("retire", "--reason", "planned", "--settle", "0")

    refused = terminal.type("trim", "--reason", "planned", "--snapshot-confirmed")

    assert refused.code == REFUSED
    assert "give --yes" in refused.err
    assert "destroys every version of cardvault-cards below 2" in refused.err
    assert terminal.key()["min_available"] == 0
    assert scalar(terminal.url, "SELECT count(*) FROM card_secrets WHERE previous_wrapped_key IS NOT NULL") == 5


def test_a_dry_run_says_what_the_command_would_do_and_changes_nothing(terminal: Terminal) -> None:
    terminal.type("rotate", "--reason", "planned")
    before = terminal.everything()

    recent = terminal.type("rotate", "--reason", "planned", "--dry-run")
    recent_json = terminal.type("rotate", "--reason", "planned", "--dry-run", "--json")
    again = terminal.type("rotate", "--reason", "planned", "--dry-run", "--again")
    maintain = terminal.type("maintain", "--dry-run")
    maintain_json = terminal.type("maintain", "--dry-run", "--json")

    assert terminal.everything() == before
    assert "was made 0 minutes ago; would do nothing (--again for another one)" in recent.out
    assert recent_json.facts == {"key": "cardvault-cards", "would_make": None, "answer": "recent"}
    assert again.out == "would make version 3 of cardvault-cards\n"
    assert re.fullmatch(
        r"cardvault-once: version 1, would do nothing; next rotation from \d{4}-\d\d-\d\d \d\d:\d\d UTC on\n",
        maintain.out,
    )
    assert {name: maintain_json.facts[name] for name in ("version", "would_make", "would_trim_below", "next_trim")} == {
        "version": 1,
        "would_make": 0,
        "would_trim_below": 0,
        "next_trim": None,
    }
    codes = [done.code for done in (recent, recent_json, again, maintain, maintain_json)]
    assert codes == [OK] * 5


def test_people_are_told_the_next_command_and_machines_get_dates_of_iso_8601(terminal: Terminal) -> None:
    operator_only, release_only = (LoginName.OPERATOR,), (LoginName.RELEASE,)
    reason = ("--reason", "planned")

    before = terminal.type("verify")
    rotated = terminal.type("rotate", *reason)
    too_early = terminal.type("verify", logins=release_only)
    rewrapped = terminal.type("rewrap", *reason, logins=operator_only)
    verified = terminal.type("verify", logins=release_only)
    machine = terminal.type("verify", "--json")
    part = terminal.type("verify", "--tenant", "shop")
    retired = terminal.type("retire", *reason, "--settle", "0")
    after = terminal.type("verify")
    trimmed = terminal.type("trim", *reason, "--snapshot-confirmed", "--yes")

    def following(typed: Typed) -> list[str]:
        return [line.removeprefix("next: ") for line in typed.out.splitlines() if line.startswith("next: ")]

    assert following(rotated) == ["take a Vault snapshot, then `cardvault keys rewrap`"]
    assert following(rewrapped) == ["`cardvault keys verify`"]
    assert following(verified) == ["`cardvault keys retire`"]
    assert following(retired) == [
        "within 35 days, once no database backup older than the rewrap is needed, `cardvault keys trim`"
    ]
    assert following(trimmed) == ["`cardvault keys certificate`"]
    assert [following(other) for other in (before, too_early, part, after)] == [[]] * 4
    assert "next" not in machine.out
    made = terminal.key()["made_at"]
    recent = terminal.type("rotate", *reason, "--json")
    for moment in (made, recent.facts["created"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", moment)


def test_retire_does_not_wait_again_once_it_came_to_its_end(terminal: Terminal) -> None:
    terminal.move_to_version_2()

    first = terminal.type("retire", "--reason", "planned", "--settle", "0.1")
    events = scalar(terminal.url, "SELECT count(*) FROM audit_events")
    second = terminal.type("retire", "--reason", "planned", "--settle", "3600")

    assert (first.code, second.code) == (OK, OK)
    assert "waiting 0.1 s" in first.out
    assert "waiting" not in second.out
    assert "versions below 2 are retired" in second.out
    assert scalar(terminal.url, "SELECT count(*) FROM audit_events") == events


def test_a_certificate_of_an_unfinished_rewrap_says_so(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    terminal.type("rotate", "--reason", "planned")

    unfinished = terminal.type("certificate", "--out", str(file))
    checked = terminal.type_bare("check-certificate", str(file))
    terminal.type("rewrap", "--reason", "planned")
    finished = terminal.type("certificate", "--out", str(file))
    again = terminal.type_bare("check-certificate", str(file))

    warning = "warning: the rewrap is unfinished: 5 cards are under versions older than version 2"
    assert (unfinished.code, finished.code) == (DUE, OK)
    assert unfinished.err == f"{warning}; run `cardvault keys rewrap`\n"
    assert finished.err == ""
    assert (checked.code, again.code) == (OK, OK)
    assert warning in checked.err
    assert "warning" not in again.err
    statements = [json.loads(done.out) for done in (checked, again)]
    fields = [(facts["rewrap_finished"], facts["cards_under_older_versions"]) for facts in statements]
    assert fields == [(False, 5), (True, 0)]


@pytest.mark.parametrize("command", ["rewrap", "rekey"])
def test_ctrl_c_ends_a_walk_with_one_line_and_the_same_command_goes_on(terminal: Terminal, command: str) -> None:
    terminal.type("rotate", "--reason", "planned")
    # A card a second: there is time to stop it.
    running = terminal.start(command, "--reason", "planned", "--max-rate", "1")
    eventually(lambda: 2 in terminal.wraps())
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    terminal.printed += [out, err]

    assert running.returncode == INTERRUPTED, err
    assert err == "stopped: nothing is lost, and the same command goes on from here\n"
    assert command == "rekey" or terminal.wraps()[1] > 0
    again = terminal.type(command, "--reason", "planned", "--json")
    assert (again.code, again.facts["failures"]) == (OK, [])
    assert terminal.wraps() == {2: 5}
    terminal.redeem_all()


@pytest.mark.parametrize("command", ["rewrap", "verify"])
def test_ctrl_c_also_ends_a_walk_that_waits_for_vault(terminal: Terminal, command: str) -> None:
    terminal.type("rotate", "--reason", "planned")
    arguments = (command, "--reason", "planned", "--json")
    if command == "rewrap":
        # In the middle it is a thread that waits, while another one hears Ctrl-C.
        running = terminal.start(*arguments, "--max-rate", "1")
        eventually(lambda: 2 in terminal.wraps())
        os.kill(terminal.openbao.pid, signal.SIGSTOP)
    else:
        os.kill(terminal.openbao.pid, signal.SIGSTOP)
        running = terminal.start(*arguments)
    try:
        assert running.stderr is not None
        first = running.stderr.readline()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    finally:
        os.kill(terminal.openbao.pid, signal.SIGCONT)
        running.kill()
    terminal.printed += [out, first, err]

    assert "paused: vault_timeout" in first, (running.returncode, err)
    assert running.returncode == INTERRUPTED, err
    facts = json.loads(out)
    assert facts["error"] == "interrupted"
    assert facts["message"].startswith("stopped: nothing is lost, and the same command goes ")
    assert terminal.type(*arguments).code == OK
