"""Vault: transit, login and renewal. hvac is imported here and nowhere else."""
