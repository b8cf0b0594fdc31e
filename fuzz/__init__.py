"""Damaged and forged files against everything that nulltext reads: `python -m fuzz --help`."""
