"""The recipe: from captioned photos to a small Stable Diffusion folder."""
