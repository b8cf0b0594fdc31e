"""Shared fixtures of training."""

from support.dots import dots

__all__ = ["dots"]
