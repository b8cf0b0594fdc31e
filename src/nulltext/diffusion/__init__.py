"""Noise schedules, guidance and the sampling loops."""
