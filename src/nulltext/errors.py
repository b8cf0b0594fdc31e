"""Exceptions, and helpers that word their messages.

`UserError` marks a mistake that the caller can correct (exit code 2); every other `NulltextError`
is a failure of nulltext or of its numerics (exit code 1). A message is one sentence: what was got,
what was expected, and what to do next.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, ModuleType


class NulltextError(Exception):
    """Base class of the exceptions that nulltext raises on purpose."""


class UserError(NulltextError):
    """Invalid input that the caller can correct."""


class OptionError(UserError):
    """An option is malformed, out of range, or contradicts another one."""


class FieldError(OptionError):
    """The value of one option is wrong where a form has a field for it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        """Name of the option."""


class PromptError(UserError):
    """A prompt is empty, too long, unreadable to the tokenizer, or lacks a word."""


class ImageError(UserError):
    """A photo cannot be read, or the crop does not fit it."""


class ModelError(UserError):
    """A checkpoint is missing, not a Stable Diffusion pipeline, or of an unsupported kind."""


class InversionFileError(UserError):
    """A saved inversion is missing, damaged, foreign, newer, or belongs to another model."""


class OutputError(UserError):
    """A result cannot be written to the requested path."""


class DataError(UserError):
    """A folder of photos and captions is missing, empty or malformed."""


class ExtraError(UserError):
    """An optional library is not installed; the message names the extra to install."""


class OutOfMemoryError(UserError):
    """The device ran out of memory; the message says which options lower its use."""


class WorkerError(NulltextError):
    """A worker process died; the message says which results are kept."""


class NumericalError(NulltextError):
    """A computation produced NaN or infinity; the message names the timestep."""


MAX_QUOTED = 200
"""Characters that a message repeats of a file or of another message."""
SIMILARITY = 0.75
"""Least difflib ratio at which a name is taken for a misspelling of another."""
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, XPU and MPS, allocators and drivers
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # torch on a CPU under Windows
    "cannot allocate memory",  # a file that cannot be mapped
    "alloc_failed",  # cuBLAS and cuDNN
    "invalid buffer size",  # MPS: one tensor beyond what Metal takes
)
"""What libraries say, in lower case, where an allocation failed."""
LOWER_MEMORY = (
    "pass --low-memory, a smaller --size, --offload or --dtype float16 on a GPU, or --device cpu"
)


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraError(
            f"{purpose} needs {module.partition('.')[0]}, which is not installed: "
            f"pip install 'nulltext[{extra}]'."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch often says so in the message alone."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in OUT_OF_MEMORY)


@contextmanager
def convert_out_of_memory(advice: str = LOWER_MEMORY) -> Iterator[None]:
    """Raise `OutOfMemoryError` where an allocation fails inside the block."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"The device ran out of memory; {advice}.") from error


def reason_of(error: BaseException) -> str:
    """Return what a system call or a codec said, on one line and without the path."""
    message = getattr(error, "strerror", None) or str(error)
    return shorten(" ".join(message.split()).rstrip(".")) or type(error).__name__


def closest_name(
    name: str, known: Collection[str], others: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str | None:
    """Return the known name that a misspelt one, or another tool's name, most likely means.

    Args:
        others: other tools' names, lower case and without punctuation, each with the names that it
            may mean; the first that is known counts.
    """
    import difflib

    candidates = {_letters(one): one for one in known}
    for other, meanings in others.items():
        if meant := next((one for one in meanings if one in known), None):
            candidates[other] = meant
    found = difflib.get_close_matches(_letters(name), candidates, n=1, cutoff=SIMILARITY)
    return candidates[found[0]] if found else None


def _letters(name: str) -> str:
    return "".join(each for each in name.casefold() if each.isalnum())


def shorten(text: str) -> str:
    """Cut a text to the length that a message may repeat."""
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "\u2026"
