"""The audit log as a Merkle tree (RFC 6962): sequencing, signed checkpoints, a copy elsewhere, proofs, verification."""
