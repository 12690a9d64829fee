"""Upscaling of pictures by filters, or by networks in tiles."""
