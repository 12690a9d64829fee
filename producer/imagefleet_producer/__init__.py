"""Enqueue Stable Diffusion jobs on an Imagefleet and fetch the pictures."""
