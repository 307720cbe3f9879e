"""What we do, one module for each thing; every function takes a batch."""
