"""Shared fixtures: the bundled model, and small random-weight pipelines of all SD families."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nulltext
from nulltext.cli.main import main
from support.examples import DAHLIA_PROMPT, EXAMPLE
from support.tiny import tiny_pipeline
from support.tiny_flow import KINDS, tiny_flow_pipeline

Run = Callable[..., tuple[int, str, str]]

# One thread here and in what tests start: tests run side by side, and sums are to be the same.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def flowers() -> nulltext.LatentDiffusion:
    """The bundled model on the CPU."""
    return nulltext.load("flowers", device="cpu")


@pytest.fixture(scope="session")
def tiny_sd1() -> nulltext.LatentDiffusion:
    """SD 1.x in miniature: epsilon-prediction, PNDM-style scheduler config, heads as a count."""
    return nulltext.load(tiny_pipeline("sd1"))


@pytest.fixture(scope="session")
def tiny_sd2() -> nulltext.LatentDiffusion:
    """SD 2.x in miniature: v-prediction, linear projections, heads per block, gelu text model."""
    return nulltext.load(tiny_pipeline("sd2"))


@pytest.fixture(scope="session")
def tiny_sdxl() -> nulltext.LatentDiffusion:
    """SDXL base in miniature: two text encoders, pooled embedding, size conditioning."""
    return nulltext.load(tiny_pipeline("sdxl"))


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def tiny(request: pytest.FixtureRequest) -> nulltext.LatentDiffusion:
    """All families in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def tiny_flows() -> dict[str, nulltext.LatentDiffusion]:
    """Stable Diffusion 3, 3.5 and FLUX [dev] and [schnell] in miniature."""
    return {kind: nulltext.load(tiny_flow_pipeline(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tiny_flow(request, tiny_flows) -> nulltext.LatentDiffusion:
    """All rectified-flow models in turn."""
    return tiny_flows[request.param]


@pytest.fixture(scope="session")
def tiny_sd3(tiny_flows) -> nulltext.LatentDiffusion:
    return tiny_flows["sd3"]


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A small picture with structure and colour."""
    y, x = np.mgrid[0:48, 0:64] / 64
    pixels = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model as a folder; latents 8 x 8, photos 32 x 32."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nulltext", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def run_encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`run` with streams of an encoding, its first argument, that refuse what it lacks."""

    def call(encoding: str, *arguments: object) -> tuple[int, str, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["nulltext", *map(str, arguments)])
        with monkeypatch.context() as redirected:
            redirected.setattr(sys, "stdout", streams[0])
            redirected.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as stop:
                main()
        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Image.Image) -> Path:
    """An empty working folder with one photo in it."""
    monkeypatch.chdir(tmp_path)
    photo.save("cat.png")
    return tmp_path


@pytest.fixture(scope="session")
def inversion_file(
    tmp_path_factory: pytest.TempPathFactory, model: str, photo: Image.Image
) -> Path:
    """Of the photo, inverted as `nulltext invert` does it, in three steps."""
    folder = tmp_path_factory.mktemp("inversions")
    photo.save(folder / "cat.png")
    inversion = nulltext.invert(nulltext.load(model), folder / "cat.png", "a cat", num_steps=3)
    inversion.save(folder / "cat.safetensors")
    return folder / "cat.safetensors"


@pytest.fixture
def saved(here: Path, inversion_file: Path) -> Path:
    """A saved inversion beside its photo; the test's own copy."""
    return Path(shutil.copy(inversion_file, here))


@pytest.fixture(scope="session")
def white_cats() -> dict[int, nulltext.Inversion]:
    """By the id of their model, as they come to be wanted: see `inversion`."""
    return {}


@pytest.fixture
def inversion(
    tiny: nulltext.LatentDiffusion, photo: Image.Image, white_cats: dict[int, nulltext.Inversion]
) -> nulltext.Inversion:
    """The photo as "a white cat" in four DDIM steps, made once for each family."""
    if id(tiny) not in white_cats:
        made = nulltext.invert(tiny, photo, "a white cat", method="ddim", num_steps=4)
        white_cats[id(tiny)] = made
    return white_cats[id(tiny)]


@pytest.fixture(scope="session")
def dahlia_inversion(flowers: nulltext.LatentDiffusion) -> nulltext.Inversion:
    """The example photo, inverted by the default method with the bundled model in ten steps."""
    return nulltext.invert(flowers, EXAMPLE, DAHLIA_PROMPT, num_steps=10)
