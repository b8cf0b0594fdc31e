"""Reading weights: what is mapped, what is cast, what is refused, and what a fingerprint sees."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nulltext
from nulltext.models.fingerprint import FLOAT32_COUNTS, SAMPLES_PER_TENSOR, sample_positions
from nulltext.models.load import BUNDLED_FOLDER
from nulltext.models.weights import MappedTensors, Unallocated, assign, cast_and_move, fill

FLOWERS = "2b3433c9a1d1b013bebbc8c1c4f60fd1"
"""Fingerprint of the bundled model's weights, which saved inversions are bound to."""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("places", torch.arange(5), persistent=False)


@pytest.fixture
def stored(tmp_path):
    """The module, its numbers, and the file that holds them in half precision."""
    torch.manual_seed(0)
    numbers = {n: t.half() if t.is_floating_point() else t for n, t in Small().state_dict().items()}
    path = tmp_path / "small.safetensors"
    save_file(numbers, path)
    return numbers, path


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's maps")


def mapping_of(tensor, path):
    """Where the mapping of the file begins that a tensor lies in; None where it is in none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if line.endswith(str(path)) and start <= tensor.data_ptr() < end:
            return start
    return None


def bare():
    with Unallocated():
        return Small().requires_grad_(False).eval()


def test_parameters_take_no_memory_before_they_are_filled():
    module = bare()
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert module.places.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_file_in_the_precision_that_is_asked_for(stored, dtype):
    numbers, path = stored
    module, seen = bare(), {}
    fill(module, MappedTensors([path]))
    cast_and_move(
        module,
        dtype=dtype,
        device=torch.device("cpu"),
        on_weight=lambda named: seen.update([named]),
    )
    for name, tensor in module.state_dict().items():
        whole = not numbers[name].is_floating_point()
        assert tensor.dtype == (numbers[name].dtype if whole else dtype)
        assert torch.equal(tensor, numbers[name].to(tensor.dtype)), name
    assert sorted(seen) == sorted(n for n, _ in Small().named_parameters())
    assert {tensor.dtype for tensor in seen.values()} == {torch.float16}


@linux
def test_nothing_is_copied_where_the_precision_is_the_files(stored):
    _, path = stored
    module = bare()
    fill(module, MappedTensors([path]))
    before = {name: p.data_ptr() for name, p in module.named_parameters()}
    cast_and_move(
        module, dtype=torch.float16, device=torch.device("cpu"), on_weight=lambda *_: None
    )
    assert {name: p.data_ptr() for name, p in module.named_parameters()} == before
    assert mapping_of(module.to_q.weight, path) is not None


@linux
def test_what_has_been_read_is_mapped_anew_part_by_part(tmp_path, monkeypatch):
    """So that casting a large file gives back the pages of what has been cast."""
    monkeypatch.setattr("nulltext.models.weights.MAPPED_BYTES", 4096)
    numbers = {f"w{k}": torch.full((1024,), float(k)) for k in range(6)}
    path = tmp_path / "w.safetensors"
    save_file(numbers, path)
    held = MappedTensors([path])
    read = {name: held[name] for name in numbers}
    mappings = {mapping_of(tensor, path) for tensor in read.values()}
    assert len(mappings - {None}) == 3
    assert all(torch.equal(read[name], numbers[name]) for name in numbers)


def test_old_names_and_shapes_of_the_same_weights_are_understood(tmp_path):
    torch.manual_seed(0)
    own = nn.ModuleDict({"mid": Small()})
    numbers = dict(own.state_dict())
    numbers["mid.query.weight"] = numbers.pop("mid.to_q.weight")[:, :, None, None].contiguous()
    numbers["mid.query.bias"] = numbers.pop("mid.to_q.bias")
    save_file(numbers | {"mid.unknown": torch.zeros(2)}, tmp_path / "old.safetensors")
    with Unallocated():
        module = nn.ModuleDict({"mid": Small()})
    fill(module, MappedTensors([tmp_path / "old.safetensors"]))
    assert torch.equal(module["mid"].to_q.weight, own["mid"].to_q.weight)
    assert torch.equal(module["mid"].to_q.bias, own["mid"].to_q.bias)


def test_a_weight_that_is_missing_or_of_another_shape_is_named(stored, tmp_path):
    numbers, _ = stored
    short = {name: tensor for name, tensor in numbers.items() if name != "to_q.bias"}
    with pytest.raises(ValueError, match=r"lacks 1 weights \(to_q\.bias"):
        fill(bare(), short)
    wide = numbers | {"to_q.weight": torch.zeros(4, 7)}
    with pytest.raises(ValueError, match=r"to_q\.weight is \[4, 7\], expected \[4, 6\]"):
        fill(bare(), wide)


def test_assign_reaches_parameters_and_buffers():
    module = nn.ModuleDict({"mid": Small()})
    assign(module, "mid.to_q.bias", torch.ones(4))
    assign(module, "mid.norm.running_mean", torch.full((4,), 2.0))
    assert module["mid"].to_q.bias.tolist() == [1.0] * 4
    assert module["mid"].norm.running_mean.tolist() == [2.0] * 4


@pytest.mark.parametrize("numel", [1, 2, 63, 64, 65, 1000, 320 * 320 * 9, FLOAT32_COUNTS])
def test_small_tensors_are_sampled_where_saved_inversions_have_sampled_them(numel):
    count = min(numel, SAMPLES_PER_TENSOR)
    assert torch.equal(sample_positions(numel), torch.linspace(0, numel - 1, count).long())


@pytest.mark.parametrize(
    "numel",
    [
        FLOAT32_COUNTS + 1,
        49_408 * 768,  # the token embeddings of Stable Diffusion 1
        49_408 * 1280,  # of XL's second encoder
        1280 * 2560 * 9,  # the largest convolution
        2**31 + 12_345,
    ],
)
def test_large_tensors_are_sampled_evenly_and_within_their_bounds(numel):
    positions = sample_positions(numel).tolist()
    assert len(positions) == SAMPLES_PER_TENSOR
    assert (positions[0], positions[-1]) == (0, numel - 1)
    gaps = {b - a for a, b in pairwise(positions)}
    assert max(gaps) - min(gaps) <= 1


def test_the_bundled_model_has_the_fingerprint_that_saved_inversions_name(flowers):
    assert flowers.fingerprint == FLOWERS
    assert nulltext.load(BUNDLED_FOLDER / "flowers", dtype="bfloat16").fingerprint == FLOWERS
