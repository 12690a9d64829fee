"""Pictures enlarged by networks, in tiles."""
