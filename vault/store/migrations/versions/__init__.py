"""The revisions. Each one must leave a database that the release before it can still work with."""
