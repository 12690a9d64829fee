"""Checkpoints: loaded from files, cached as pipelines, moved between memory tiers."""
