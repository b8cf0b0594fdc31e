"""Edits: specifications, editors, the loop that samples them, and where they act."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
