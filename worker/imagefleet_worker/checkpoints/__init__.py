"""Checkpoint files loaded as pipelines that stay warm."""
