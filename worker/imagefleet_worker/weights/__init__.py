"""Weight files as they are: which tensors there are, under which names."""
