"""Noise levels, sigma schedules, solvers and seeds: what makes a picture A1111's."""
