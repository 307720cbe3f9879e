"""Vault: transit, login and renewal, set-up. hvac and requests are imported here and nowhere else."""
