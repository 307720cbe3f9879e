"""For the tests of those who call cardvault."""
