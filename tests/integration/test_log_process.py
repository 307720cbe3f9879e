"""The process beside a server that keeps the log: it is replaced, it ends with the server, and it signs alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import fresh_typed_card
from tests.support.installation import Installation, ServerProcess, eventually, installed
from tests.support.processes import children_of, is_alive, remains_of
from tests.support.requests import TIMEOUT, new_customer, store_request
from vault.audit.copy import Directory
from vault.embedded.openbao import OpenBao
from vault.keyring.setup import LoginName
from vault.store import SqlStore


@pytest.fixture
def site(tmp_path: Path, openbao: OpenBao, sqlite_url: str) -> Iterator[Installation]:
    """An installation on SQLite."""
    with installed(tmp_path / "site", openbao, sqlite_url) as installation:
        yield installation


def signing(site: Installation) -> dict[str, Any]:
    """Settings of a server that has everything to do with the log."""
    files = site.openbao.login_files(LoginName.CHECKPOINTER)
    return {
        "audit__directory": str(site.directory / "copy"),
        "audit__checkpoint_seconds": 1,
        "vault__checkpointer__role_id_file": str(files.role_id_file),
        "vault__checkpointer__secret_id_file": str(files.secret_id_file),
    }


def family_of(server: ServerProcess) -> tuple[int, int]:
    """The nurse and the process that keeps the log."""
    found: list[int] = []

    def there_are_two() -> bool:
        nurses = children_of(server.process.pid)
        found[:] = [*nurses, *(each for nurse in nurses for each in children_of(nurse))]
        return len(found) == 2

    eventually(there_are_two)
    return found[0], found[1]


def store_a_card(site: Installation) -> None:
    """An effect that is logged."""
    request = store_request(fresh_typed_card(), new_customer())
    site.client("checkout").checkout.Tokenize(request, timeout=TIMEOUT)


def everything_is_signed_and_copied(site: Installation) -> bool:
    """Whether nothing of the log is left to be done."""
    with closing(SqlStore(site.database_url)) as store, store.reading() as tx:
        state = tx.log_state()
    signed = state.newest_checkpoint.size if state.newest_checkpoint is not None else 0
    names = {path.name for path in (site.directory / "copy" / "checkpoints").glob("0*")}
    return state.queued == 0 and state.size == signed and f"{signed:012d}" in names


def test_it_is_replaced_when_it_is_killed_and_calls_go_on(site: Installation) -> None:
    server = site.serve(**signing(site))
    for _ in range(3):
        _, keeper = family_of(server)
        os.kill(keeper, signal.SIGKILL)
        store_a_card(site)
        eventually(lambda gone=keeper: family_of(server)[1] != gone)

    eventually(lambda: everything_is_signed_and_copied(site))

    assert server.log.read_text(encoding="utf-8").count('"companion.died"') == 3
    assert server.stop() == 0


def test_only_it_gives_events_their_places(site: Installation) -> None:
    server = site.serve(**signing(site))
    nurse, keeper = family_of(server)
    os.kill(nurse, signal.SIGSTOP)
    os.kill(keeper, signal.SIGSTOP)

    store_a_card(site)
    time.sleep(2.5)  # two rounds
    waits = not everything_is_signed_and_copied(site)
    os.kill(keeper, signal.SIGCONT)
    os.kill(nurse, signal.SIGCONT)

    assert waits
    eventually(lambda: everything_is_signed_and_copied(site))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_server_and_does_not_end_before_it(site: Installation, number: signal.Signals) -> None:
    server = site.serve(**signing(site))
    family = family_of(server)
    for pid in family:
        os.kill(pid, number)  # as a terminal does to the whole group
    time.sleep(0.3)
    assert all(is_alive(pid) for pid in family)

    os.kill(server.process.pid, number)

    assert server.wait() == 0
    assert not any(is_alive(pid) for pid in family)


def test_it_dies_with_a_server_that_is_killed(site: Installation) -> None:
    server = site.serve(**signing(site))
    family = family_of(server)
    os.kill(family[1], signal.SIGSTOP)  # also where it is at something that takes long

    server.kill()

    eventually(lambda: not any(is_alive(pid) for pid in family))


def test_a_server_whose_nurse_is_gone_drains_and_asks_to_be_started_again(site: Installation) -> None:
    server = site.serve(**signing(site))
    nurse, keeper = family_of(server)

    os.kill(nurse, signal.SIGKILL)

    assert server.wait() == 1
    assert not is_alive(keeper)
    said = server.log.read_text(encoding="utf-8")
    assert '"audit.process_gone"' in said
    assert '"server.stopped"' in said


def test_a_server_that_has_nothing_to_do_with_the_log_has_no_such_process(site: Installation) -> None:
    server = site.serve(audit__sequence=False)

    assert children_of(server.process.pid) == []
    assert server.stop() == 0


def test_a_server_that_refuses_leaves_nothing_behind(site: Installation) -> None:
    site.serve(**signing(site))

    # SQLite serves one. What would be left holds this command's output open, so that it would not return.
    done = site.command("serve", "--config", str(site.config(**signing(site))))

    assert done.returncode == 2


def test_a_server_ends_for_good_when_its_database_is_set_back(site: Installation) -> None:
    server = site.serve(**signing(site))
    store_a_card(site)
    eventually(lambda: everything_is_signed_and_copied(site))

    # The copy knows of an event that the database does not: to it that is the same.
    copy = Directory(site.directory / "copy")
    lost = next(copy.leaves())
    copy.add_events(copy.size(), [lost])

    assert server.wait() == 2
    assert "the database was set back while this server ran" in server.log.read_text(encoding="utf-8")
    again = site.command("serve", "--config", str(site.config(**signing(site))))
    assert again.returncode == 2
    assert "cardvault restore reconcile" in again.stderr


def test_it_ends_its_round_and_gives_its_login_back(site: Installation) -> None:
    server = site.serve(**signing(site))
    store_a_card(site)
    eventually(lambda: everything_is_signed_and_copied(site))
    with closing(site.openbao.root()) as root:

        def logins() -> set[str]:
            accessors = root.client.list("auth/token/accessors")["data"]["keys"]
            return {each for each in accessors if "cardvault-checkpointer" in policies(each)}

        def policies(accessor: str) -> list[str]:
            found: list[str] = root.client.auth.token.lookup_accessor(accessor)["data"]["policies"]
            return found

        held = logins()
        _, keeper = family_of(server)
        os.kill(keeper, signal.SIGSTOP)  # as where its round takes long
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(1.5)
        os.kill(keeper, signal.SIGCONT)

        assert server.wait() == 0
        assert len(held - logins()) == 1


FAILING_FORK = """
import os, sys
real, calls = os.fork, []
def fork():
    calls.append(1)
    if len(calls) == 3:  # the nurse, the companion, and the one that replaces it
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real()
os.fork = fork
from vault.cli.main import app
app()
"""


def serve_oddly(site: Installation, *command: str, before: str = "pass", **config: Any) -> ServerProcess:
    """A server that is started in an odd way: `before` is run in its process by the interpreter that becomes it."""
    become = f"import ctypes, os, signal, sys; {before}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    log = site.directory / "odd.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", become, *(command or ("-m", "vault"))),
                *("serve", "--config", str(site.config(**config))),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    found = re.search(r"port (\d+)", process.stdout.readline().decode())
    assert found is not None, log.read_text(encoding="utf-8")
    server = ServerProcess(process, int(found.group(1)), log)
    site.servers.append(server)
    return server


IGNORE_CHILDREN = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
"""As `sh -c "trap '' CHLD; exec cardvault serve"`: an ignored signal stays ignored across exec."""
AS_PROCESS_1 = "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)"
"""PR_SET_CHILD_SUBREAPER."""


def test_a_server_whose_starter_ignored_its_children_is_as_any_other(site: Installation) -> None:
    server = serve_oddly(site, before=IGNORE_CHILDREN, **signing(site))
    _, keeper = family_of(server)

    os.kill(keeper, signal.SIGKILL)

    eventually(lambda: family_of(server)[1] != keeper)
    assert server.stop() == 0


def test_what_cannot_be_understood_ends_the_server(site: Installation) -> None:
    odd = "import vault.app_log as a; a.LogProcess.hear = lambda self: 1 / 0; from vault.cli.main import app; app()"
    server = serve_oddly(site, "-c", odd, **signing(site))

    assert server.wait() == 1
    assert '"audit.process_gone"' in server.log.read_text(encoding="utf-8")


def test_one_fork_that_fails_does_not_end_the_server(site: Installation) -> None:
    server = serve_oddly(site, "-c", FAILING_FORK, **signing(site))
    _, keeper = family_of(server)
    os.kill(keeper, signal.SIGKILL)

    store_a_card(site)

    eventually(lambda: everything_is_signed_and_copied(site))
    assert server.process.poll() is None


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path, openbao: OpenBao, postgresql_url: str) -> Iterator[Installation]:
    """An installation on PostgreSQL."""
    with installed(tmp_path / "big", openbao, postgresql_url) as installation:
        yield installation


def workers_of(server: ServerProcess) -> tuple[int, int]:
    """The first worker, which has the log's process, and the other."""
    found: list[int] = []

    def there_are_two() -> bool:
        found[:] = sorted(children_of(server.process.pid), key=lambda pid: not children_of(pid))
        return len(found) == 2 and bool(children_of(found[0]))

    eventually(there_are_two)
    return found[0], found[1]


def test_it_holds_no_port_of_its_worker(big: Installation) -> None:
    first, _ = workers_of(big.serve(server__workers=2, **signing(big)))
    (nurse,) = children_of(first)

    held = [str(path.readlink()) for path in Path(f"/proc/{nurse}/fd").iterdir()]

    assert [each for each in held if each.startswith("socket:")] == []


def test_process_1_of_a_container_keeps_no_remains(big: Installation) -> None:
    server = serve_oddly(big, before=AS_PROCESS_1, server__workers=2, **signing(big))
    for _ in range(2):
        first, _ = workers_of(server)
        os.kill(first, signal.SIGKILL)
        eventually(lambda gone=first: workers_of(server)[0] != gone)

    eventually(lambda: remains_of(server.process.pid) == [])


def test_all_workers_end_for_good_when_their_database_is_set_back(big: Installation) -> None:
    server = big.serve(server__workers=2, **signing(big))
    store_a_card(big)
    eventually(lambda: everything_is_signed_and_copied(big))

    copy = Directory(big.directory / "copy")
    copy.add_events(copy.size(), [next(copy.leaves())])

    assert server.wait() == 2


# --- the companion itself -------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from vault import companion
from vault.companion import Companion
from vault.telemetry import configure_logs

configure_logs()
lives = Path(sys.argv[1]) / "lives"
companion.FIRST_PAUSE = timedelta(seconds=0.02)
companion.SETTLED_AFTER = timedelta(seconds={settled})

def work(side):
    with lives.open("a") as file:
        file.write("x")
{work}

side = Companion.fork(work)
{server}
"""


def run(tmp_path: Path, *, work: str, server: str, settled: float = 10) -> tuple[subprocess.CompletedProcess[str], int]:
    """A server's part and its companion's; also how often the companion began."""
    program = PROGRAM.replace("{work}", textwrap.indent(textwrap.dedent(work), "    ")).replace("{server}", server)
    program = program.replace("{settled}", str(settled))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    lives = tmp_path / "lives"
    return done, len(lives.read_text(encoding="ascii")) if lives.exists() else 0


def test_a_companion_that_dies_at_once_is_replaced_ever_more_slowly(tmp_path: Path) -> None:
    done, lives = run(
        tmp_path,
        work="raise ValueError('secret text')",
        server="side.begin(); time.sleep(2); print(side.end(timedelta(seconds=5)))",
    )

    assert 4 <= lives <= 8  # 0.02 s, doubled each time
    assert done.stdout == "1\n"
    assert done.stderr.count('"companion.died"') in (lives, lives - 1)
    assert "secret text" not in done.stderr


def test_one_that_lived_for_a_while_is_replaced_without_delay(tmp_path: Path) -> None:
    _, lives = run(
        tmp_path,
        work="time.sleep(0.1); return 1",
        server=textwrap.dedent(
            """
            side.begin()
            until = time.monotonic() + 20  # ever more slowly, the twelfth life would begin after 40
            while time.monotonic() < until and not (lives.exists() and len(lives.read_text()) >= 12):
                time.sleep(0.05)
            side.end(timedelta(seconds=5))
            """
        ),
        settled=0.05,
    )

    assert lives >= 12


def test_a_companion_that_refuses_is_not_tried_again(tmp_path: Path) -> None:
    done, lives = run(
        tmp_path,
        work="side.tell('one'); side.tell('two'); return 2",
        server=textwrap.dedent(
            """
            side.begin()
            heard = []
            while (lines := side.hear()) is not None:
                heard += lines
            print(heard, side.end(timedelta(seconds=5)), side.end(timedelta(0)))
            """
        ),
    )

    assert (done.stdout, lives) == ("['one', 'two'] 2 2\n", 1)


def test_nothing_begins_before_it_is_told_to(tmp_path: Path) -> None:
    done, lives = run(tmp_path, work="return 0", server="time.sleep(0.3); print(side.end(timedelta(seconds=5)))")

    assert (done.stdout, done.stderr, lives) == ("0\n", "", 0)


def test_what_takes_too_long_to_end_is_killed(tmp_path: Path) -> None:
    done, lives = run(
        tmp_path,
        work="side.tell(str(os.getpid())); time.sleep(60)",
        server=textwrap.dedent(
            """
            side.begin()
            while not (lines := side.hear()):
                time.sleep(0.02)
            print(side.end(timedelta(seconds=0.2)), lines[0])
            """
        ),
    )
    code, pid = done.stdout.split()

    assert (int(code), lives) == (-signal.SIGKILL, 1)
    eventually(lambda: not is_alive(int(pid)))


def test_a_companion_that_nobody_listens_to_does_not_wait(tmp_path: Path) -> None:
    done, lives = run(
        tmp_path,
        work="[side.tell('x' * 1000) for _ in range(1000)]; return 2",
        server="side.begin(); time.sleep(1); print(side.end(timedelta(seconds=5)))",
    )

    assert (done.stdout, lives) == ("2\n", 1)


def test_the_time_to_end_counts_from_when_it_was_let_go(tmp_path: Path) -> None:
    done, _ = run(
        tmp_path,
        work="side.tell('up'); time.sleep(60)",
        server=textwrap.dedent(
            """
            side.begin()
            while not side.hear():
                time.sleep(0.02)
            side.let_go()
            time.sleep(1)
            began = time.monotonic()
            print(side.end(timedelta(seconds=1)), time.monotonic() - began < 0.5)
            """
        ),
    )

    assert done.stdout == f"{-signal.SIGKILL} True\n"


def test_a_process_with_threads_has_no_companion(tmp_path: Path) -> None:
    done, lives = run(tmp_path, work="return 0", server="side.end(timedelta(seconds=5))")
    threads = "import threading; threading.Thread(target=time.sleep, args=(1,)).start()"
    odd, _ = run(tmp_path, work="return 0", server=f"{threads}; Companion.fork(work)")

    assert (done.returncode, lives) == (0, 0)
    assert "a process with threads must not fork" in odd.stderr or '"process.uncaught"' in odd.stderr
    assert odd.returncode == 1


def test_a_closed_output_is_no_trouble(tmp_path: Path) -> None:
    done, lives = run(
        tmp_path,
        work="return 2",
        server="os.close(1); sys.stdout = None; side.begin(); sys.exit(10 + side.end(timedelta(seconds=5)))",
    )

    assert (done.returncode, lives) == (12, 1)
