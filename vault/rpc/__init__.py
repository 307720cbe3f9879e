"""The door: who may come in, what they said, and what they are told."""
