"""What things are: the standard library only, no I/O, no clock, no randomness."""
