"""Inpainting: masks, what lies under them, the region that is drawn."""
