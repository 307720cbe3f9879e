"""Messages and services generated from `protos/`; never edited by hand."""
