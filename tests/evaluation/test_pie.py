"""PIE-Bench: its format, and its metrics against independent computations, on real runs."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn
from transformers import CLIPModel, CLIPProcessor, ViTModel

from nulltext.cli import main as cli
from nulltext.errors import DataError, ModelError, OptionError
from nulltext.evaluation.metrics import Undefined
from nulltext.evaluation.pie import (
    SIDE,
    Protocol,
    decode_mask,
    read_pie,
    select_categories,
    spec_of,
    without_brackets,
)
from nulltext.evaluation.pie_metrics import (
    SqueezeLpips,
    StructureDistance,
    load_networks,
    pie_metrics,
    resized,
    with_border,
)
from nulltext.evaluation.rows import read_results
from nulltext.image.images import from_uint8
from support.copies import change, copy_of_the_model, shard_with
from support.examples import EXAMPLE
from support.judges import save_clip, save_dino, save_lpips
from support.processes import killed_when

CPU = torch.device("cpu")
FULL = SIDE * SIDE

ROWS_OF_A_DISC = [
    n for y in range(150, 350) for n in (y * SIDE + 256 - int((100**2 - (y - 250) ** 2) ** 0.5), 0)
]
"""Starts of runs; the lengths are put in below."""
for at in range(0, len(ROWS_OF_A_DISC), 2):
    ROWS_OF_A_DISC[at + 1] = 2 * (256 - ROWS_OF_A_DISC[at] % SIDE)

ENTRIES = {
    "000000000000": {
        "image_path": "0_random_140/000000000000.jpg",
        "original_prompt": "a photo of an [orange] flower with a dark background",
        "editing_prompt": "a photo of a [red] flower with a dark background",
        "editing_instruction": "Make the flower red",
        "editing_type_id": "0",
        "blended_word": "flower flower",
        "mask": ROWS_OF_A_DISC,
    },
    "111000000001": {
        "image_path": "1_change_object_80/1_artificial/1_animal/111000000001.jpg",
        "original_prompt": "a photo of an orange [dahlia]",
        "editing_prompt": "a photo of an orange [daisy]",
        "editing_instruction": "Make it a daisy",
        "editing_type_id": "1",
        "blended_word": "rose daisy",
        "mask": [0, 300, FULL - 40, 1000],
    },
    "922000000002": {
        "image_path": "9_change_style_80/2_natural/2_human/922000000002.jpg",
        "original_prompt": "a photo of an orange flower",
        "editing_prompt": "a photo of a yellow flower",
        "editing_instruction": "Make it yellow",
        "editing_type_id": "9",
        "blended_word": "",
        "mask": [0, FULL],
    },
    "800000000003": {
        "image_path": "8_change_background_80/800000000003.jpg",
        "original_prompt": "a photo of an orange flower with a dark background",
        "editing_prompt": "a photo of an orange flower with a light background",
        "editing_instruction": "Make it light",
        "editing_type_id": "8",
        "blended_word": "background background",
        "mask": [],
    },
}


def write_pie(folder, entries=ENTRIES, pictures=True):
    folder.mkdir(exist_ok=True)
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    with Image.open(EXAMPLE) as opened:
        side = min(opened.size)
        photo = opened.convert("RGB").crop((0, 0, side, side)).resize((SIDE, SIDE))
    for turn, entry in enumerate(entries.values()):
        path = folder / "annotation_images" / entry["image_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if pictures:
            photo.rotate(90 * turn).save(path, quality=95)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of a small DINO and CLIP, and a file of LPIPS weights."""
    home = tmp_path_factory.mktemp("networks")
    dino, clip = save_dino(home / "dino"), save_clip(home / "clip", seed=4)
    return {"dino": dino, "clip": clip, "lpips": save_lpips(home / "lpips.safetensors")}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `nulltext benchmark pie` in this process: (exit code, output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nulltext", "benchmark", "pie", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


# The format


def decoded_by_hand(runs):
    """As the published rule says it, pixel by pixel."""
    flat = [0] * FULL
    for at in range(0, len(runs), 2):
        for place in range(runs[at], min(runs[at] + runs[at + 1], FULL)):
            flat[place] = 1
    mask = np.array(flat, dtype=bool).reshape(SIDE, SIDE)
    mask[[0, -1], :] = True
    mask[:, [0, -1]] = True
    return mask


@pytest.mark.parametrize("key", sorted(ENTRIES))
def test_masks_are_decoded_as_published(key):
    runs = ENTRIES[key]["mask"]
    assert np.array_equal(with_border(decode_mask(runs)).numpy(), decoded_by_hand(runs))


def test_a_mask_on_a_smaller_grid_keeps_whatever_it_touches():
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[7, 300] = True
    small = resized(mask, (128, 128))
    assert small.nonzero().tolist() == [[1, 75]]
    assert torch.equal(resized(mask, (SIDE, SIDE)), mask)
    assert resized(mask, (1024, 1024)).sum() == 4


@pytest.mark.parametrize("runs", [[1], [0, 2, 5], [-1, 3], [0, 1.5], [True, 2], ["0", 1]])
def test_a_mask_that_is_no_pairs_is_refused(runs):
    with pytest.raises(DataError, match="pairs"):
        decode_mask(runs)


def test_items_are_what_the_mapping_says(tmp_path):
    first, second, third, fourth = read_pie(write_pie(tmp_path, pictures=False))
    assert first.source == "a photo of an orange flower with a dark background"
    assert first.path == tmp_path / "annotation_images" / "0_random_140" / "000000000000.jpg"
    assert (first.blend, second.blend, third.blend) == (("flower",) * 2, ("rose", "daisy"), ())
    assert [i.category for i in (first, second, third, fourth)] == ["0", "1", "9", "8"]
    assert select_categories([first, second, third, fourth], ["9", "0"]) == [first, third]
    with pytest.raises(OptionError, match="change style"):
        select_categories([first], ["10"])
    with pytest.raises(OptionError, match="no edit of category 3"):
        select_categories([first], ["3"])
    assert without_brackets("[Painting of] a [bird]") == "Painting of a bird"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_path": "../../etc/passwd"}, "leads out"),
        ({"image_path": "/etc/passwd"}, "leads out"),
        ({"original_prompt": " "}, "no original_prompt"),
        ({"editing_prompt": 3}, "no editing_prompt"),
        ({"editing_type_id": "11"}, "not 0 to 9"),
        ({"mask": "0 3"}, "no list"),
        ({"blended_word": ["a", "b"]}, "blended_word"),
    ],
)
def test_a_broken_mapping_is_refused_by_name(tmp_path, change, said):
    key = next(iter(ENTRIES))
    write_pie(tmp_path, {key: ENTRIES[key] | change} if "image_path" not in change else ENTRIES)
    mapping = {key: ENTRIES[key] | change}
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping))
    with pytest.raises(DataError, match=said) as caught:
        read_pie(tmp_path)
    assert key in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", "{}", "[" * 100_000])
def test_a_mapping_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(DataError):
        read_pie(tmp_path)
    with pytest.raises(DataError, match=r"mapping_file\.json"):
        read_pie(tmp_path / "elsewhere")


# The protocol


def test_the_edit_is_the_published_one(flowers, tmp_path):
    first, second, third, _ = read_pie(write_pie(tmp_path, pictures=False))
    spec, remark = spec_of(flowers, first, Protocol())
    editor = spec.editor
    assert (editor.cross_steps, editor.self_steps, editor.alignment) == (0.4, 0.6, "refine")
    assert editor.weights == {"flower": 2.0}
    assert (spec.blend.words, spec.blend.threshold, spec.blend.start) == (("flower",), 0.3, 0.2)
    assert (spec.mask, spec.guidance_scale, remark) == (None, None, "")
    spec, remark = spec_of(flowers, second, Protocol())
    assert spec.blend.words == ("daisy",)
    assert spec.editor.weights == {"daisy": 2.0}
    assert remark == "rose is in neither prompt, so not blended"
    spec, remark = spec_of(flowers, third, Protocol())
    assert (spec.blend, dict(spec.editor.weights), remark) == (None, {}, "")
    assert (Protocol().num_steps, Protocol().guidance_scale, Protocol().deviations) == (50, 7.5, [])


# The metrics, each computed another way


def pair(seed=0, side=128):
    """Two 8-bit pictures that are alike: [3, H, W] in 0 to 255."""
    draw = np.random.default_rng(seed)
    first = draw.integers(0, 256, (3, side, side), dtype=np.uint8)
    second = np.clip(first + draw.normal(0, 20, first.shape), 0, 255).round().astype(np.uint8)
    return first, second


def tensors(*pictures):
    return [from_uint8(torch.from_numpy(p))[0] for p in pictures]


def ssim_by_hand(a, b):
    """[3, H, W] in [0, 1]: the paper's formula with scipy's Gaussian, borders left out."""
    blur = lambda x: gaussian_filter(x, 1.5, truncate=3.5, axes=(1, 2))  # noqa: E731
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    full = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
    full /= (ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)
    return full[:, 5:-5, 5:-5].mean()


def structure_by_hand(folder, a, b):
    """Head by head, from hidden states, token by token."""
    vit = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for picture in (a, b):
        levels = torch.from_numpy(picture).float()[None]
        small = nn.Upsample((224, 224), mode="bilinear")(levels)
        standard = (small - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        with torch.no_grad():
            states = vit(standard, output_hidden_states=True).hidden_states
            last = vit.layers[-1]
            keys = last.attention.k_proj(last.layernorm_before(states[-2]))[0].double()
        cosines = nn.functional.cosine_similarity(keys[:, None], keys[None], dim=2)
        found.append(cosines)
    assert found[0].shape == (50, 50)  # 7 x 7 patches and the class token
    return float(((found[0] - found[1]) ** 2).mean())


class Fire(nn.Module):
    def __init__(self, given, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(given, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def lpips_by_hand(path, a, b):
    """SqueezeNet 1.1 as a plain list of modules, cut after those that LPIPS compares."""
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    features = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192)),
        *(Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )
    weights = safetensors.torch.load_file(path)
    own = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith("net.")}
    features.load_state_dict(own)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = (((t - shift) / scale)[None] for t in tensors(a, b))
    total, layer = 0.0, 0
    with torch.no_grad():
        for index, module in enumerate(features):
            x, y = module(x), module(y)
            if index in (1, 4, 7, 9, 10, 11, 12):
                difference = nn.functional.normalize(x) - nn.functional.normalize(y)
                weight = weights[f"lin{layer}.model.1.weight"]
                total += float((difference**2 * weight.view(1, -1, 1, 1)).sum(1).mean())
                layer += 1
    return total


def clip_by_hand(folder, picture, prompt):
    """Features by their own methods; a picture of channels last."""
    clip, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=[prompt], images=picture, return_tensors="pt", padding=True)
    words = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        pooled = clip.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        seen = clip.visual_projection(pooled)
        said = clip.text_projection(clip.text_model(**words).pooler_output)
    return max(0.0, 100 * float(nn.functional.cosine_similarity(seen, said)))


def all_by_hand(photo, edited, mask, prompts, networks):
    """Of 8-bit pictures [3, H, W] and a published mask that is already on their grid."""
    keep = ~mask
    a, b = photo * keep, edited * keep
    mse = (((a.astype(float) - b) / 255) ** 2).sum() / a.size
    return {
        "structure_distance": structure_by_hand(networks["dino"], photo, edited),
        "psnr_unedited": -10 * np.log10(mse),
        "lpips_unedited": lpips_by_hand(networks["lpips"], a, b),
        "mse_unedited": mse,
        "ssim_unedited": ssim_by_hand(a / 255, b / 255),
        "clip_source": clip_by_hand(networks["clip"], Image.fromarray(last(photo)), prompts[0]),
        "clip_target": clip_by_hand(networks["clip"], Image.fromarray(last(edited)), prompts[1]),
        "clip_target_edited": clip_by_hand(
            networks["clip"], Image.fromarray(last(edited * mask)), prompts[1]
        ),
    }


def last(picture):
    return np.ascontiguousarray(picture.transpose(1, 2, 0))


def agree(figures, truth):
    assert figures.keys() == truth.keys()
    for name, value in truth.items():
        exact = name.startswith(("psnr", "mse", "ssim"))
        relative = 1e-6 if exact else 2e-4  # float32 pixels; float32 networks
        assert figures[name] == pytest.approx(value, rel=relative, abs=1e-9), name
        assert np.isfinite(value)


def test_lpips_at_a_size_that_pooling_does_not_divide(networks):
    a, b = pair(side=101)
    measured = SqueezeLpips.load(networks["lpips"], CPU)(*tensors(a, b))
    assert measured == pytest.approx(lpips_by_hand(networks["lpips"], a, b), rel=1e-5)
    assert measured > 1e-3


def test_all_metrics_equal_an_independent_computation(networks):
    mask = decode_mask(ROWS_OF_A_DISC)
    opened = load_networks(str(networks["dino"]), str(networks["clip"]), networks["lpips"], CPU)
    assert opened.missing == {}
    photo, edited = pair(side=SIDE)
    figures = pie_metrics(*tensors(photo, edited), mask, "a cat", "a dog", opened)
    truth = all_by_hand(photo, edited, with_border(mask).numpy(), ("a cat", "a dog"), networks)
    agree(figures, truth)
    assert len(figures) == 8
    assert figures["structure_distance"] > 1e-6
    assert min(figures[n] for n in figures if n.startswith("clip")) > 1
    assert abs(figures["clip_target"] - figures["clip_target_edited"]) > 0.1


def test_metrics_that_mean_nothing_say_so(networks):
    opened = load_networks(str(networks["dino"]), str(networks["clip"]), networks["lpips"], CPU)
    photo, edited = tensors(*pair())
    prompts = ("a cat", "a dog")
    outside = {"psnr_unedited", "lpips_unedited", "mse_unedited", "ssim_unedited"}
    covered = pie_metrics(photo, edited, decode_mask([0, FULL]), *prompts, opened)
    assert {n for n, f in covered.items() if isinstance(f, Undefined)} == outside
    assert covered["psnr_unedited"].reason == "the mask covers the whole picture"
    empty = pie_metrics(photo, edited, decode_mask([]), *prompts, opened)
    assert {n for n, f in empty.items() if isinstance(f, Undefined)} == {"clip_target_edited"}
    same = pie_metrics(photo, photo, decode_mask([5, 9]), *prompts, opened)
    assert same["psnr_unedited"] == Undefined("equal outside the mask")
    assert same["mse_unedited"] == same["structure_distance"] == same["lpips_unedited"] == 0
    assert same["ssim_unedited"] == pytest.approx(1)


def test_networks_that_are_not_there_leave_no_number(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    bare = load_networks(None, "none", None, CPU)
    assert bare.missing.keys() == {"dino", "lpips", "clip"}
    assert "--dino facebook/dino-vitb8" in bare.missing["dino"]
    figures = pie_metrics(*tensors(*pair()), decode_mask([9, 9]), "a", "b", bare)
    defined = {n for n, f in figures.items() if not isinstance(f, Undefined)}
    assert defined == {"psnr_unedited", "mse_unedited", "ssim_unedited"}


def test_a_network_asked_for_by_name_must_be_there(networks, tmp_path):
    with pytest.raises(ModelError, match="--dino"):
        load_networks(str(tmp_path), "none", None, CPU)
    with pytest.raises(ModelError, match="ViTModel"):
        StructureDistance.load(str(networks["clip"]), CPU)
    with pytest.raises(ModelError, match="patches of 15"):
        StructureDistance.load(str(save_dino(tmp_path / "odd", patch=15)), CPU)
    torn = safetensors.torch.load_file(networks["lpips"])
    del torn["lin3.model.1.weight"]
    safetensors.torch.save_file(torn, tmp_path / "torn.safetensors")
    with pytest.raises(ModelError, match="lin3"):
        SqueezeLpips.load(tmp_path / "torn.safetensors", CPU)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be read"):
        SqueezeLpips.load(tmp_path / "junk.safetensors", CPU)


def test_the_names_of_lpips_weights_are_those_of_its_package():
    """So that what docs/pie.md says to write is what is read."""
    shapes = {name: tuple(w.shape) for name, w in SqueezeLpips().state_dict().items()}
    assert "net.slice1.0.weight" in shapes
    assert shapes["net.slice7.12.expand3x3.weight"] == (256, 64, 3, 3)
    assert [shapes[f"lin{i}.model.1.weight"][1] for i in range(7)] == [
        *(64, 128, 256, 384, 384, 512, 512)
    ]


# A real run


def test_a_run_on_the_bundled_model(run, tmp_path, networks):
    folder = write_pie(tmp_path / "data")
    broken = {
        "300000000004": ENTRIES["800000000003"]
        | {"image_path": "3_delete_object_80/gone.jpg", "editing_type_id": "3"},
        "400000000005": ENTRIES["800000000003"] | {"mask": [1], "editing_type_id": "4"},
    }
    (folder / "mapping_file.json").write_text(json.dumps(ENTRIES | broken))
    options = (folder, "-o", "out", "--steps", 2, "--methods", "direct,ddim", "--json")
    options += tuple(x for name, path in networks.items() for x in (f"--{name}", path))
    code, out, err = run(*options, "--limit", 1)
    assert code == 0, err
    assert "2 rows" in err
    assert "2 steps instead of 50" in err
    code, out, err = run(*options)
    assert code == 2, err  # two entries are bad input
    assert "12 rows, 2 of them done" in err
    settings, rows = read_results(tmp_path / "out")
    assert settings["cross steps"] == 0.4
    assert len(rows) == 12
    check_failures(rows)
    check_rows(tmp_path / "out", [row for row in rows if row["status"] == "ok"], networks)
    result = json.loads(out)
    assert (result["asked"], result["failed"]) == (12, 4)
    check_table(result, rows)
    check_page(tmp_path / "out")
    again = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert run(*options)[0] == 2
    code, out, _ = run(*options, "--limit", 1)
    result = json.loads(out)
    assert (code, result["rows"], result["asked"], result["failed"]) == (0, 12, 2, 0)
    code, out, _ = run(*options, "--estimate")
    assert json.loads(out) == {"edits": 6, "rows": 12, "unet_evaluations": 0}
    code, out, _ = run(*options, "--estimate", "--retry-failed")
    each = 3 * 2 + 4 * 2  # 3 T + 4 T, as below; of `direct` no less
    assert json.loads(out)["unet_evaluations"] >= 2 * 2 * each
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == again
    code, _, err = run(*options[:-6], "--dino", "none")
    assert code == 2
    assert "other settings" in err


def check_failures(rows):
    failed = {(row["image"], row["variant"]): row for row in rows if row["status"] == "failed"}
    assert {key for key, _ in failed} == {"300000000004", "400000000005"}
    assert all(row["input"] for row in failed.values())
    assert "gone.jpg" in failed["300000000004", "ddim"]["reason"]
    assert "pairs" in failed["400000000005", "direct"]["reason"]


def check_rows(folder, rows, networks):
    """Every figure from the pictures on disk."""
    photos = {r["image"]: r["pictures"]["photo"] for r in rows if "photo" in r["pictures"]}
    assert len(photos) == 4
    for row in rows:
        photo, edited = (
            np.array(Image.open(folder / name)).transpose(2, 0, 1)
            for name in (photos[row["image"]], row["pictures"]["picture"])
        )
        side = photo.shape[1]
        runs = ENTRIES[row["image"]]["mask"]
        whole = decoded_by_hand(runs)
        factor = SIDE // side
        mask = whole.reshape(side, factor, side, factor).any(axis=(1, 3))
        prompts = row["notes"]["source"], row["notes"]["target"]
        if mask.all() or not runs:
            missing = {n for n, v in row["figures"].items() if v is None}
            assert missing == row["undefined"].keys()
            assert len(missing) == (4 if mask.all() else 1)
            continue
        agree(row["figures"], all_by_hand(photo, edited, mask, prompts, networks))
        assert row["cost"]["unet_evaluations"] == 6
        assert 5 < row["figures"]["psnr_unedited"] < 60


def check_table(result, rows):
    """Means in the paper's units; nothing undefined in them."""
    direct, ddim = result["table"]
    assert (direct["method"], ddim["method"]) == ("direct", "ddim")
    cell = direct["figures"]["mse_unedited"]
    values = [
        row["figures"]["mse_unedited"]
        for row in rows
        if row["variant"] == "direct" and row["status"] == "ok"
    ]
    known = [v for v in values if v is not None]
    assert (cell["n"], len(known), len(values)) == (3, 3, 4)
    assert cell["mean"] == pytest.approx(1e4 * sum(known) / 3)
    assert cell["undefined"] == {"the mask covers the whole picture": 1}
    assert direct["figures"]["clip_target_edited"]["undefined"] == {"the mask marks nothing": 1}
    (style,) = [
        x for x in result["by_category"] if x["category"][0] == "9" and x["method"] == "ddim"
    ]
    assert style["figures"]["psnr_unedited"]["mean"] is None
    assert direct["published"]["psnr_unedited"] == 27.22
    assert ddim["published"] == {}
    assert sum(direct["failed"].values()) == 2


def check_page(folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 4 * 3
    assert "27.22" in page
    assert "the mask covers the whole picture" in page
    assert "9 change style" in page
    lines = (folder / "summary.csv").read_text().splitlines()
    assert any(line.startswith("pie,ddim,,psnr_unedited,3,") for line in lines)
    assert any("category = 9 change style,psnr_unedited,0,,,,1" in line for line in lines)


def test_a_table_for_a_person_says_what_is_missing(run, run_encoded, tmp_path):
    folder = write_pie(tmp_path / "data")
    options = (folder, "-o", "out", "--steps", 1, "--methods", "direct", "--categories", "8,9")
    options += ("--dino", "none", "--clip", "none")
    code, out, err = run(*options)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["structure", "·10³", "↓", "PSNR"]
    assert lines[1].split()[:2] == ["direct", "missing"]
    assert lines[2].split()[:3] == ["published", "11.65", "27.22"]
    covered = "Missing (the mask covers the whole picture): PSNR, LPIPS, MSE, SSIM in 1 of 2 rows."
    assert covered in lines
    assert "Missing (the mask marks nothing): CLIP edited in 1 of 2 rows." in lines
    assert "left out (--clip none)" in out
    assert "2310.01506" in out
    assert "0.00" not in out
    assert "metric will be missing" in err
    code, out, err = run_encoded("cp1252", "benchmark", "pie", *options)
    assert code == 0, err
    assert out.splitlines()[0].split()[:4] == ["structure", "·10³", "v", "PSNR"]


def test_a_failure_of_the_numbers_outweighs_bad_input(run, tmp_path):
    folder = write_pie(tmp_path / "data")
    gone = ENTRIES["800000000003"] | {"image_path": "gone.jpg"}
    (folder / "mapping_file.json").write_text(json.dumps(ENTRIES | {"300000000004": gone}))
    broken = copy_of_the_model(tmp_path / "broken")
    change(shard_with(broken / "unet", "conv_in.weight"), "conv_in.weight", float("nan"))
    code, out, err = run(
        *(folder, "-o", "out", "--steps", 1, "--methods", "ddim", "--categories", 8),
        *("--dino", "none", "--clip", "none", "--model", "broken", "-q"),
    )
    assert (code, out) == (1, "")
    assert err.startswith("Error: 2 rows failed; the first: ")
    _, rows = read_results(tmp_path / "out")
    assert sorted(row["input"] for row in rows) == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--methods", "dream"), "dream"),
        (("--categories", "12"), "12"),
        (("--limit", "0"), "limit"),
        (("--inner-steps", "0"), "inner-steps"),
        (("--lpips", "gone.safetensors"), "gone"),
        (("--resume",), "to continue"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(run, tmp_path, options, said):
    code, out, err = run(write_pie(tmp_path / "data", pictures=False), *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "pie").exists()


def test_an_estimate_counts_and_does_nothing(run, tmp_path):
    folder = write_pie(tmp_path / "data", pictures=False)
    code, out, _ = run(
        *(folder, "--estimate", "--json", "--inner-steps", 10),
        *("--methods", "ddim,null-text,negative-prompt"),
    )
    assert code == 0
    # 3 T + 4 T (w = 7.5: source and target, two passes each), 3 T + 2 T N + 4 T, and 2 T + 3 T,
    # as the prompt's embedding as null embedding needs one pass of the source
    each = 150 + 200, 150 + 1000 + 200, 100 + 150
    found = {"edits": 4, "rows": 12, "unet_evaluations": 4 * sum(each)}
    assert json.loads(out) == found
    assert not (tmp_path / "pie").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(run, tmp_path):
    folder = write_pie(tmp_path / "data")
    options = (folder, "-o", "out", "--steps", 1, "--methods", "direct,ddim")
    options += ("--dino", "none", "--clip", "none", "--categories", "0,1,8")
    results = tmp_path / "out" / "results.jsonl"
    killed_when(
        lambda: results.is_file() and results.read_bytes().count(b"\n") >= 2,
        *("benchmark", "pie", *options),
    )
    kept = results.read_bytes()
    code, _, err = run(*options)
    assert code == 0, err
    whole = kept[: kept.rfind(b"\n") + 1]
    assert results.read_bytes().startswith(whole)
    keys = [(r["image"], r["variant"]) for r in map(json.loads, results.read_text().splitlines())]
    assert len(keys) == len(set(keys)) == 6
    for row in read_results(tmp_path / "out")[1]:
        assert row["status"] == "ok"
        assert all((tmp_path / "out" / name).is_file() for name in row["pictures"].values())
