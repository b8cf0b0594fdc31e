"""The valid files that fuzzing starts from: `python -m fuzz seeds` writes them anew.

Small, and of every kind that is read: each way of storing pixels, each sort of saved inversion.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

from fuzz.readers import READERS
from fuzz.surroundings import SMALL

FOLDER_SEEDS = {
    "captioner": [
        *("config.json", "mapper.safetensors", "clip/preprocessor_config.json"),
        *("clip/config.json", "gpt2/config.json", "tokenizer/tokenizer_config.json"),
    ],
    "model": [
        *("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"),
        *("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"),
        *("unet/diffusion_pytorch_model.safetensors.index.json", "tokenizer/tokenizer.json"),
    ],
}
"""Files of folders that are replaced, one at a time."""


COMMON = {"image": "a.png", "source": "a red rose", "target": "a white rose"}
JOBS = (
    COMMON,
    COMMON | {"steps": 20, "seed": 3, "method": "direct", "strength": 0.5, "full": True},
    COMMON | {"target": ["a daisy", "two daisies"], "blend": ["rose"], "blend_threshold": 0.4},
    COMMON | {"mask": "m.png", "weight": ["white=2"], "then": ["a blue rose"], "guidance": 5},
    {"inversion": "a.safetensors", "target": "a tulip", "editor": "masactrl", "masa_start": 0.2},
)


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """(reader, file name, content) of each."""
    for name, data in _pictures():
        yield "image", name, data
    for name, data in _pictures():
        if name.split(".")[0] in ("grey", "bilevel", "deep", "tinted", "two"):
            yield "mask", name, data
    for name, tensors, header in _inversions():
        from nulltext.storage.inversion_file import write_inversion

        with tempfile.TemporaryDirectory() as folder:
            write_inversion(Path(folder) / name, tensors, header)
            yield "inversion", name, (Path(folder) / name).read_bytes()
    for name, text in _tables().items():
        yield "labels", name, text.encode()
    lines = "".join(json.dumps(job) + "\n" for job in JOBS)
    yield "jobs", "jobs.jsonl", lines.encode()
    yield "jobs", "marked.jsonl", lines.encode("utf-16")
    yield "jobs", "array.json", json.dumps(JOBS, indent=1).encode("utf-8-sig")
    table = 'image;source;target;steps;full\r\na.png;a rose;"a daisy\ntwo";20;TRUE\r\n'
    yield "jobs", "table.csv", table.encode("utf-8-sig")
    yield "pie", "mapping_file.json", json.dumps(_edits()).encode()
    yield "recipe", "small.json", json.dumps(SMALL).encode()
    prompts = (
        "a photo of a red rose",
        "two daisies, don't: 'stop' ... 12345",
        "caf\u00e9 \u732b\u00ad",
    )
    for number, prompt in enumerate(prompts):
        yield "prompt", f"{number}.txt", prompt.encode()
    yield from (("adapter", name, data) for name, data in _adapters())
    for reader, names in FOLDER_SEEDS.items():
        with tempfile.TemporaryDirectory() as folder:
            READERS[reader].around(Path(folder))
            for name in names:
                yield reader, name.replace("/", "__"), (Path(folder) / name).read_bytes()


def _adapters() -> Iterator[tuple[str, bytes]]:
    """A LoRA, a learnt token and an autoencoder for the model that is around them."""
    from safetensors.torch import load_file, save

    with tempfile.TemporaryDirectory() as folder:
        READERS["adapter"].around(Path(folder))
        unet = load_file(sorted(Path(folder).glob("unet/*-00001-of-*.safetensors"))[0])
        layer = next(n for n, t in sorted(unet.items()) if "attn" in n and t.ndim == 2)
        rows, columns = unet[layer].shape
        vae = (Path(folder) / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
        config = json.loads((Path(folder) / "text_encoder" / "config.json").read_text())
    stem = f"lora_unet_{layer.removesuffix('.weight').replace('.', '_')}"
    lora = {
        f"{stem}.lora_down.weight": torch.ones(2, columns),
        f"{stem}.lora_up.weight": torch.ones(rows, 2),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    yield "lora.safetensors", save(lora, {"ss_tag_frequency": '{"a": {"rose": 3}}'})
    yield "embedding.safetensors", save({"<mine>": torch.ones(2, config["hidden_size"])})
    yield "vae.safetensors", vae


def _pictures() -> Iterator[tuple[str, bytes]]:
    y, x = np.mgrid[0:16, 0:24]
    rgb = Image.fromarray(np.stack([x * 10, y * 15, (x * y) % 256], -1).astype(np.uint8))
    alpha = Image.fromarray((x * 10).astype(np.uint8))
    zero = Image.new("L", alpha.size)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    deep = Image.fromarray((x * 2000 + y).astype(np.uint16))
    frames = [rgb.rotate(angle) for angle in (90, 180)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "upright?"
    told = {"icc_profile": profile, "exif": exif.tobytes()}
    for array in (np.asarray(rgb), np.asarray(alpha) / np.float32(255), np.asarray(deep)):
        file = io.BytesIO()
        np.save(file, array)
        yield f"{'rgb' if array.ndim == 3 else f'grey.{array.dtype}'}.npy", file.getvalue()
    cases: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        ("rgb.png", rgb, "PNG", told),
        ("rgba.png", rgba, "PNG", {}),
        ("grey.png", alpha, "PNG", {}),
        ("bilevel.png", alpha.convert("1"), "PNG", {}),
        ("deep.png", deep, "PNG", {}),
        ("tinted.png", Image.merge("RGBA", (alpha, zero, zero, alpha)), "PNG", {}),
        ("two.png", alpha.convert("1").convert("P"), "PNG", {}),
        ("palette.png", rgb.quantize(16), "PNG", {"transparency": 3}),
        ("animated.png", rgb, "PNG", {"save_all": True, "append_images": frames}),
        ("baseline.jpg", rgb, "JPEG", told),
        ("progressive.jpg", rgb, "JPEG", {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), "JPEG", {"icc_profile": profile}),
        ("grey.jpg", alpha, "JPEG", {}),
        ("several.mpo", rgb, "MPO", {"save_all": True, "append_images": frames}),
        ("lossy.webp", rgb, "WEBP", told),
        ("lossless.webp", rgba, "WEBP", {"lossless": True}),
        ("animated.webp", rgb, "WEBP", {"save_all": True, "append_images": frames}),
        ("lzw.tiff", rgb, "TIFF", {"compression": "tiff_lzw"}),
        ("deflate.tiff", rgba, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tiff", rgb, "TIFF", {"compression": "jpeg"}),
        ("deep.tiff", deep, "TIFF", {}),
        ("pages.tiff", rgb, "TIFF", {"save_all": True, "append_images": frames}),
        ("cmyk.tiff", rgb.convert("CMYK"), "TIFF", {"compression": "packbits"}),
        ("animated.gif", rgb, "GIF", {"save_all": True, "append_images": frames}),
        ("rgb.bmp", rgb, "BMP", {}),
        ("palette.bmp", rgb.quantize(16), "BMP", {}),
        ("rgb.ppm", rgb, "PPM", {}),
        ("deep.pgm", deep, "PPM", {}),
        ("rgb.avif", rgb, "AVIF", {}),
    ]
    for name, image, kind, options in cases:
        file = io.BytesIO()
        if "append_images" in options:  # saving leaves settings on an image
            options = options | {"append_images": [frame.copy() for frame in frames]}
        image.copy().save(file, kind, **options)
        yield name, file.getvalue()


def _inversions() -> Iterator[tuple[str, dict[str, torch.Tensor], dict[str, Any]]]:
    draw = torch.Generator().manual_seed(0)
    steps = 2
    tensors = {
        "trajectory": torch.randn(steps + 1, 4, 2, 2, generator=draw),
        "photo": torch.randint(0, 256, (3, 16, 16), generator=draw, dtype=torch.uint8),
    }
    header: dict[str, Any] = {
        "prompt": "a photo of a caf\u00e9",
        "model": "small",
        "fingerprint": "0" * 64,
        "levels": [
            {"fed": 501, "alpha": 0.5, "sigma": 0.75**0.5},
            {"fed": 1, "alpha": 0.999, "sigma": 0.0447},
        ],
        "guidance_scale": 7.5,
        "method": "null-text",
        "method_config": {"solver": {"name": "adam", "tolerances": [0.1, 0.2]}, "inner_steps": 10},
        "seed": 0,
        "image_sha256": "1" * 64,
        "image_size": [24, 16],
        "crop": [4, 0, 16, 16],
        "psnr_bound": 31.5,
        "psnr_reconstruction": 30.0,
        "unet_evaluations": 100,
        "seconds": 1.5,
        "iterations": 20,
    }
    yield "ddim.safetensors", tensors, header
    embeds = torch.randn(steps, 3, 2, generator=draw)
    yield "null-text.safetensors", {**tensors, "null_embeds": embeds}, header
    delta = {f"weight_delta.layer.{end}": torch.ones(2, 2) for end in ("up", "down")}
    everything = {**tensors, "corrections": torch.zeros(steps, 4, 2, 2), **delta}
    yield "everything.safetensors", {**everything, "prompt_embeds": embeds[:1]}, header


def _tables() -> dict[str, str]:
    """By the names under which the folder's readers look for them."""
    label = {"kind": "rose", "colour": "red", "background": None, "split": "train"}
    labels: list[dict[str, Any]] = [{"file": "a.png", **label}, {"file": "b.png", **label}]
    captions: list[dict[str, Any]] = [
        {"file": "a.png", "captions": ["a cat", "a pet"], "target": "a dog", "mask": "b.png"},
        {"file": "b.png", "caption": "a grey \u732b", "split": "validation"},
    ]
    coco: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": 3, "image_id": 1, "caption": "a cat"},
            {"id": 4, "image_id": 2, "caption": "a dog"},
        ],
    }
    edits: list[dict[str, Any]] = [{"file": "a.png", "target": "a dog", "mask": "b.png"}]
    return {
        "labels.jsonl": _lines(labels),
        "captions.jsonl": _lines(captions),
        "edits.jsonl": _lines(edits),
        "captions_val2017.json": json.dumps(coco),
        "a.txt": "a cat\na pet\n",
    }


def _edits() -> dict[str, Any]:
    """As PIE-Bench publishes them."""
    entry = {
        "image_path": "0_random_140/000000000000.jpg",
        "original_prompt": "a [round] cake",
        "editing_prompt": "a [square] cake",
        "editing_instruction": "Make it square",
        "editing_type_id": "0",
        "blended_word": "cake cake",
        "mask": [0, 262144],
    }
    return {"000000000000": entry, "000000000001": {**entry, "mask": [5, 3, 600, 40]}}


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(corpus: Path) -> int:
    """Write all seeds; says how many."""
    count = 0
    for reader, name, data in seeds():
        (corpus / reader).mkdir(parents=True, exist_ok=True)
        (corpus / reader / name).write_bytes(data)
        count += 1
    return count
