"""Inpainting: masks, fill modes, and the region that is generated."""
