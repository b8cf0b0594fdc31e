"""Edits: specifications, editors, the edit loop and where it acts."""
