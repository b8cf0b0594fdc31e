"""A captioner on disk: safetensors and JSON, each part as its own library writes it.

config.json         format, version, name; the mapper's kind and sizes; classes of the other parts
mapper.safetensors  the mapping network
known_photos.safetensors, where it is kept: which photos are like those that it was trained on
clip/               transformers' CLIPVisionModelWithProjection, with preprocessor_config.json;
efficientnet/       or its EfficientNetModel
gpt2/               transformers' GPT2LMHeadModel
tokenizer/          CLIPTokenizer or GPT2Tokenizer
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nulltext.captioning.captioner import (
    CLIP,
    MAPPERS,
    VISION_CLASSES,
    Captioner,
    CaptionModel,
    ImagePreprocessing,
    Mapper,
    Sentence,
    fixed_side,
    next_log_probs,
    vision_class,
)
from nulltext.captioning.known_photos import KNOWN_PHOTOS, KnownPhotos
from nulltext.constants import CAPTIONER
from nulltext.errors import ModelError, OutputError, shorten
from nulltext.models.checkpoint import (
    MAX_JSON_BYTES,
    Checkpoint,
    check_weights,
    first_line,
    plain_texts,
    quiet_libraries,
)
from nulltext.models.load import find_device
from nulltext.storage.files import replace_file, replacing_folder
from nulltext.storage.untrusted import parse_json, read_text

BUNDLED_FOLDER = Path(__file__).parent / "bundled"
FORMAT = "nulltext-captioner"
VERSION = 1
CONFIG, MAPPER, PREPROCESSOR = "config.json", "mapper.safetensors", "preprocessor_config.json"
MAX_SIDE = 4096
"""Largest input of a vision model in pixels; published ones have 224 to 512."""
SUPPORTED: Mapping[str, float] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
}
"""The only values of these preprocessor settings that `ImagePreprocessing` can express."""
TOKENIZERS = ("CLIPTokenizer", "GPT2Tokenizer")
MAKE_ONE = (
    "make one of your photos (nulltext train PHOTOS -o NAME --stage captioner, then "
    "--captioner NAME-captioner), or convert published ClipCap weights "
    "(nulltext convert-captioner)"
)


def bundled_captioners() -> tuple[str, ...]:
    """List the names of the captioners that come with the package."""
    return tuple(sorted(p.parent.name for p in BUNDLED_FOLDER.glob(f"*/{CONFIG}")))


def load_captioner(source: str | Path = CAPTIONER, *, device: str | None = None) -> Captioner:
    """Load a captioner by its bundled name or from its folder.

    Raises:
        ModelError: there is none of this name, or its folder is damaged, newer, or something else.
        OptionError: the device cannot be used here.
    """
    folder = _locate(source)
    target = find_device(device)
    checkpoint = Checkpoint.at(folder)
    config = checkpoint.json(CONFIG)
    if config.get("format") != FORMAT:
        raise ModelError(f"'{folder}' is no captioner: {MAKE_ONE}.")
    if config.get("version") != VERSION:
        raise ModelError(
            f"The captioner '{folder}' has version {shorten(str(config.get('version')))}, and "
            f"this nulltext reads version {VERSION}; get a newer nulltext, or make the captioner "
            "again."
        )
    with quiet_libraries():
        try:
            mapper = _load_mapper(config["mapper"], folder)
            unit_features, tokenizer_class = bool(config["unit_features"]), config["tokenizer"]
            vision = config.get("vision", CLIP)
            vision_folder = VISION_CLASSES[vision].folder
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"The settings of the captioner '{folder}' cannot be read "
                f"({shorten(repr(error))}); get it again."
            ) from error
        preprocessing = read_preprocessing(folder / vision_folder / PREPROCESSOR)
        model = CaptionModel(
            checkpoint.component(vision_folder, vision),
            mapper,
            checkpoint.component("gpt2", "GPT2LMHeadModel"),
            unit_features=unit_features,
        )
        tokenizer = load_tokenizer(tokenizer_class, folder / "tokenizer")
    if len(tokenizer) > model.gpt.config.vocab_size:
        raise ModelError(
            f"The captioner '{folder}' has {len(tokenizer)} tokens and GPT-2 knows "
            f"{model.gpt.config.vocab_size}; get it again."
        )
    model.requires_grad_(False).eval()
    check_networks(model, preprocessing, folder)
    model.to(target)
    name = shorten(str(config.get("name", folder.name)))
    known = KnownPhotos.load(folder / KNOWN_PHOTOS, mapper.settings.features)
    return Captioner(name, model, tokenizer, preprocessing, known)


def save_captioner(
    captioner: Captioner,
    folder: Path,
    *,
    dtype: torch.dtype,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a captioner, whole or not at all, in place of one that is there already.

    Args:
        dtype: precision of the weights on disk.
        finish: adds files, such as licences, to the complete folder before it gets its name.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    check_captioner_target(folder)
    model = captioner.model
    tensors = {n: t.to("cpu", dtype).contiguous() for n, t in model.mapper.state_dict().items()}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "name": captioner.name,
        "mapper": {"kind": model.mapper.kind, **dataclasses.asdict(model.mapper.settings)},
        "unit_features": model.unit_features,
        "vision": type(model.vision).__name__,
        "tokenizer": type(captioner.tokenizer).__name__,
    }
    assert config["tokenizer"] in TOKENIZERS, config["tokenizer"]
    vision_folder = vision_class(model.vision).folder
    pixels = preprocessor_config(captioner.preprocessing)
    with replacing_folder(folder) as fresh:
        for name, part in ((vision_folder, model.vision), ("gpt2", model.gpt)):
            before = part.dtype
            part.to(dtype).save_pretrained(fresh / name)
            part.to(before)
        captioner.tokenizer.save_pretrained(fresh / "tokenizer")
        replace_file(fresh / MAPPER, safetensors.torch.save(tensors))
        if captioner.known_photos is not None:
            replace_file(fresh / KNOWN_PHOTOS, captioner.known_photos.to_bytes())
        for path, values in ((Path(vision_folder, PREPROCESSOR), pixels), (Path(CONFIG), config)):
            replace_file(fresh / path, (json.dumps(values, indent=2) + "\n").encode())
        if finish is not None:
            finish(fresh)


def check_networks(model: CaptionModel, preprocessing: ImagePreprocessing, source: Path) -> None:
    """Run the networks once on a black picture, on the CPU.

    Raises:
        ModelError: they give no probabilities of a first word.
    """
    side = preprocessing.side
    try:
        wanted = fixed_side(model.vision)
        if wanted not in (None, side):
            raise ValueError(
                f"{PREPROCESSOR} makes squares of {side} pixels, the vision model looks at {wanted}"
            )
        with torch.no_grad():
            prefix = model.prefix(torch.zeros(1, 3, side, side))
        next_log_probs(model.gpt, prefix, [Sentence()])
    except Exception as error:  # the libraries raise many kinds
        raise ModelError(
            f"The networks of the captioner '{source}' do not work together "
            f"({first_line(error)}); get it again."
        ) from error


def check_captioner_target(folder: Path) -> None:
    """Refuse early a folder that holds something else.

    Raises:
        OutputError: it is a file, or is neither empty nor a captioner.
    """
    if folder.is_file():
        raise OutputError(f"'{folder}' is a file: give the name of a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        known = parse_json(read_text(folder / CONFIG, MAX_JSON_BYTES))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise OutputError(f"'{folder}' is not empty and holds no captioner: choose another folder.")


def load_tokenizer(class_name: str, folder: Path) -> Any:
    """Load a tokenizer of one of the `TOKENIZERS`.

    Raises:
        ModelError: it is of another class, or cannot be read.
    """
    import transformers

    if class_name not in TOKENIZERS:
        raise ModelError(
            f"The tokenizer is a {shorten(repr(class_name))}; known are {', '.join(TOKENIZERS)}."
        )
    try:
        with plain_texts(folder) as texts:
            tokenizer = getattr(transformers, class_name).from_pretrained(texts.as_posix())
        if not tokenizer.encode(".", add_special_tokens=False):
            raise ValueError("its vocabulary is empty")
        return tokenizer
    except Exception as error:  # the library raises many kinds; the reason is in the text
        raise ModelError(
            f"The tokenizer '{folder}' cannot be loaded ({first_line(error)}); get it again."
        ) from error


def _locate(source: str | Path) -> Path:
    if str(source) in bundled_captioners():
        return BUNDLED_FOLDER / str(source)
    folder = Path(source).expanduser()
    if str(source) and folder.is_dir():
        return folder
    if str(source) == CAPTIONER:
        raise ModelError(f"This nulltext comes without a captioner: {MAKE_ONE}.")
    names = ", ".join(bundled_captioners()) or "none"
    raise ModelError(
        f"There is no captioner '{source}': it is neither bundled ({names}) nor an existing "
        f"folder; {MAKE_ONE}."
    )


def _load_mapper(config: Mapping[str, Any], folder: Path) -> Mapper:
    sizes = dict(config)
    network = MAPPERS[sizes.pop("kind")]
    settings = network.settings_class(**sizes)
    try:
        if not (folder / MAPPER).is_file():
            raise ValueError(f"there is no {MAPPER}")
        check_weights(lambda: network(settings), sizes, [folder / MAPPER])
        mapper = network(settings)
        tensors = safetensors.torch.load_file(folder / MAPPER)
        mapper.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except Exception as error:  # torch raises many kinds for impossible sizes
        raise ModelError(
            f"The mapper of the captioner '{folder}' cannot be loaded ({first_line(error)}); "
            "get it again."
        ) from error
    return mapper


def read_preprocessing(path: Path) -> ImagePreprocessing:
    """Read a preprocessor_config.json as transformers writes it.

    Raises:
        ModelError: it is missing, damaged, or not (pixels / 255 - mean) / deviation.
    """
    try:
        config = parse_json(read_text(path, MAX_JSON_BYTES))
        if not isinstance(config, Mapping):
            raise TypeError("it is no JSON object")
        for key, usual in SUPPORTED.items():
            if not math.isclose(float(config.get(key, usual)), usual, rel_tol=1e-4):
                raise ModelError(
                    f"{PREPROCESSOR} of the vision model says {key}: "
                    f"{shorten(repr(config[key]))}, and only {usual} is understood; take a "
                    "vision model that was trained on pixels from 0 to 1, standardised."
                )
        return _parse_preprocessing(config)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"'{path}' cannot be read ({shorten(repr(error))}); get the vision model again."
        ) from error


def _parse_preprocessing(config: Mapping[str, Any]) -> ImagePreprocessing:
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type")))
    efficientnet = kind.startswith("EfficientNet")  # its processor has other defaults than CLIP's
    cut = "crop_size" in config and config.get("do_center_crop", not efficientnet)
    side = config["crop_size"] if cut else config["size"]
    side = side["height"] if isinstance(side, Mapping) else side
    mean, deviation = (tuple(map(float, config[key])) for key in ("image_mean", "image_std"))
    if config.get("include_top", efficientnet):  # EfficientNet's processor then divides once more
        deviation = tuple(value * value for value in deviation)
    if len(mean) != 3 or len(deviation) != 3:
        raise ValueError("there are three channels")
    if not all(map(math.isfinite, (*mean, *deviation))) or min(deviation) <= 0:
        raise ValueError("means are finite, deviations above 0")
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(f"the side is from 1 to {MAX_SIDE} pixels")
    size = config.get("size")
    shortest = size.get("shortest_edge", side) if isinstance(size, Mapping) else side
    if not side <= shortest <= MAX_SIDE:
        raise ValueError(f"the shortest edge is from {side} to {MAX_SIDE} pixels")
    return ImagePreprocessing(int(side), mean, deviation, side / shortest)


def preprocessor_config(preprocessing: ImagePreprocessing) -> dict[str, Any]:
    """Describe the preprocessing as transformers' CLIPImageProcessor reads it."""
    side = preprocessing.side
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(side / preprocessing.share)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.deviation),
        "do_convert_rgb": True,
    }
