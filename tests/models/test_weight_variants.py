"""Which files of a model are read, by their names alone."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

from nulltext.errors import ModelError
from nulltext.models.pipelines import FAMILIES
from nulltext.models.variants import choose_weights, files_of, needed_files
from support.tiny import tiny_pipeline

MODULES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
)
STEMS = (UNET, VAE, TEXT)


def names(*variants, stems=STEMS):
    """One file per component and variant; "" is plain."""
    return [f"{stem}{v and '.'}{v}.safetensors" for stem in stems for v in variants]


def shards(stem, middle, index):
    return [f"{stem}{middle.format(n)}.safetensors" for n in (1, 2)] + [f"{stem}{index}"]


def chosen(files, variant=None):
    weights = choose_weights(files, MODULES, "m", variant)
    return [part.variant for part in weights.values()]


@pytest.mark.parametrize(
    ("files", "variant", "variants"),
    [
        (names(""), None, [None, None, None]),
        (names("", "fp16", "non_ema"), None, [None, None, None]),
        (names("", "fp16", "non_ema"), "fp16", ["fp16", "fp16", "fp16"]),
        (names("fp16"), None, ["fp16", "fp16", "fp16"]),
        (names("bf16", "fp16"), None, ["fp16", "fp16", "fp16"]),
        (names("non_ema", "bf16"), None, ["bf16", "bf16", "bf16"]),
        # published SD 1.5: the UNet alone has weights without averaging
        (names("") + names("non_ema", stems=[UNET]), "non_ema", ["non_ema", None, None]),
        # what most components have stands in for plain weights, even where another one could
        (names("bf16") + names("fp16", stems=[UNET]), None, ["bf16", "bf16", "bf16"]),
        # per component
        (names("fp16", stems=[UNET]) + names("", stems=[VAE, TEXT]), None, ["fp16", None, None]),
        (
            names("fp16", stems=[UNET]) + names("bf16", stems=[VAE]) + names("", stems=[TEXT]),
            "bf16",
            ["fp16", "bf16", None],
        ),
    ],
)
def test_plain_weights_are_read_unless_a_variant_is_asked_for_or_alone(files, variant, variants):
    assert chosen(files, variant) == variants
    assert chosen(list(reversed(files)), variant) == variants


@pytest.mark.parametrize(
    ("middle", "index", "variant"),
    [
        ("-0000{}-of-00002", ".safetensors.index.json", None),
        (".fp16-0000{}-of-00002", ".safetensors.index.fp16.json", "fp16"),
        ("-0000{}-of-00002.fp16", ".safetensors.fp16.index.json", "fp16"),
        (".fp16-0000{}-of-00002", ".fp16.safetensors.index.json", "fp16"),
    ],
)
def test_shards_are_read_with_their_index_if_all_are_there(middle, index, variant):
    others = names("", stems=[VAE, TEXT])
    files = shards(UNET, middle, index)
    weights = choose_weights(files + others, MODULES, "m")["unet"]
    assert (weights.variant, list(weights.files), weights.index) == (variant, *split(files))
    for lost in files:
        with pytest.raises(ModelError, match="lacks shards"):
            choose_weights([f for f in files if f != lost] + others, MODULES, "m")
        kept = [f for f in files if f != lost]
        whole = f"{UNET}{f'.{variant}' if variant else ''}.safetensors"
        assert choose_weights([*kept, whole, *others], MODULES, "m")["unet"].files == (whole,)


def split(files):
    return files[:-1], files[-1]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_libraries_own_names_are_understood_as_diffusers_does(family, tmp_path):
    """`variant_compatible_siblings` is what diffusers downloads by."""
    pipe = tiny_pipeline(family)
    modules = FAMILIES[family == "sdxl"].modules
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    pipe.unet.save_pretrained(tmp_path / "unet", variant="non_ema", max_shard_size="500KB")
    held = files_of(tmp_path)
    for variant in (None, "fp16", "non_ema"):
        ours = choose_weights(held, modules, "m", variant).values()
        theirs = variant_compatible_siblings(held, variant=variant)[0]
        files = {file for weights in ours for file in weights.files}
        assert files | {w.index for w in ours if w.index} == theirs
        assert variant is None or len(files) > len(modules)


def test_weights_that_are_not_safetensors_are_named_and_what_they_could_do():
    others = names("", stems=[VAE, TEXT])
    for file, words in (
        ("diffusion_pytorch_model.bin", "bin, which could run code when opened, and not as"),
        ("diffusion_pytorch_model.fp16.bin", "bin, which could run code"),
        ("diffusion_flax_model.msgpack", "msgpack and not as safetensors"),
    ):
        with pytest.raises(ModelError, match=words):
            choose_weights([f"unet/{file}", *others], MODULES, "m")
    with pytest.raises(ModelError, match=r"has no weights \(unet/diffusion_pytorch_model\.safe"):
        choose_weights(["unet/config.json", *others], MODULES, "m")


def test_a_variant_of_no_component_is_refused_with_those_that_there_are():
    with pytest.raises(ModelError, match="no weights of the variant 'int8'; it has fp16, plain"):
        chosen(names("", "fp16"), "int8")


def test_a_missing_config_or_vocabulary_is_named():
    files = [*names(""), "model_index.json", "scheduler/scheduler_config.json"]
    files += [f"{part}/config.json" for part in MODULES]
    files += ["tokenizer/vocab.json", "tokenizer/merges.txt", "words.json"]
    needed = needed_files(
        [*files, "README.md", "safety_checker/config.json"], MODULES, ["tokenizer"], "m"
    )
    assert sorted(needed) == sorted(files)
    for lost, words in (
        ("scheduler/scheduler_config.json", "has no scheduler/scheduler_config.json"),
        ("vae/config.json", "has no vae/config.json"),
        ("tokenizer/merges.txt", "tokenizer of the model 'm' has no tokenizer.json, and not both"),
    ):
        with pytest.raises(ModelError, match=words):
            needed_files([f for f in files if f != lost], MODULES, ["tokenizer"], "m")
