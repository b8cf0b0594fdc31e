"""Stable Diffusion checkpoints: loading them, and the four things that we ask of them."""
