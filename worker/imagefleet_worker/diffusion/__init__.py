"""Diffusion rendering: the passes of a batch, from prompts to pixels."""
