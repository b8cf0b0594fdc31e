"""Inversion methods: each turns a photo's latents into an `Inversion`."""
