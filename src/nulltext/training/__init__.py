"""The recipe: from captioned photos to a small Stable Diffusion folder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
