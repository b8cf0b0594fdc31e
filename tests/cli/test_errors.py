"""What is told from other failures: an allocator that failed, in every library's words."""

from __future__ import annotations

import errno

import pytest
import torch

from nulltext.diffusion.loops import run
from nulltext.errors import OutOfMemoryError, UserError, convert_out_of_memory, is_out_of_memory

ABSURD = 2**50
"""Numbers that no machine has the memory for."""

SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.99 GB, other allocations: 240.00 KB, max "
        "allowed: 9.07 GB). Tried to allocate 512.00 MB on private pool."
    ),
    RuntimeError("Invalid buffer size: 16.00 GB"),
    RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory", "model.safetensors"),
    MemoryError(),
]

OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    OSError(errno.ENOSPC, "No space left on device", "out of memory.png"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", SAID, ids=str)
def test_every_allocator_is_understood(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError, match="--low-memory") as caught, convert_out_of_memory():
        raise error
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_failures_stay_what_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, convert_out_of_memory():
        raise error
    assert caught.value is error


def test_the_real_allocator_of_the_processor_is_understood():
    with pytest.raises(RuntimeError, match="allocate") as caught:
        torch.empty(ABSURD)
    assert is_out_of_memory(caught.value)


def test_long_loops_and_the_models_own_calls_name_it(tiny_sd1):
    def steps():
        yield torch.empty(ABSURD)

    with pytest.raises(OutOfMemoryError, match="--low-memory"):
        run(steps())
    endless = torch.zeros(1).expand(1, 4, 2**22, 2**22)
    with pytest.raises(OutOfMemoryError, match="--low-memory"):
        tiny_sd1.decode(endless)
    with pytest.raises(OutOfMemoryError, match="--low-memory"):
        tiny_sd1.encode(torch.zeros(1, dtype=torch.float64).expand(1, 3, 2**24, 2**24))
