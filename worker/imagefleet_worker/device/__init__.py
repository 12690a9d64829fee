"""What depends on the device: options, memory, compilation, transfers."""
