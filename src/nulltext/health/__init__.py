"""Check an installation and a checkpoint, and report what is wrong with them."""
