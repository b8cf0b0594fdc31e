"""Atomic writes, locks, and limits on untrusted files."""
