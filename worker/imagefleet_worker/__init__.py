"""The GPU worker of Imagefleet."""
