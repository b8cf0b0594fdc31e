"""What one server takes on, so that a long day with many visitors stays within its memory."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds of a studio."""

    upload_bytes: int = 80 * MEGABYTE
    """Largest file that is taken: a photo, or a saved inversion."""
    pixels: int = 50_000_000
    """Largest photo that is decoded."""
    mask_pixels: int = 4_000_000
    """Largest painted mask."""
    prompt_letters: int = 1000
    """Longest text that is looked at; models read far less."""
    sessions: int = 32
    """People at once; the one who has been away longest makes room for the next."""
    idle_seconds: float = 2 * 60 * 60.0
    """After so long without a request, a session is put away."""
    history: int = 20
    """Edits that each person can go back to; the oldest goes first."""
    shelf_bytes: int = 256 * MEGABYTE
    """Of decoded photos, of inversions and of attention maps each, kept to be quick."""
