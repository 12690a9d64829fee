"""The thread that owns the device: which jobs wait, which run together, how many at once."""
