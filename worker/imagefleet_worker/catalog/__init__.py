"""Model files of every kind: listed, described, fetched, looked up by name."""
