"""Measures, statistics, data sources, judges: each against an independent truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import nulltext
from nulltext.errors import DataError, ExtraError, ModelError, OptionError, require
from nulltext.evaluation.datasets import (
    captions_of_others,
    photos_digest,
    read_photos,
    sample_photos,
)
from nulltext.evaluation.metrics import (
    ClipJudge,
    DiffusionJudge,
    Undefined,
    load_lpips,
    noise_statistics,
    outside_disc,
    region_psnr,
    region_ssim,
)
from nulltext.evaluation.plan import check_variants
from nulltext.evaluation.summary import summarise
from nulltext.words.captions import caption, recoloured
from support.judges import save_clip


def picture(seed, side=32):
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ssim_by_hand(a, b):
    """Wang et al. 2004 with explicit Gaussian sums, away from the border."""
    radius, sigma = 5, 1.5
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    values = []
    for one, other in zip(((a + 1) / 2).numpy(), ((b + 1) / 2).numpy(), strict=True):
        for i in range(radius, a.shape[1] - radius):
            for j in range(radius, a.shape[2] - radius):
                window = np.s_[i - radius : i + radius + 1, j - radius : j + radius + 1]
                p, q = one[window].astype(np.float64), other[window].astype(np.float64)
                mp, mq = (kernel * p).sum(), (kernel * q).sum()
                sp, sq = (kernel * p**2).sum() - mp**2, (kernel * q**2).sum() - mq**2
                spq = (kernel * p * q).sum() - mp * mq
                top = (2 * mp * mq + 1e-4) * (2 * spq + 9e-4)
                values.append(top / ((mp**2 + mq**2 + 1e-4) * (sp + sq + 9e-4)))
    return float(np.mean(values))


def test_ssim_equals_its_formula_and_is_one_for_equals():
    a, b = picture(0), (picture(0) + 0.3 * picture(1)).clamp(-1, 1)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[5:-5, 5:-5] = True
    assert region_ssim(a, b, inside) == pytest.approx(ssim_by_hand(a, b), abs=1e-6)  # float64
    assert region_ssim(a, a) == pytest.approx(1.0)


def test_psnr_in_a_region_sees_that_region_alone():
    a, b = picture(0), picture(0).clone()
    b[:, :16] += 0.1
    region = torch.zeros(32, 32, dtype=torch.bool)
    region[:16] = True
    a, b = a * 0.5, b * 0.5
    assert region_psnr(a, b, region) == pytest.approx(-20 * math.log10(0.025), abs=1e-4)
    assert region_psnr(a, b) == pytest.approx(nulltext.image.psnr(a, b), abs=1e-9)
    assert region_psnr(a, b, ~region) == Undefined("the pictures are equal")
    assert isinstance(region_psnr(a, b, region & ~region), Undefined)
    assert isinstance(region_ssim(a, b, region & ~region), Undefined)
    assert isinstance(region_ssim(a[:, :8, :8], b[:, :8, :8]), Undefined)


def test_the_disc_covers_half():
    assert outside_disc(200, 200).float().mean() == pytest.approx(0.5, abs=0.01)
    assert not outside_disc(64, 64)[32, 32]


def test_noise_figures_know_noise_from_structure():
    noise = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = noise_statistics(noise)
    assert figures["noise_mean"] == pytest.approx(0, abs=0.02)  # 16384 values: 0.008
    assert figures["noise_variance"] == pytest.approx(1, abs=0.04)
    assert figures["noise_autocorrelation"] == pytest.approx(0, abs=0.02)
    expected = torch.distributions.Normal(0, 1).log_prob(noise.double()).mean().item()
    assert figures["noise_log_likelihood"] == pytest.approx(expected, abs=1e-6)
    smooth = torch.nn.functional.avg_pool2d(noise[None], 2, stride=1)[0]
    # neighbours of a 2 x 2 mean share half their values
    assert noise_statistics(smooth)["noise_autocorrelation"] == pytest.approx(0.5, abs=0.05)
    assert isinstance(noise_statistics(torch.zeros(1, 4, 4))["noise_autocorrelation"], Undefined)


def test_lpips_that_cannot_be_had_is_undefined_and_never_zero(monkeypatch):
    def missing(module, extra, what_for):
        raise ExtraError("no")

    monkeypatch.setattr("nulltext.evaluation.metrics.require", missing)
    figure = load_lpips()(picture(0), picture(0))
    assert isinstance(figure, Undefined)
    assert "lpips" in figure.reason


def test_a_missing_library_says_how_to_install_it():
    with pytest.raises(ExtraError, match=r"pip install 'nulltext\[study\]'"):
        require("no_such_library_here", "study", "SSIM")


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        values = draw.normal(3.0, 2.0, 30)
        summary = summarise([float(v) for v in values], seed=trial)
        covered += summary.low <= 3.0 <= summary.high
        assert summary.mean == pytest.approx(values.mean())
    # 95% of 60 is 57; the percentile interval is a little narrow at n = 30
    assert 52 <= covered <= 60


def test_undefined_figures_are_counted_and_leave_the_mean_alone():
    summary = summarise([1.0, Undefined("a"), 3.0, Undefined("a"), Undefined("b")])
    assert (summary.n, summary.mean) == (2, 2.0)
    assert summary.undefined == {"a": 2, "b": 1}
    nothing = summarise([Undefined("a")])
    assert (nothing.n, nothing.mean, nothing.low) == (0, None, None)
    assert summarise([5.0]).low is None
    assert summarise([1.0, 2.0, 4.0]) == summarise([1.0, 2.0, 4.0])


def save_pictures(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (90, 120, 30)).save(path)


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_labels_become_captions_and_edits_by_template(tmp_path):
    write_lines(
        tmp_path / "labels.jsonl",
        {
            "file": "a.jpg",
            "split": "validation",
            "kind": "rose",
            "colour": "orange",
            "background": "dark",
        },
        {"file": "b.jpg", "split": "train", "kind": "rose", "colour": "red", "background": None},
        {"file": "c.jpg", "split": "validation", "kind": None, "colour": "red", "background": None},
        {
            "file": "d.jpg",
            "split": "validation",
            "kind": "tulip",
            "colour": "red",
            "background": None,
        },
    )
    first, second = read_photos(tmp_path)
    assert first.captions == ("a photo of an orange rose with a dark background",)
    assert first.target == "a photo of a purple rose with a dark background"
    assert (second.name, second.captions) == ("d.jpg", ("a photo of a red tulip",))
    assert [item.name for item in read_photos(tmp_path, split="train")] == ["b.jpg"]
    label = {"kind": "iris", "colour": "blue", "background": None}
    assert caption(label) == "a photo of a blue iris"
    assert recoloured(label) == "a photo of a red iris"


def test_a_plain_folder_with_captions_or_with_texts(tmp_path):
    save_pictures(tmp_path, "x/a.png", "b.jpg", "c.jpg")
    (tmp_path / "x" / "a.txt").write_text("a cat\n\na grey cat on a mat\n")
    (tmp_path / "b.txt").write_text("  \n")
    (only,) = read_photos(tmp_path)
    assert (only.name, only.captions) == ("x/a.png", ("a cat", "a grey cat on a mat"))
    write_lines(
        tmp_path / "captions.jsonl",
        {"file": "b.jpg", "caption": "a dog", "target": "a wolf"},
        {"file": "c.jpg", "captions": ["a bird", "a small bird"]},
    )
    write_lines(tmp_path / "edits.jsonl", {"file": "c.jpg", "target": "a bat", "mask": "m.png"})
    dog, bird = read_photos(tmp_path)
    assert (dog.captions, dog.target) == (("a dog",), "a wolf")
    assert (bird.target, bird.mask) == ("a bat", tmp_path / "m.png")


def test_files_with_carriage_returns_read_as_without(tmp_path):
    save_pictures(tmp_path, "a.png", "b.jpg")
    lines = [{"file": "a.png", "captions": ["a cat", "a pet"]}, {"file": "b.jpg", "caption": "x"}]
    texts = {
        "captions.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "edits.jsonl": json.dumps({"file": "b.jpg", "target": "a wolf"}) + "\n",
        "a.txt": "a cat\na grey cat\n",
    }
    read = []
    for end in ("\n", "\r\n"):
        for name, text in texts.items():
            (tmp_path / name).write_bytes(text.replace("\n", end).encode())
        read.append(read_photos(tmp_path))
        (tmp_path / "captions.jsonl").unlink()
        (tmp_path / "edits.jsonl").unlink()
        read.append(read_photos(tmp_path))
    assert read[:2] == read[2:]
    assert [item.captions for item in read[2]] == [("a cat", "a pet"), ("x",)]
    assert [item.captions for item in read[3]] == [("a cat", "a grey cat")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions.jsonl", "{", "line 1"),
        ("captions.jsonl", "[1]\n", "object"),
        ("captions.jsonl", '{"file": "a.jpg"}\n', "caption"),
        ("captions.jsonl", '{"caption": "a cat"}\n', "file"),
        ("captions.jsonl", '{"file": "a.jpg", "caption": "a", "target": 3}\n', "target"),
        ("captions.jsonl", "\n", "no captioned photo"),
        ("labels.jsonl", '{"kind": "rose", "colour": "red"}\n', "file"),
        ("captions_val2017.json", "{}", "COCO"),
        ("captions_val2017.json", "nonsense", "COCO"),
    ],
)
def test_malformed_data_is_refused_by_file_and_line(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_photos(tmp_path)


def test_edits_of_unknown_photos_and_missing_folders_are_refused(tmp_path):
    write_lines(tmp_path / "captions.jsonl", {"file": "a.jpg", "caption": "a cat"})
    write_lines(tmp_path / "edits.jsonl", {"file": "zebra.jpg", "target": "a dog"})
    with pytest.raises(DataError, match=r"zebra\.jpg"):
        read_photos(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        read_photos(tmp_path / "gone")


def coco(folder):
    """COCO's validation captions in miniature, in the published layout."""
    save_pictures(folder, "val2017/000000000139.jpg", "val2017/000000000285.jpg")
    annotations = [
        {"image_id": 285, "id": 11, "caption": "A big brown bear. "},
        {"image_id": 139, "id": 12, "caption": "A living room."},
        {"image_id": 285, "id": 13, "caption": "A bear in the grass."},
        {"image_id": 139, "id": 14, "caption": "A room with chairs."},
        {"image_id": 285, "id": 15, "caption": "Close-up of a bear."},
    ]
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": 32, "width": 40, "license": 2}
        for i in (285, 139)
    ]
    (folder / "annotations").mkdir()
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2017.json").write_text(json.dumps(content))


def test_coco_as_published(tmp_path, capsys):
    coco(tmp_path)
    room, bear = read_photos(tmp_path)
    assert room.path.is_file()
    assert (room.name, room.captions) == (
        "000000000139.jpg",
        ("A living room.", "A room with chairs."),
    )
    assert bear.captions == ("A big brown bear.", "A bear in the grass.", "Close-up of a bear.")
    assert capsys.readouterr().out == ""
    assert read_photos(tmp_path / "annotations") == [room, bear]


def test_coco_without_its_pictures_says_where_they_belong(tmp_path):
    coco(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"unpack val2017\.zip"):
        read_photos(tmp_path)


def test_a_sample_is_drawn_by_seed_with_a_caption_each(tmp_path):
    coco(tmp_path)
    items = read_photos(tmp_path)
    drawn = [sample_photos(items, 2, seed) for seed in range(20)]
    assert drawn == [sample_photos(items, 2, seed) for seed in range(20)]
    assert {item.name for item in drawn[0]} == {item.name for item in items}
    owns = {i.captions[0] for sample in drawn for i in sample if i.name.endswith("285.jpg")}
    assert len(owns) == 3, "every caption has its turn"
    assert all(len(set(i.captions)) == len(i.captions) > 1 for sample in drawn for i in sample)
    assert photos_digest(drawn[0]) == photos_digest(sample_photos(items, 2, 0))
    with pytest.raises(DataError, match="from 1 to 2"):
        sample_photos(items, 3, 0)


def test_strangers_do_not_depend_on_how_many_photos_are_studied(tmp_path):
    coco(tmp_path)
    items = read_photos(tmp_path)
    found = captions_of_others(items, 0)
    assert found["000000000139.jpg"] == "A big brown bear."
    assert captions_of_others(items, 0) == found
    same = [replace(item, captions=("A cat.",)) for item in items]
    assert set(captions_of_others(same, 0).values()) == {None}


def test_the_diffusion_judge_prefers_what_the_model_painted(flowers):
    """A picture sampled under a prompt agrees with that prompt, by its own model."""
    prompts = ("a photo of a red rose", "a photo of a yellow sunflower")
    judge = DiffusionJudge(flowers)
    pictures = []
    for prompt in prompts:
        z = torch.randn(1, *flowers.latents_shape, generator=torch.Generator().manual_seed(1))
        embeds = flowers.embed([prompt])
        with torch.no_grad():
            for step in flowers.schedule.grid(5):
                z = step.denoise(z, flowers.predict(z, step.noisier, embeds))
        pictures.append(flowers.decode(z)[0])
    for index, picture_of in enumerate(pictures):
        mine, other = prompts[index], prompts[1 - index]
        verdict = judge.judge(picture_of, other, mine)
        assert verdict.prefers_target
        assert verdict.score > 0
    back = judge.judge(pictures[0], *prompts)
    assert back.score < 0
    assert not back.prefers_target


def test_the_judge_counts_its_evaluations(tiny_sd1):
    calls = []
    handle = tiny_sd1.unet.register_forward_hook(lambda m, args, o: calls.append(len(args[0])))
    try:
        judge = DiffusionJudge(tiny_sd1)
        first = judge.judge(picture(0), "a cat", "a dog")
    finally:
        handle.remove()
    assert sum(calls) == judge.unet_evaluations
    assert judge.judge(picture(0), "a cat", "a dog") == first


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_the_clip_judge_is_the_cosine_of_features(clip_folder):
    for path in clip_folder.glob("*.json"):  # as Notepad saves them
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    judge = ClipJudge.load(str(clip_folder), torch.device("cpu"))
    verdict = judge.judge(picture(0), "a cat", "a dog")
    inputs = judge.processor(
        text=["a cat", "a dog"],
        images=nulltext.to_pil(picture(0)),
        return_tensors="pt",
        padding=True,
    )
    output = judge.clip(**inputs)
    cosines = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    assert verdict.score == pytest.approx(100 * cosines[1].item(), abs=1e-3)
    assert verdict.prefers_target == bool(cosines[1] > cosines[0])
    assert judge.unet_evaluations == 0
    assert "CLIP" in judge.name


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(ModelError, match="--clip"):
        ClipJudge.load(str(tmp_path), torch.device("cpu"))


def test_unknown_variants_are_refused_and_known_ones_sorted():
    assert check_variants(["sdedit", "ddim", "bound"]) == ("bound", "ddim", "sdedit")
    with pytest.raises(OptionError, match="no variant 'pnp'"):
        check_variants(["pnp"])
