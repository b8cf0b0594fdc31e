"""PIE-Bench: 700 edits with masks, their protocol and their metrics."""
