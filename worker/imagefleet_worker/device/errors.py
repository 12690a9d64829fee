"""Errors of the device, in a module without torch so that the engine can import them cheaply."""


class ModelDoesNotFit(Exception):
    """A model does not fit in the device's memory, whatever the batch size."""
