"""ClipCap: mapping networks by formula, decoding by an independent search, pixels, the folder."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from transformers import CLIPImageProcessor

from nulltext.captioning.captioner import (
    Caption,
    CaptionModel,
    CaptionWord,
    ImagePreprocessing,
    MlpMapper,
    MlpSettings,
    TransformerSettings,
    beam_search,
)
from nulltext.captioning.folder import (
    load_captioner,
    preprocessor_config,
    read_preprocessing,
    save_captioner,
)
from nulltext.captioning.known_photos import KNOWN_PHOTOS, KnownPhotos
from nulltext.errors import ImageError, ModelError, OptionError, OutputError
from nulltext.image.images import CropBox
from nulltext.image.photos import load_photo
from support import captioners

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, a handful of small layers


@pytest.fixture(scope="module")
def tiny():
    return captioners.captioner()


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def either(request):
    return captioners.captioner(request.param)


def features(rows=2):
    return torch.randn(
        rows, captioners.FEATURES, generator=torch.Generator().manual_seed(1)
    ).double()


def test_the_mlp_is_its_formula():
    mapper = captioners.mapper("mlp").double()
    w1, b1, w2, b2 = mapper.parameters()
    expected = torch.tanh(features() @ w1.T + b1) @ w2.T + b2
    got = mapper(features())
    assert got.shape == (2, captioners.PREFIX, captioners.WIDTH)
    torch.testing.assert_close(got.flatten(1), expected)


def test_the_transformer_is_its_formula():
    mapper = captioners.mapper("transformer").double()
    own = dict(mapper.named_parameters())
    heads, width = mapper.settings.heads, captioners.WIDTH

    def norm(rows, name):
        mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, correction=0, keepdim=True)
        scaled = (rows - mean) / torch.sqrt(variance + 1e-5)
        return scaled * own[f"{name}.weight"] + own[f"{name}.bias"]

    for row, feature in enumerate(features()):
        x = (own["linear.weight"] @ feature + own["linear.bias"]).reshape(-1, width)
        x = torch.cat([x, own["prefix_const"]])
        for layer in ("transformer.layers.0", "transformer.layers.1"):
            seen = norm(x, f"{layer}.norm1")
            queries = seen @ own[f"{layer}.attn.to_queries.weight"].T
            both = seen @ own[f"{layer}.attn.to_keys_values.weight"].T
            keys, values = both[:, :width], both[:, width:]
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                weights = queries[:, part] @ keys[:, part].T / math.sqrt(width / heads)
                mixed.append(weights.softmax(-1) @ values[:, part])
            project = own[f"{layer}.attn.project.weight"]
            x = x + torch.cat(mixed, -1) @ project.T + own[f"{layer}.attn.project.bias"]
            hidden = norm(x, f"{layer}.norm2") @ own[f"{layer}.mlp.fc1.weight"].T
            hidden = (hidden + own[f"{layer}.mlp.fc1.bias"]).clamp(min=0)
            x = x + hidden @ own[f"{layer}.mlp.fc2.weight"].T + own[f"{layer}.mlp.fc2.bias"]
        torch.testing.assert_close(mapper(features())[row], x[-captioners.PREFIX :])


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        mlp = MlpMapper(MlpSettings())
    assert [tuple(weight.shape) for weight in mlp.parameters()] == [
        *((3840, 512), (3840,)),
        *((7680, 3840), (7680,)),
    ]
    own = TransformerSettings()
    assert (own.clip_length, own.prefix_length, own.layers, own.heads) == (40, 40, 8, 8)
    assert own.hidden == 2 * own.width


def published_beams(language, prefix, stop, beams, longest):
    """The published search: fixed tensors, where a stopped row goes on with token 0 for nothing."""
    embeds, tokens, scores = prefix, None, None
    lengths, stopped = torch.ones(beams), torch.zeros(beams, dtype=torch.bool)
    for _ in range(longest):
        logits = language(inputs_embeds=embeds).logits[:, -1].double().softmax(-1).log()
        if scores is None:
            scores, following = logits[0].topk(beams)
            tokens, embeds = following[:, None], embeds.expand(beams, -1, -1)
        else:
            logits[stopped] = -math.inf
            logits[stopped, 0] = 0
            total = scores[:, None] + logits
            lengths[~stopped] += 1
            mean, flat = (total / lengths[:, None]).flatten().topk(beams)
            origin, following = flat // total.shape[1], flat % total.shape[1]
            lengths, embeds, stopped = lengths[origin], embeds[origin], stopped[origin]
            tokens = torch.cat([tokens[origin], following[:, None]], dim=1)
            scores = mean * lengths
        embeds = torch.cat([embeds, language.transformer.wte(following)[:, None]], dim=1)
        stopped = stopped | (following == stop)
        if stopped.all():
            break
    order = (scores / lengths).argsort(descending=True)
    return [tuple(tokens[i, : int(lengths[i])].tolist()) for i in order]


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_beam_search_finds_what_the_published_search_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language = captioners.gpt(20)
    prefix = 3 * torch.randn(1, captioners.PREFIX, captioners.WIDTH, generator=generator)
    for stop, beams in itertools.product((3, 7), (2, 5)):
        expected = published_beams(language, prefix, stop, beams, longest=12)
        got = beam_search(language, prefix, stop=stop, beams=beams, longest=12)
        assert [sentence.tokens for sentence in got] == expected


@torch.no_grad()
def test_many_beams_find_the_best_of_all_sentences(tiny):
    language = captioners.gpt(4)
    prefix = torch.randn(
        1, captioners.PREFIX, captioners.WIDTH, generator=torch.Generator().manual_seed(5)
    )
    stop, longest = 2, 4

    def mean(tokens):
        ids = torch.tensor([tokens])
        embeds = torch.cat([prefix, language.transformer.wte(ids)], dim=1)
        scores = language(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
        places = range(captioners.PREFIX - 1, captioners.PREFIX - 1 + len(tokens))
        return sum(float(scores[p, t]) for p, t in zip(places, tokens, strict=True)) / len(tokens)

    sentences = [
        tokens
        for length in range(1, longest + 1)
        for tokens in itertools.product(range(4), repeat=length)
        if stop not in tokens[:-1] and (tokens[-1] == stop or length == longest)
    ]
    best = max(sentences, key=mean)
    found = beam_search(language, prefix, stop=stop, beams=4**longest, longest=longest)[0]
    assert found.tokens == best
    assert found.mean == pytest.approx(mean(best), abs=1e-4)


@torch.no_grad()
def test_one_beam_takes_the_likeliest_token_until_the_stop(tiny):
    model = tiny.model
    prefix = model.mapper(features(1).float())
    (everything,) = beam_search(model.gpt, prefix, stop=-1, beams=1, longest=9)
    embeds, expected = prefix, []
    for _ in range(9):
        token = model.gpt(inputs_embeds=embeds).logits[0, -1].argmax()
        expected.append(int(token))
        embeds = torch.cat([embeds, model.gpt.transformer.wte(token)[None, None]], dim=1)
    assert everything.tokens == tuple(expected)
    stop = expected[4]
    first = expected.index(stop)
    (stopped,) = beam_search(model.gpt, prefix, stop=stop, beams=1, longest=9)
    assert stopped.finished
    assert stopped.tokens == tuple(expected[: first + 1])


def test_a_caption_has_at_most_67_tokens_and_what_gpt2_has_places_for(tiny):
    assert tiny.model.longest == 67
    short = CaptionModel(
        captioners.clip(), captioners.mapper("mlp"), captioners.gpt(20, 9), unit_features=False
    )
    assert short.longest == 9 - captioners.PREFIX
    prefix = torch.zeros(1, captioners.PREFIX, captioners.WIDTH)
    assert len(beam_search(tiny.model.gpt, prefix, stop=-1, beams=1)[0].tokens) == 67


def test_pixels_are_those_of_the_clip_processor(photo):
    square = photo.crop((0, 0, 48, 48))
    theirs = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})(
        square, return_tensors="pt"
    )["pixel_values"]
    ours = ImagePreprocessing(16).apply(load_photo(square), CropBox(0, 0, 48, 48))
    level = 1 / 255 / min(ImagePreprocessing().deviation)
    assert (ours - theirs).abs().max() <= 1.01 * level  # resizers round within one level
    assert (ours - theirs).abs().mean() < 0.2 * level


def test_a_share_is_cut_out_of_the_middle_as_the_clip_processor_does(photo, tmp_path):
    square, preprocessing = photo.crop((0, 0, 40, 40)), ImagePreprocessing(16, share=0.8)
    theirs = CLIPImageProcessor(**preprocessor_config(preprocessing))(square, return_tensors="pt")
    ours = preprocessing.apply(load_photo(square), CropBox(0, 0, 40, 40))
    apart = (ours - theirs["pixel_values"])[..., 2:-2, 2:-2].abs()  # they shrink before they cut
    assert apart.max() <= 1.01 / 255 / min(ImagePreprocessing().deviation)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(preprocessor_config(preprocessing)))
    assert read_preprocessing(path) == preprocessing
    path.write_text(
        json.dumps(preprocessor_config(preprocessing) | {"size": {"shortest_edge": 15}})
    )
    with pytest.raises(ModelError, match="shortest edge is from 16"):
        read_preprocessing(path)


def test_the_crop_is_what_is_looked_at(tiny, photo):
    seen, box = load_photo(photo), CropBox(10, 4, 40, 30)
    inside = ImagePreprocessing(16).apply(seen, box)
    pixels = np.array(photo)
    pixels[:, :15] = pixels[:, 45:] = 0  # all but the centre square of the box
    pixels[:4] = pixels[34:] = 0
    changed = load_photo(Image.fromarray(pixels))
    assert torch.equal(inside, ImagePreprocessing(16).apply(changed, box))
    assert not torch.equal(inside, ImagePreprocessing(16).apply(seen, CropBox(0, 0, 64, 48)))
    assert tiny.caption(seen, crop=box) == tiny.caption(changed, crop=box)


def test_unit_features_have_length_one(photo):
    pixels = ImagePreprocessing(16).apply(load_photo(photo), CropBox(0, 0, 48, 48))
    plain, unit = captioners.captioner("mlp").model, captioners.captioner("transformer").model
    raw = plain.features(pixels)
    torch.testing.assert_close(raw, plain.vision(pixel_values=pixels).image_embeds)
    assert raw.norm().item() != pytest.approx(1.0, abs=1e-3)
    assert unit.features(pixels).norm().item() == pytest.approx(1.0, abs=1e-5)


def test_a_caption_is_words_without_a_full_stop(tiny, photo):
    text = tiny.tokenizer("a photo of a red rose.", add_special_tokens=False)["input_ids"]
    assert text[-1] == tiny.stop
    assert tiny.tokenizer.decode(text[:-1]).strip() == "a photo of a red rose"
    for beams in (1, 3):
        assert "." not in tiny.caption(photo, beams=beams)
    with pytest.raises(OptionError, match="beams is 0"):
        tiny.caption(photo, beams=0)
    with pytest.raises(ImageError, match="crop box"):
        tiny.caption(photo, crop=CropBox(60, 0, 40, 40))


@torch.no_grad()
def test_the_words_have_the_probabilities_of_their_tokens(tiny, photo):
    """Against one pass over the whole sentence, word ends as CLIP's vocabulary marks them."""
    flowers = load_captioner()
    dahlia = load_photo(Path(__file__).parents[2] / "examples" / "dahlia.jpg")
    said = flowers.describe(dahlia, beams=3)
    assert said.text == flowers.caption(dahlia, beams=3) == str(said)
    pixels = flowers.preprocessing.apply(dahlia, CropBox(0, 0, *dahlia.size))
    prefix, gpt = flowers.model.prefix(pixels), flowers.model.gpt
    best = beam_search(gpt, prefix, stop=flowers.stop, beams=3)[0]
    read = torch.cat([prefix, gpt.transformer.wte(torch.tensor([best.tokens]))], dim=1)
    chances = gpt(inputs_embeds=read).logits[0].double().softmax(-1)
    expected, opens = [], True
    for place, token in enumerate(best.tokens[:-1], prefix.shape[1] - 1):
        expected += [1.0] * opens
        expected[-1] *= float(chances[place, token])
        opens = flowers.tokenizer.convert_ids_to_tokens(token).endswith("</w>")
    got = [word.probability for word in said.words]
    assert got == pytest.approx(expected, rel=1e-4)
    said = tiny.describe(photo)
    assert (said.known, said.doubts, said.note) == (None, {}, None)  # a captioner that cannot tell


def test_doubts_are_of_words_that_name_something():
    words = [("a", 0.5), ("photo", 0.6), ("of", 1.0), ("an", 0.9), ("orange", 0.96), ("rose", 0.98)]
    said = Caption(tuple(CaptionWord(*word) for word in words), "flowers", known=True)
    assert said.doubts == {"known": True, "unsure": ["orange"]}
    assert said.note == "Note: the captioner 'flowers' is not sure of \"orange\"."
    assert replace(said, words=said.words[-1:]).note is None
    assert replace(said, known=False).note == (
        "Note: this photo is unlike those that the captioner 'flowers' was trained on; its words "
        "may be wrong."
    )


def test_photos_are_known_by_what_lies_outside_of_the_main_directions():
    """Points near four directions of ten; the distances of others by least squares."""
    rng = torch.Generator().manual_seed(0)
    plane, middle = torch.randn(4, 10, generator=rng), 50 * torch.randn(10, generator=rng)
    spread = 9.0 * torch.randn(300, 4, generator=rng)
    points = spread @ plane + middle + 0.01 * torch.randn(300, 10, generator=rng)
    points *= torch.rand(300, 1, generator=rng) + 0.1  # lengths do not count
    known = KnownPhotos.of(points[:200], points[200:])
    assert known.directions.shape == (5, 10)  # half of the numbers of an embedding
    inside = sum(known.knows(point[None]) for point in points[200:])
    assert inside == 90
    far = points[:3] + 90 * torch.randn(3, 10, generator=rng)
    rest = far / far.norm(dim=1, keepdim=True) - known.mean
    fitted = torch.linalg.lstsq(known.directions.T, rest.T).solution.T @ known.directions
    # atol: directions are rounded to half precision
    torch.testing.assert_close(known.distances(far), (rest - fitted).norm(dim=1), atol=2e-3, rtol=0)
    assert not any(known.knows(point[None]) for point in far)


@pytest.fixture
def knowing(tiny):
    features = torch.randn(60, captioners.FEATURES, generator=torch.Generator().manual_seed(2))
    return replace(tiny, known_photos=KnownPhotos.of(features[:40], features[40:]))


def test_known_photos_travel_with_the_captioner(knowing, photo, tmp_path):
    save_captioner(knowing, tmp_path / "x", dtype=torch.float16)
    again = load_captioner(tmp_path / "x").known_photos
    assert again.farthest == pytest.approx(knowing.known_photos.farthest, rel=1e-6)
    for name in ("mean", "directions"):
        assert torch.equal(getattr(again, name), getattr(knowing.known_photos, name))
    assert knowing.describe(photo).known in (True, False)
    far = replace(again, farthest=0.0)
    assert not replace(knowing, known_photos=far).describe(photo).known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": torch.zeros(13)}, "shapes"),
        ({"directions": torch.zeros(65, captioners.FEATURES)}, "has 65 directions"),
        ({"farthest": torch.tensor([math.nan])}, "not finite"),
        ({"more": torch.zeros(1)}, "shapes"),
        (None, "cannot be read"),
    ],
)
def test_damaged_known_photos_are_said(knowing, tmp_path, change, said):
    save_captioner(knowing, tmp_path / "x", dtype=torch.float16)
    path = tmp_path / "x" / KNOWN_PHOTOS
    good = load_file(path)
    path.write_bytes(b"{}" if change is None else save({**good, **change}))
    with pytest.raises(ModelError, match=rf"known_photos\.safetensors.*{said}.*or delete it"):
        load_captioner(tmp_path / "x")
    path.unlink()
    assert load_captioner(tmp_path / "x").known_photos is None


def test_a_folder_brings_back_the_same_captioner(either, photo, tmp_path):
    folder = tmp_path / "again"
    save_captioner(either, folder, dtype=torch.float32)
    again = load_captioner(folder)
    assert again.preprocessing == either.preprocessing
    for name, tensor in either.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    for beams in (1, 4):
        assert again.caption(photo, beams=beams) == either.caption(photo, beams=beams)
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}
    save_captioner(either, folder, dtype=torch.float16)
    half = load_captioner(folder).model.mapper.state_dict()
    for name, tensor in either.model.mapper.state_dict().items():
        torch.testing.assert_close(half[name], tensor.half().float())


def test_what_is_wrong_with_a_folder_is_said(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"no captioner 'gone'.*--stage captioner"):
        load_captioner("gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_captioner(tmp_path / "empty")
    folder = tmp_path / "tiny"
    save_captioner(tiny, folder, dtype=torch.float32)
    good = json.loads((folder / "config.json").read_text())
    for change, said in [
        ({"format": "else"}, "is no captioner"),
        ({"version": 2}, "version 2"),
        ({"mapper": {"kind": "rnn"}}, "settings"),
        ({"mapper": good["mapper"] | {"hidden": 25}}, "mapper of the captioner"),
        ({"tokenizer": "AutoTokenizer"}, "known are"),
    ]:
        (folder / "config.json").write_text(json.dumps(good | change))
        with pytest.raises(ModelError, match=said):
            load_captioner(folder)
    (folder / "config.json").write_text(json.dumps(good))
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    marked = load_captioner(folder, device="cpu").model.mapper.state_dict()
    assert all(torch.equal(marked[name], t) for name, t in tiny.model.mapper.state_dict().items())
    weights = folder / "gpt2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="gpt2"):
        load_captioner(folder)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("clip/preprocessor_config.json", {"crop_size": {"height": 8}}, "of 8 pixels, .* at 16"),
        ("clip/config.json", {"return_dict": False}, "'tuple' object"),
        ("gpt2/config.json", {"return_dict": False}, "'tuple' object"),
    ],
)
def test_networks_that_do_not_work_together_are_found_at_once(tiny, tmp_path, file, change, said):
    folder = tmp_path / "tiny"
    save_captioner(tiny, folder, dtype=torch.float32)
    good = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(good | change))
    with pytest.raises(ModelError, match=f"do not work together .*{said}.*; get it again"):
        load_captioner(folder)


def test_a_folder_is_complete_before_it_has_its_name(tiny, tmp_path):
    folder = tmp_path / "tiny"

    def interrupted(fresh):
        assert (fresh / "config.json").is_file()
        assert not folder.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_captioner(tiny, folder, dtype=torch.float32, finish=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_overwritten(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds no captioner"):
        save_captioner(tiny, tmp_path, dtype=torch.float16)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(ModelError, match="embeddings of 14 numbers and the mapper reads 12"):
        CaptionModel(
            captioners.clip(14), captioners.mapper("mlp"), captioners.gpt(20), unit_features=False
        )
