"""Noise levels, sigma schedules, solvers and seeds, compatible with A1111's."""
