"""Errors of the device. Free of torch, so that the engine knows them without it."""


class NoRoomForWeights(Exception):
    """The device has no room for a model, however small the batch."""
