"""Everything at once, until Ctrl-C: an OpenBao, cardvault, the processor and the shop."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import FrameType

from examples.storefront.stand import DidNotStart, Process, Storefront
from vault.client import Checkout, TlsFiles, Unavailable
from vault.embedded.process import OpenBaoFailed
from vault.embedded.stack import prepare

_START = timedelta(seconds=60)
_WATCH_SECONDS = 1.0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(state: Path) -> None:
    """Start, say where to look, and stay."""
    os.umask(0o077)
    state = state.resolve()
    state.mkdir(exist_ok=True)
    with ExitStack() as running:
        _say(f"Starting OpenBao and cardvault in {state}/ …")
        stack = prepare(state / "vault")
        running.callback(stack.close)
        vault = Process(["vault", "serve", "--config", str(stack.config)], log=state / "vault.log")
        running.callback(vault.stop)
        address = f"localhost:{(stack.directory / 'port').read_text(encoding='ascii').strip()}"
        pki = stack.directory / "pki"
        tls = TlsFiles(ca=pki / "ca.pem", certificate=pki / "checkout.pem", private_key=pki / "checkout.key")
        with Checkout(address, tls) as checkout:
            checkout.wait_ready(_START)
        _say("Starting the processor and the shop …")
        storefront = running.enter_context(Storefront(state, vault=address, pki=pki))
        _say(f"\n  Open  http://{storefront.shop.address}/\n")
        _say("  Pay with 4242 4242 4242 4242 (approved) or 4000 0000 0000 0002 (declined), any later date, any code.")
        _say(f"  Logs and databases are in {state}/; remove it to begin anew. Ctrl-C stops everything.")
        while True:
            vault.check()
            time.sleep(_WATCH_SECONDS)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """0 after Ctrl-C or SIGTERM, 1 if something did not start or stopped."""
    parser = argparse.ArgumentParser(prog="python -m examples.storefront", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".cardvault-storefront"), help="folder for everything")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        run(parser.parse_args().state)
    except KeyboardInterrupt:
        _say("\nStopped.")
    except (DidNotStart, OpenBaoFailed, Unavailable, OSError) as error:
        sys.stderr.write(f"storefront: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
