"""Photos, crops, masks and compositing."""
