"""Deltas by kind of adapter; each module has the formula and its paper."""
