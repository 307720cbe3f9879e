"""Vault: transit, login and renewal, set-up. hvac, requests and urllib3 are imported here and nowhere else."""
