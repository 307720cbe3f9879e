"""cardvault: a vault for payment cards, with tokens, consent and single-use grants."""
