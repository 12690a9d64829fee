"""Model files of every kind: listing, metadata, lookup by name, downloads."""
