"""Files: atomic writes, and limits on what others wrote."""
