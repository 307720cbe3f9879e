"""`python -m vault` is the command `cardvault`."""

from vault.cli.main import main

main()
