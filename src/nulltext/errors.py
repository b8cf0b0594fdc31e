"""The exception tree: every way in which nulltext says no.

`UserError` is somebody's mistake that the same person can mend (the command line exits with 2);
every other `NulltextError` is a failure of ours or of the numbers (exit code 1). A message is one
sentence that says what was got, what was expected and what to do next.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType, ModuleType


class NulltextError(Exception):
    """Base of all exceptions that nulltext raises on purpose."""


class UserError(NulltextError):
    """Bad input: the caller can mend it."""


class OptionError(UserError):
    """An option is malformed, out of range, or contradicts another one."""


class PromptError(UserError):
    """A prompt is empty, too long, unreadable to the tokenizer, or lacks a word."""


class ImageError(UserError):
    """A photo cannot be read, or the crop does not fit it."""


class ModelError(UserError):
    """A checkpoint is missing, is no Stable Diffusion pipeline, or is of a kind not supported."""


class InversionFileError(UserError):
    """A saved inversion is missing, damaged, foreign, newer, or belongs to another model."""


class OutputError(UserError):
    """A result cannot be written where it was asked for."""


class DataError(UserError):
    """A folder of photos and captions is missing, empty or malformed."""


class ExtraError(UserError):
    """An optional library is not installed; the message says which extra brings it."""


class OutOfMemoryError(UserError):
    """The device ran out of memory; the message says what to lower."""


class WorkerError(NulltextError):
    """A process that shared the work died; the message says what is kept."""


class NumericalError(NulltextError):
    """A computation left the finite numbers; the message names the timestep."""


LONGEST = 200
"""Characters of what a message repeats of a file or of another message."""


LIKE = 0.75
"""How much of two names is alike where one is taken for a misspelt other (difflib's ratio)."""


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
"""What to do where a device's memory does not suffice."""


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
    """Whether an allocation failed; most of torch's say so in words alone."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)


@contextmanager
def out_of_memory_named(advice: str = LOWER_MEMORY) -> Iterator[None]:
    """Raise `OutOfMemoryError` where an allocation fails inside the block."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"The device ran out of memory; {advice}.") from error


def reason_of(error: BaseException) -> str:
    """What a system call or a codec said, on one line and without the path."""
    said = getattr(error, "strerror", None) or str(error)
    return shortened(" ".join(said.split()).rstrip(".")) or type(error).__name__


def meant(
    name: str, known: Collection[str], others: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str | None:
    """The known name that stands behind one in another spelling (`Cross-Steps`), another tool's,
    or with a slip of the pen.

    Args:
        others: other tools' names, in lower case without marks, and what may be meant by each, of
            which the first that is known counts.
    """
    import difflib

    called = {other: [one for one in ours if one in known] for other, ours in others.items()}
    by_letters = {_letters(one): one for one in known}
    by_letters |= {other: ours[0] for other, ours in called.items() if ours}
    found = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=LIKE)
    return by_letters[found[0]] if found else None


def _letters(name: str) -> str:
    return "".join(each for each in name.casefold() if each.isalnum())


def shortened(text: str) -> str:
    """A text that may be somebody else's, as far as a message can hold it."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "\u2026"
