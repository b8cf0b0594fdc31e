"""Edits as requests: one carried out, or many, here or on a cluster."""
