"""Pictures drawn by diffusion: the passes of a batch, from prompts to pixels."""
