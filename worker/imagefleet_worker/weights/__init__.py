"""Weight files on disk: headers, tensor names, and the architectures they imply."""
