"""A Vault of one's own on one machine: OpenBao from a wheel and a development CA. Not for production."""
