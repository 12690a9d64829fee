"""Image decoding, conversion between PIL and tensors, and sizes."""
