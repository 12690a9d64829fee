"""Faces restored: found, aligned, drawn by a network, blended back."""
