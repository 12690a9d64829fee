"""Pictures as PIL images and as tensors, and their sizes."""
