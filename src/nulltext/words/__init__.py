"""Prompts, tokens, and how the words of two prompts correspond."""
