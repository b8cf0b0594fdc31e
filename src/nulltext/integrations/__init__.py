"""Interfaces in the shape of other libraries; each is a module."""
