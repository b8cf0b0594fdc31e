"""The studio without a browser: what a page asks, what it gets, and what nobody may."""

from __future__ import annotations

import base64
import io
import json
import shlex
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import nulltext
from nulltext.diffusion.levels import Level
from nulltext.diffusion.loops import StepInfo
from nulltext.errors import NulltextError, PromptError
from nulltext.image.metadata import settings_in
from nulltext.image.photos import load_photo
from nulltext.image.saving import Picture, encode
from nulltext.inversion.budgets import budget_of
from nulltext.jobs.export import export
from nulltext.jobs.options import arguments_of
from nulltext.models.side_files import KnownWords
from nulltext.storage.files import safe_name
from nulltext.studio import verbs
from nulltext.studio.forms import Chip, InvertForm, chips_of, weights_of
from nulltext.studio.handlers import INTERNAL_ERROR, VERBS, handle
from nulltext.studio.resources import STAGES, Limits, LRUCache, Meter, Progress, Worker
from nulltext.studio.verbs import EXAMPLE, difference
from nulltext.words.prompts import find_words
from support.captioners import captioner
from support.pictures import file_pixels
from support.studios import Gate, Visitor, studio_on
from support.vocabularies import prompt as read

PATIENCE = 60
"""Seconds after which something that should have happened long ago counts as a failure."""


@pytest.fixture(scope="module")
def studio(model):
    with studio_on(nulltext.load(model), model) as made:
        yield made


@pytest.fixture
def visitor(studio):
    somebody = Visitor(studio)
    yield somebody
    somebody.leave()


def png_url(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def mask_of(size, box):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def test_from_a_photo_to_an_edit_of_its_own_size(visitor, file):
    view = visitor.open(file)
    assert (view["problem"], view["photo"]["name"]) == (None, file.name)
    assert view["fields"]["crop"] == [0, 0, 90, 60]
    view = visitor.invert("a red cat", crop=[15, 0, 60, 60])
    assert view["words"] == ["a", "red", "cat"]
    assert view["fields"]["target"] == "a red cat"
    assert view["inversion"]["psnr"] <= view["inversion"]["bound"] + 0.5
    stages = [v["progress"]["doing"] for v in visitor.views if v["progress"]]
    assert set(stages) <= {"Encoding the photo", *STAGES.values()}
    view = visitor.ask("look", word=2)
    assert view["look"]["word"] == 2
    stages = {v["progress"]["doing"] for v in visitor.views if v["progress"]}
    assert stages <= {"Looking where words look"}  # a quick machine shows nothing
    with Image.open(visitor.local(view["look"]["url"])) as heat:
        assert heat.size == (60, 60)
    view = visitor.ask("edit", target="a red dog", chips=[])
    with Image.open(visitor.local(view["result"]["download"])) as edited:
        assert edited.size == (90, 60)
        assert json.loads(edited.text["nulltext"])["target"] == "a red dog"
        changed = (np.asarray(edited) != file_pixels(file)).any(axis=-1)
    assert view["result"]["changed"] == pytest.approx(100 * changed.mean(), abs=0.1)
    assert not changed[:, :15].any()
    assert view["history"][0]["label"] == "cat → dog"


SOFT = mask_of((90, 60), (30, 10, 60, 45)).filter(ImageFilter.GaussianBlur(5))
BLACK = png_url(Image.new("L", (90, 60)))
EDITS = {
    "plain": {},
    "weighed": {
        "chips": [{"source": 0, "text": "a"}, {"source": None, "text": "dog", "weight": -2}],
        "by_hand": True,
        "cross_steps": 0.4,
        "self_steps": 0.7,
        "target_guidance": 3,
        "negative": "a cow",
        "detail": "photo",
    },
    "repeated": {
        "target": "a red dog on a red red",
        "chips": [
            {"source": 0, "text": "a"},
            {"source": 1, "text": "red"},
            {"source": None, "text": "dog on a"},
            {"source": None, "text": "red", "weight": 3},
            {"source": None, "text": "red", "weight": -1},
        ],
        "strength": 1,
    },
    "local": {"blend": "cat, dog", "threshold": 0.05, "strength": 0.9},
    "masactrl": {"editor": "masactrl", "masa_word": "cat, dog", "by_hand": True, "masa_start": 0.4},
    "set": {
        "guidance_start": 0.3,
        "align": "refine",
        "hue": "model",
        "source_branch": "exact",
        "target_guidance": 5,
    },
    "painted": {"mask": png_url(mask_of((180, 120), (60, 20, 120, 90))), "strength": 0.75},
    "soft": {"mask": png_url(SOFT), "strength": 0.75},
}


NAMED = {
    "plain": "--strength 0.5",
    "weighed": "--weight dog=-2.0 --target-guidance 3.0 --negative 'a cow' --cross-steps 0.4",
    "repeated": "--weight 'red#2=3.0' --weight 'red#3=-1.0'",
    "local": "--blend cat --blend dog --blend-threshold 0.05",
    "masactrl": "--editor masactrl --masa-start 0.4 --masa-word cat --masa-word dog",
    "set": "--target-guidance 5.0 --guidance-start 0.3",
    "painted": "--mask 'my cat-mask.png'",
    "soft": "--mask 'my cat-mask.png'",
}
"""What the command says of each."""


@pytest.mark.parametrize("name", EDITS)
def test_the_command_makes_the_same_picture(visitor, file, run, tmp_path, monkeypatch, name):
    visitor.open(file)
    how = {"budget": "fast", "crop": [20, 5, 50, 50]}
    visitor.invert("a red cat", guidance=4, seed=3, **how)
    view = visitor.ask("edit", **{"target": "a red dog", **EDITS[name]})
    assert view["problem"] is None
    result = view["result"]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    if result["mask"]:
        mask = visitor.local(result["mask"])
        (tmp_path / "my cat-mask.png").write_bytes(mask.read_bytes())
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(result["command"])
    assert program == "nulltext"
    assert NAMED[name] in result["command"]
    code, _, err = run(*arguments)
    assert code == 0, err
    assert (
        file_pixels("my cat-edited.png") == file_pixels(visitor.local(result["download"]))
    ).all()
    assert (file_pixels("my cat-edited.png") != file_pixels(file)).any()


def test_a_grey_mask_lets_part_of_the_edit_through(visitor, file):
    visitor.open(file)
    visitor.invert("a red cat")
    mask = mask_of((90, 60), (30, 10, 60, 45))
    asked = {"target": "a red dog", "strength": 1, "detail": "model"}
    photo = file_pixels(file).astype(int)
    shown = []
    for level in (255, 128):
        grey = Image.eval(mask, lambda value, level=level: level * value // 255)
        grey.putpixel((45, 28), 255)  # a mask of one grey would be read as black and white
        result = visitor.ask("edit", mask=png_url(grey), **asked)["result"]
        assert list(Image.open(visitor.local(result["mask"])).getdata()) == list(grey.getdata())
        made = file_pixels(visitor.local(result["download"]))
        shown.append(np.abs(made - photo)[20:35, 38:44].mean())
    assert shown[0] > 5
    assert 0.2 < shown[1] / shown[0] < 0.8


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's quoting, and such names")
@pytest.mark.parametrize("name", ["-o'cat & #1; $(x) 🌼.png", 'two\nlines `q` "w".png'])
def test_the_command_names_the_photo_as_it_is(visitor, file, tmp_path, name):
    """The line goes through a real shell, beside the photo under its own name."""
    photo = tmp_path / name
    photo.write_bytes(file.read_bytes())
    assert visitor.open(photo)["photo"]["name"] == name
    visitor.invert("a red cat", budget="fast", steps=None)
    view = visitor.ask("edit", target="a red dog", mask=EDITS["painted"]["mask"])
    result = view["result"]
    assert view["problem"] is None
    mask = tmp_path / f"{photo.stem}-mask.png"
    mask.write_bytes(visitor.local(result["mask"]).read_bytes())
    made = visitor.local(result["download"])
    assert safe_name(made.name) == made.name
    assert result["name"] == f"{safe_name(photo.stem)} – cat to dog"
    program = f'nulltext() {{ {shlex.quote(sys.executable)} -m nulltext.cli.entry "$@"; }}'
    line = f"{program}\n{result['command']}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = tmp_path / f"{safe_name(photo.stem)}-edited.png"
    assert again.read_bytes() == made.read_bytes()


def test_the_longest_names_are_cut(visitor, file, run, tmp_path, monkeypatch):
    photo = tmp_path / f"{'c' * 251}.png"
    photo.write_bytes(file.read_bytes())
    visitor.open(photo)
    visitor.invert("a red cat", budget="fast", steps=None)
    names = []
    for _ in range(2):
        result = visitor.ask("edit", target="a red dog")["result"]
        names.append(result["name"])
    assert names == [f"{'c' * 185} – cat to dog", f"{'c' * 183} – cat to dog 2"]  # 200 bytes
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*shlex.split(result["command"])[1:])
    assert code == 0, err
    (again,) = tmp_path.glob("c*-edited.png")
    assert again.read_bytes() == visitor.local(result["download"]).read_bytes()


def test_equal_changes_have_names_of_their_own(visitor, file):
    visitor.open(file)
    visitor.invert("a red cat")
    names = [
        visitor.ask("edit", target="a red dog", strength=s)["result"]["name"] for s in (0.4, 1)
    ]
    assert names == ["my cat – cat to dog", "my cat – cat to dog 2"]
    strip = [one["name"] for one in visitor.ask("strip", target="a red dog")["strip"]]
    assert strip == [f"my cat – cat to dog {number}" for number in range(3, 8)]


@pytest.mark.parametrize("name", ["", "..", "../../x.png", "a/b.png", "x\0y.png", "é" * 500])
def test_names_that_no_file_has_stay_in_the_session(visitor, file, name):
    view = visitor.ask("open", file=visitor.upload(file, name))
    assert view["problem"] is None
    assert "/" not in view["photo"]["name"]
    assert view["photo"]["name"] not in ("", ".", "..")
    inside = [path for path in visitor.folder.glob("*/*") if path.is_file()]
    assert len(inside) == 2  # photo and preview


def test_sixteen_bits_of_a_photo_are_in_the_download_and_in_exports(visitor, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (60, 90, 3), dtype=np.uint16)
    path = tmp_path / "deep.png"
    image = Image.fromarray((values >> 8).astype(np.uint8))
    path.write_bytes(encode(Picture(image, values), path))
    visitor.open(path)
    visitor.invert("a red cat", crop=[15, 0, 60, 60])
    result = visitor.ask("edit", target="a red dog")["result"]
    kept = load_photo(visitor.local(result["download"]))
    assert kept.bits == 16
    assert (kept.deep[:, :15] == values[:, :15]).all()
    assert (kept.deep != values).any()
    data = export(visitor.local(result["download"]), load_photo(path), "tiff")
    (tmp_path / "a.tif").write_bytes(data)
    again = load_photo(tmp_path / "a.tif")
    assert (again.deep == kept.deep).all()
    assert settings_in(tmp_path / "a.tif")["job"]["image"] == "deep.png"


BARE = ("--source", "a cat", "--crop", "0,0,9")
"""Words of a command that names neither method nor budget."""


@pytest.mark.parametrize(
    ("fields", "method", "steps", "said"),
    [
        ({}, "fixed-point", 20, ""),
        ({"budget": "balanced"}, "fixed-point", 20, ""),
        ({"budget": "fast"}, "fixed-point", 12, "--budget fast"),
        ({"budget": "paper"}, "null-text", 50, "--budget paper"),
        ({"method": "null-text"}, "null-text", 50, "--method null-text"),
        ({"method": "fixed-point"}, "fixed-point", 20, "--method fixed-point"),
        ({"method": "ddim", "budget": ""}, "ddim", 50, "--method ddim"),
    ],
)
def test_a_form_names_a_method_or_leaves_it_to_the_budget(fields, method, steps, said):
    form = InvertForm.read({"source": "a cat", "crop": [0, 0, 9, 9], **fields})
    plan = form.plan()
    assert (plan.method.name, plan.num_steps) == (method, steps)
    assert set(said.split()) == set(arguments_of(form.options())) - {*BARE}
    assert budget_of(form.options()) == plan


def test_one_of_the_strip_is_what_its_command_makes(visitor, file, run, tmp_path, monkeypatch):
    visitor.open(file)
    visitor.invert("a cat", method="ddim")
    view = visitor.ask("strip", target="a dog")
    assert [one["strength"] for one in view["strip"]] == [0.2, 0.35, 0.5, 0.65, 0.8]
    assert view["history"] == []
    wanted = view["strip"][3]
    view = visitor.ask("choose", number=wanted["number"])
    assert (view["result"]["number"], view["fields"]["strength"]) == (wanted["number"], 0.65)
    (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(wanted["command"])[1:])[0] == 0
    assert (
        file_pixels("my cat-edited.png") == file_pixels(visitor.local(view["result"]["download"]))
    ).all()


def test_an_opacity_is_what_its_command_makes(visitor, file, run, tmp_path, monkeypatch):
    visitor.open(file)
    visitor.invert("a red cat", method="ddim")
    made = visitor.ask("edit", target="a red dog", mask=EDITS["soft"]["mask"])["result"]
    other = visitor.ask("edit", target="a red cow")["result"]
    view = visitor.ask("fade", number=made["number"], opacity=0.35)
    faded = next(one for one in view["history"] if one["number"] == made["number"])
    assert (view["problem"], view["result"]) == (None, other)
    assert (faded["opacity"], faded["url"]) == (0.35, made["url"])
    before, after = file_pixels(file).astype(int), file_pixels(visitor.local(made["download"]))
    result = file_pixels(visitor.local(faded["download"]))
    assert (result == np.rint(before + 0.35 * (after - before))).all()
    assert faded["changed"] == pytest.approx(100 * (result != before).any(axis=-1).mean(), abs=0.1)
    (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "my cat-mask.png").write_bytes(visitor.local(made["mask"]).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert "--opacity 0.35" in faded["command"]
    assert run(*shlex.split(faded["command"])[1:])[0] == 0
    assert Path("my cat-edited.png").read_bytes() == visitor.local(faded["download"]).read_bytes()
    view = visitor.ask("restore", number=made["number"])
    assert view["result"] == faded
    view = visitor.ask("fade", number=made["number"], opacity=1)
    assert view["result"] == made
    assert not visitor.local(faded["download"]).exists()


def test_the_last_of_several_opacities_stays(studio, visitor, file):
    visitor.open(file)
    visitor.invert("a red cat", method="ddim")
    number = visitor.ask("edit", target="a red dog")["result"]["number"]
    asked = [visitor.start("fade", number=number, opacity=o) for o in (0.2, 0.9)]
    with studio.resources.decoding:  # both have begun, and wait
        for views in asked:
            next(views)
    (*_, last), (*_, stale) = reversed(asked)
    assert (last["problem"], stale["problem"]) == (None, None)
    assert last["result"]["opacity"] == stale["result"]["opacity"] == 0.9


def test_a_picture_is_written_at_its_own_size_once(visitor, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "wide.png"
    Image.fromarray(rng.integers(0, 256, (30, 2000, 3), dtype=np.uint8)).save(path)
    assert visitor.open(path)["photo"]["full"] is None
    visitor.invert("a red cat", method="ddim")
    number = visitor.ask("edit", target="a red dog", crop=[985, 0, 30, 30])["result"]["number"]
    view = visitor.ask("zoom", numbers=[number])
    assert view["problem"] is None
    times = []
    for shown, whole in (
        (view["photo"], path),
        (view["result"], visitor.local(view["result"]["download"])),
    ):
        full = visitor.local(shown["full"])
        times.append(full.stat().st_mtime_ns)
        with Image.open(full) as image:
            assert (image.format, image.size) == ("JPEG", (2000, 30))
            error = np.asarray(image).astype(int) - file_pixels(whole)
        assert np.abs(error).mean() < 12  # noise is the hardest picture for JPEG
    view = visitor.ask("zoom", numbers=[number])
    full = [visitor.local(view[name]["full"]) for name in ("photo", "result")]
    assert [path.stat().st_mtime_ns for path in full] == times


def test_a_small_picture_is_its_own_preview(visitor, file):
    photo = visitor.open(file)["photo"]
    assert photo["full"] == photo["url"]


def test_a_saved_inversion_comes_back(visitor, file, run, tmp_path, monkeypatch):
    visitor.open(file)
    view = visitor.invert("a cat", method="ddim")
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(visitor.local(view["inversion"]["url"]).read_bytes())
    first = visitor.ask("edit", target="a dog")["result"]
    visitor.open(file)
    view = visitor.ask("bring", file=visitor.upload(kept))
    assert (view["problem"], view["fields"]["source"], view["history"]) == (None, "a cat", [])
    second = visitor.ask("edit", target="a dog")["result"]
    assert "--inversion kept.safetensors" in second["command"]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run(*shlex.split(second["command"])[1:])[0] == 0
    assert (
        file_pixels("my cat-edited.png") == file_pixels(visitor.local(second["download"]))
    ).all()
    assert first["changed"] == second["changed"]
    other = tmp_path / "other.png"
    Image.effect_noise((90, 60), 80).save(other)
    visitor.open(other)
    view = visitor.ask("bring", file=visitor.upload(kept))
    assert "made from another photo" in view["problem"]
    assert view["inversion"] is None


def test_an_inversion_is_made_once(studio, visitor, file):
    visitor.open(file)
    assert not visitor.invert("a black dog", method="ddim")["inversion"]["cached"]
    assert visitor.invert("a black dog", method="ddim")["inversion"]["cached"]
    for changed in ({"seed": 1}, {"guidance": 2}, {"crop": [0, 0, 50, 50]}, {"method": "direct"}):
        view = visitor.invert("a black dog", **{"method": "ddim", **changed})
        assert not view["inversion"]["cached"], changed
    neighbour = Visitor(studio)
    neighbour.open(file)
    assert neighbour.invert("a black dog", method="ddim")["inversion"]["cached"]
    neighbour.leave()


def test_words_that_the_model_was_not_taught_are_remarked_on(studio, visitor, file, monkeypatch):
    visitor.open(file)
    visitor.invert("a red cat", method="ddim", crop=[15, 0, 60, 60])
    result = visitor.ask("edit", target="a red dog")["result"]
    assert result["cut"] == ["left", "right"]
    assert result["remark"] == (
        "The edit stops inside the photo, at the crop's left and right: draw the crop around all "
        "that changes."
    )
    assert "letter by letter" in visitor.ask("edit", target="a red qzj")["result"]["remark"]
    remark = visitor.ask("edit", target="make it (blue:2)")["result"]["remark"]
    assert "pass --weight blue=2." in remark
    assert "is an instruction" in remark
    taught = replace(studio.resources.model, known_words=KnownWords(("red", "dog"), ("a",)))
    monkeypatch.setattr(studio.resources, "model", taught)
    remark = visitor.ask("edit", target="a red dog")["result"]["remark"]
    assert 'has not learnt "cat", which will do little' in remark


def test_history_is_restored_with_its_settings(visitor, file):
    visitor.open(file)
    visitor.invert("a red cat", method="ddim")
    chips = [{"source": 0, "text": "a"}, {"source": 1, "text": "red", "weight": 3.0}]
    chips.append({"source": 2, "text": "dog", "weight": 1.0})
    first = visitor.ask("edit", target="a red dog", chips=chips, strength=0.7)["result"]
    visitor.invert("a cat", method="ddim", crop=[0, 0, 40, 40])
    second = visitor.ask("edit", target="a dog")["result"]
    view = visitor.ask("restore", number=first["number"])
    assert view["result"] == first
    assert view["fields"]["chips"] == chips_json(chips)
    assert (view["fields"]["strength"], view["fields"]["source"]) == (0.7, "a red cat")
    assert (view["inversion"]["prompt"], view["fields"]["crop"]) == ("a red cat", [0, 0, 90, 60])
    again = visitor.ask("edit", target="a red dog", chips=chips, strength=0.7)["result"]
    assert (
        file_pixels(visitor.local(again["download"]))
        == file_pixels(visitor.local(first["download"]))
    ).all()
    assert [one["number"] for one in visitor.views[-1]["history"]] == [
        again["number"],
        second["number"],
        first["number"],
    ]


def chips_json(chips):
    return [
        {"source": c["source"], "text": c["text"], "weight": c.get("weight", 1.0), "gap": " "}
        for c in chips
    ]


def test_what_nothing_points_to_is_removed(model, file):
    with studio_on(nulltext.load(model), model, limits=Limits(history=2)) as studio:
        visitor = Visitor(studio)
        visitor.open(file)
        for words in ("a cat", "a dog"):
            visitor.invert(words, method="ddim")
        targets = ("a red dog", "a black dog", "a bright dog")
        for target in targets:
            view = visitor.ask("edit", target=target)
        assert [one["target"] for one in view["history"]] == [*reversed(targets[1:])]
        kept = Counter(path.name for path in visitor.folder.rglob("*.*"))
        edits = {"my cat-edited.png": 2, "my cat-region.png": 2, "preview.jpg": 3}
        assert kept == {"my cat.png": 1, "my cat.safetensors": 1, "session.json": 1, **edits}
        assert stat.S_IMODE(studio.resources.folder.stat().st_mode) == 0o700
        folder = visitor.folder
        visitor.leave()
        assert not folder.exists()
        whole = studio.resources.folder
    assert not whole.exists()


def test_a_picture_of_attention_stays_until_the_next(visitor, file):
    visitor.open(file)
    visitor.invert("a bright cat", method="ddim")
    first = visitor.local(visitor.ask("look", word=1)["look"]["url"])
    assert visitor.ask("edit", target="a bright dog")["look"] is None
    assert first.exists()  # a page may be loading it still
    second = visitor.local(visitor.ask("look", word=2)["look"]["url"])
    assert (first.exists(), second.exists()) == (False, True)


def test_a_captioner_proposes_words(model, file):
    writer = captioner(seed=3)
    with studio_on(nulltext.load(model), model, captioner=writer) as studio:
        visitor = Visitor(studio)
        assert visitor.open(file)["fields"]["source"] == ""
        photo = nulltext.load_photo(file)
        fields = visitor.ask("propose")["fields"]
        assert fields["source"] == writer.caption(photo, crop=nulltext.CropBox(0, 0, 90, 60)) != ""
        assert fields["proposed"]
        view = visitor.ask("propose", crop=[0, 0, 30, 30], ask=7)
        wanted = writer.caption(photo, crop=nulltext.CropBox(0, 0, 30, 30))
        assert view["fields"]["source"] == wanted
        assert view["filled"]["source"][1] == 7
        assert view["filled"]["source"][0] > view["filled"]["crop"][0]


def test_nobody_sees_what_is_somebody_elses(studio, visitor, file):
    visitor.open(file)
    visitor.invert("a cat", method="ddim")
    result = visitor.ask("edit", target="a dog")["result"]
    neighbour = Visitor(studio)
    view = neighbour.ask("propose", crop=[0, 0, 10, 10])
    assert view["problem"] == "There is no photo here any more; open one first."
    assert (view["photo"], view["history"], view["result"]) == (None, [], None)
    neighbour.open(file)
    neighbour.invert("a cat", method="ddim")
    view = neighbour.ask("restore", number=result["number"])
    assert "not kept" in view["problem"]
    assert neighbour.folder != visitor.folder
    stolen = [visitor.upload(file), {"path": "/etc/passwd"}, str(file), True, None]
    for named in stolen:
        assert "No file has arrived" in neighbour.ask("open", file=named)["problem"]
    neighbour.leave()


def test_a_session_that_leaves_the_memory_is_read_from_disk(model, file):
    with studio_on(nulltext.load(model), model, limits=Limits(sessions=2)) as studio:
        first, second, third = (Visitor(studio) for _ in range(3))
        first.open(file)
        first.invert("a red cat", method="ddim")
        view = first.ask("edit", target="a red dog", strength=0.7, ask=3, page="p")
        before = first.session
        for somebody in (second, third):
            somebody.open(file)
        assert first.session is not before
        again = first.ask("cancel")
        moving = {"serial": 0, "look": None}
        assert {**again, **moving} == {**view, **moving}
        restored = first.ask("restore", number=view["result"]["number"])
        assert restored["fields"]["strength"] == 0.7
        made = first.ask("edit", target="a red dog", strength=0.7)["result"]
        assert (
            file_pixels(first.local(made["download"]))
            == file_pixels(first.local(view["result"]["download"]))
        ).all()


def test_photos_that_are_none(visitor, tmp_path, file):
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    view = visitor.open(text)
    assert view["problem"].startswith("'notes.png' is not an image")
    assert str(visitor.studio.resources.folder) not in view["problem"]
    huge = tmp_path / "huge.png"
    Image.new("1", (10_000, 10_000)).save(huge)
    assert huge.stat().st_size < 100_000
    view = visitor.open(huge)
    assert view["problem"] == (
        "'huge.png' claims more than 50,000,000 pixels, the most that is read: shrink it first."
    )
    assert visitor.views[-1]["photo"] is None


@pytest.mark.parametrize(
    ("verb", "asked", "said"),
    [
        ("invert", {"source": " "}, "Say what the photo shows first, in a few words."),
        ("invert", {"source": "a cat " * 40}, "tokens, and this model reads at most"),
        ("invert", {"source": "a cat", "steps": 10**6}, "“Steps” is no whole number"),
        ("invert", {"source": "a cat", "steps": 2.5}, "whole number from 1 to 200"),
        ("invert", {"source": "a cat", "guidance": float("nan")}, "“Guidance” is no finite"),
        ("invert", {"source": "a cat", "crop": [0, 0, 500, 500]}, "does not lie within the photo"),
        ("invert", {"source": "a cat", "crop": "all"}, "crop box"),
        ("invert", {"source": "a cat", "method": "magic"}, "“Method” is none of fixed-point,"),
        (
            "invert",
            {"source": "a cat", "method": "null-text", "budget": "fast"},
            "A budget chooses the method",
        ),
        ("invert", {"source": ["a cat"]}, "The source is no text"),
        ("edit", {"target": ""}, "The prompt is empty"),
        ("edit", {"target": "a red cat"}, "Nothing is changed yet"),
        ("edit", {"target": "a dog", "blend": "tabby"}, "“tabby” is a word of neither prompt"),
        ("edit", {"target": "a dog", "strength": 7}, "The strength is 7"),
        ("edit", {"target": "a dog", "detail": "all"}, "“Fine detail” is none of auto,"),
        ("edit", {"target": "a dog", "by_hand": 1, "masa_start": 0.5}, "“Looks begin” belongs to"),
        ("edit", {"target": "a dog", "editor": "masactrl", "align": "auto"}, "“Pairing of"),
        ("edit", {"target": "a dog", "blend_except": "cat"}, "takes away from a “Blend”"),
        ("edit", {"target": "a dog", "base": 3}, "is not kept any more; start from the photo"),
        ("go_on", {"number": 3}, "not kept any more"),
        ("export", {"number": 3}, "not kept any more"),
        ("edit", {"target": "a dog", "mask": "data:image/png;base64,AAAA"}, "painted mask"),
        ("edit", {"target": "a dog", "mask": BLACK}, "black everywhere"),
        ("edit", {"target": "a dog", "chips": [{"source": 9, "text": "x"}]}, "word cannot be read"),
        ("edit", {"target": "a dog", "chips": [{"text": "x", "weight": "2"}]}, "its weight goes"),
        ("edit", {"target": "a dog", "chips": [{"text": "x", "gap": 3}]}, "word cannot be read"),
        ("edit", {"target": "a dog", "mask": "files/../../etc/hostname"}, "painted mask"),
        ("look", {"word": 99}, "The word is 99"),
        ("choose", {"number": 12345}, "not kept any more"),
        ("fade", {"number": 12345, "opacity": 0.5}, "not kept any more"),
        ("zoom", {"numbers": [12345]}, "not kept any more"),
        ("bring", {"file": {"path": "/etc/hostname"}}, "No file has arrived"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(studio, file, verb, asked, said, request):
    visitor = Visitor(studio)
    visitor.open(file)
    if verb != "invert":
        visitor.invert("a red cat", method="ddim")
    problem = visitor.ask(verb, **asked)["problem"]
    assert said in problem
    assert "\n" not in problem
    assert "--" not in problem, "an option of the command line means nothing on the page"
    visitor.leave()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("example", "cancel")])
@pytest.mark.parametrize("asked", [None, [], {}, {"file": 3, "source": 3, "crop": {}, "word": "x"}])
def test_nonsense_never_surprises(studio, verb, asked):
    *_, view = handle(Visitor(studio).session, verb, asked)
    assert view["problem"] != INTERNAL_ERROR
    json.dumps(view, allow_nan=False)


def test_a_failure_of_ours_is_said_and_logged(visitor, monkeypatch, caplog):
    def broken(session, asked):
        raise ZeroDivisionError("a secret")
        yield

    monkeypatch.setitem(VERBS, "example", broken)
    assert visitor.ask("example")["problem"] == INTERNAL_ERROR
    assert "a secret" in caplog.text


def test_cancelling_frees_the_worker(studio, visitor, file):
    visitor.open(file)
    seen = []

    def watch():
        for view in visitor_views:
            seen.append(view)
            if view["progress"] and view["progress"]["total"]:
                begun.set()

    begun = threading.Event()
    visitor_views = visitor.start("invert", source="a bright dog", steps=100, crop=None)
    thread = threading.Thread(target=watch)
    thread.start()
    assert begun.wait(PATIENCE)
    neighbour = Visitor(studio)
    neighbour.open(file)
    assert "One thing at a time" in visitor.ask("invert", source="a cat")["problem"]
    visitor.ask("cancel")
    view = neighbour.invert("a cat", method="ddim")
    assert view["inversion"]
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert (seen[-1]["notice"], seen[-1]["progress"]) == ("Cancelled.", None)
    assert seen[-1]["inversion"] is None
    assert visitor.invert("a cat", method="ddim")["inversion"]["cached"]
    neighbour.leave()


def test_a_page_that_goes_away_takes_its_job_along(studio, visitor, file, monkeypatch):
    visitor.open(file)
    views = visitor.start("invert", source="a very bright cat", steps=200)
    assert next(views)["progress"]
    views.close()
    done = studio.resources.worker.submit(lambda: (yield from ()))
    assert done.result(PATIENCE) is None
    with visitor.session.listening(lambda _: None):
        limits = replace(studio.resources.limits, abandoned_seconds=0.0)
        monkeypatch.setattr(studio.resources, "limits", limits)
        views = visitor.start("invert", source="a very bright cat", steps=200)
        assert [next(views)["progress"] is not None for _ in range(3)] == [True] * 3
    *_, last = views
    assert (last["notice"], last["inversion"]) == ("Cancelled.", None)


def test_the_line_is_first_come_first_served():
    worker, gates, order = Worker(), [Gate() for _ in range(3)], []

    def noted(number):
        yield from gates[number].steps()
        order.append(number)
        return number

    jobs = [worker.submit(lambda n=n: noted(n)) for n in range(3)]
    assert gates[0].begun.wait(PATIENCE)
    assert [worker.ahead(job) for job in jobs] == [0, 1, 2]
    jobs[1].cancel()
    assert jobs[1].done()
    assert worker.ahead(jobs[2]) == 1
    for gate in gates:
        gate.open.set()
    assert jobs[2].result() == 2
    assert order == [0, 2]
    with pytest.raises(CancelledError):
        jobs[1].result()
    worker.close()


def test_a_job_that_fails_does_not_stop_the_worker():
    def failing():
        yield StepInfo("edit", 1, 1, Level(1.0, 0.0, 0))
        raise NulltextError("no")

    worker = Worker()
    with pytest.raises(NulltextError, match="no"):
        worker.submit(failing).result()
    gate = Gate()
    gate.open.set()
    assert worker.submit(gate.steps).result(PATIENCE) is None
    worker.close()


def test_a_cancelled_job_is_closed_before_it_is_over():
    begun, closed = threading.Event(), threading.Event()

    def steps():
        try:
            while True:
                begun.set()
                yield StepInfo("edit", 1, 2, Level(1.0, 0.0, 0))
        finally:
            closed.set()

    worker = Worker()
    job = worker.submit(steps)
    assert begun.wait(PATIENCE)
    job.cancel()
    with pytest.raises(CancelledError):
        job.result(PATIENCE)
    assert closed.is_set()
    worker.close()


def test_an_edit_preempts_a_look(studio, visitor, file, monkeypatch):
    visitor.open(file)
    visitor.invert("a red cat", method="ddim")
    gate, whole = Gate(), verbs.heat_map_steps

    def unhurried(*arguments):
        yield from gate.steps()
        return (yield from whole(*arguments))

    monkeypatch.setattr(verbs, "heat_map_steps", unhurried)
    patience = threading.Timer(PATIENCE, gate.open.set)
    patience.start()
    looking = visitor.start("look", word=1)
    assert next(looking)["progress"]
    view = visitor.ask("edit", target="a red dog")
    patience.cancel()
    assert view["result"]
    *_, last = looking
    assert (last["problem"], last["look"]) == (None, None)


def test_time_left_and_curve(monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 16.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    meter = Meter("Starting")
    assert meter.progress == Progress("Starting")
    meter.update(StepInfo("optimise", 1, 10, Level(1.0, 0.0, 0)))
    assert meter.progress.seconds_left is None
    monkeypatch.setattr(time, "monotonic", lambda: 16.0)
    meter.update(StepInfo("optimise", 4, 10, Level(1.0, 0.0, 0)))
    assert meter.progress.seconds_left == pytest.approx(6 * (16.0 - 10.0) / 3)
    meter.update(StepInfo("pivot", 4, 10, Level(1.0, 0.0, 0)))
    assert meter.progress.seconds_left is None


def test_a_cache_stays_within_its_bytes():
    cache = LRUCache[str](100, len)
    for name in "abc":
        cache.put(name, 40 * name)
    assert [cache.get(name) for name in "abc"] == [None, 40 * "b", 40 * "c"]
    cache.get("b")
    cache.put("d", 30 * "d")
    assert (cache.get("b"), cache.get("c"), cache.bytes) == (40 * "b", None, 70)
    cache.put("huge", 101 * "h")
    cache.put("b", 10 * "B")
    assert (cache.get("huge"), cache.get("b"), cache.bytes) == (None, 10 * "B", 40)
    assert cache.get_or_make("d", str) == 30 * "d"
    cache.remove("d")
    assert cache.get_or_make("d", lambda: "new") == cache.get("d") == "new"


def test_a_chip_for_each_word_with_the_gap_before_it():
    text = " an  orange cat, it's"
    chips = chips_of(read(text, 77))
    assert "".join(chip.gap + chip.text for chip in chips) == text
    assert weights_of(chips, read(text, 77)) == {}


def test_a_weight_is_that_of_one_word():
    target = read("a red flower, red#2 or dark red with a red background", 77)
    words = ["a", "red", "flower", ",", "red#2", "or", "dark red", "with", "a", "red"]
    weights = {2: 1.0, 8: 3.0, 9: -2.0, 6: 0.5}
    chips = [Chip(None, word, weights.get(at, 1.0)) for at, word in enumerate(words)]
    chips.insert(1, Chip(0, " ", 3.0))
    found = weights_of(chips, target)
    assert found == {"dark red": 0.5, "a#2": 3.0, "red#4": -2.0}
    assert [find_words(target, name) for name in found] == [
        target.words[8].tokens + target.words[9].tokens,
        target.words[11].tokens,
        target.words[12].tokens,
    ]
    assert weights_of([Chip(0, "red"), Chip(1, "red", 2.0)], target) == {"red#02": 2.0}
    with pytest.raises(PromptError, match="does not say “cow” where its words do"):
        weights_of([Chip(0, "cow", 2.0)], target)


def test_an_edit_is_named_by_what_it_changes():
    source = ["a", "photo", "of", "an", "orange", "flower", "with", "a", "dark", "background"]
    target = ["a", "photo", "of", "a", "red", "flower", "in", "snow"]
    assert difference(source, target) == "orange → red, with → in, − dark, background → snow"
    assert difference(source, source) == ""


def test_the_example_is_the_one_of_the_examples():
    examples = Path(__file__).parents[2] / "examples" / "dahlia.jpg"
    assert examples.read_bytes() == EXAMPLE.read_bytes()


def test_a_port_that_is_taken_is_one_sentence(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = run("studio", "--port", port, "--no-browser")
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: Nothing can listen at 127.0.0.1:{port}")
    assert err.count("\n") == 1
    assert run("studio", "--port", 99999)[0] == 2


@pytest.mark.parametrize("path", ["editor", "//host/editor", "ftp://a.org/x", "/a?b", "/a b"])
def test_a_root_path_that_is_none_is_one_sentence(run, path):
    code, _, err = run("studio", "--port", 0, "--no-browser", "--root-path", path)
    assert code == 2
    assert err.startswith(f"Error: --root-path is '{path}'; give a path such as /editor")


def test_without_uvicorn_it_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("studio", "--port", 0, "--no-browser")
    assert code == 2
    assert "pip install 'nulltext[studio]'" in err
