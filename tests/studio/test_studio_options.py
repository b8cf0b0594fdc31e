"""The advanced settings, chains, downloads and batches of the studio, without a browser."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from PIL import ExifTags, Image

import nulltext
from nulltext.constants import EditorName
from nulltext.image.photos import has_position, load_photo
from nulltext.jobs.job_files import Job, read_jobs
from nulltext.jobs.options import OPTIONS, Kind, arguments_of
from nulltext.studio.forms import (
    EDITING,
    INVERTING,
    MOST,
    EditForm,
    InvertForm,
    fields_of,
    without_flags,
)
from nulltext.studio.resources import Limits
from support.pictures import file_pixels
from support.studios import Visitor, studio_on
from support.vocabularies import prompt as read

SETTINGS = {**INVERTING, **EDITING}


@pytest.fixture(scope="module")
def studio(model):
    with studio_on(nulltext.load(model), model) as made:
        yield made


@pytest.fixture
def visitor(studio, file):
    somebody = Visitor(studio)
    somebody.open(file)
    yield somebody
    somebody.leave()


def other_value(option):
    """A value that is not the default, as the page sends it."""
    if option.kind is Kind.CHOICE:
        return next(name for name in option.choices if name != option.default)
    if option.kind in (Kind.NUMBER, Kind.INTEGER):
        if option.about.unset != 1:
            return 1
        return 0 if option.about.low == 0 else 2
    return "dog, cat"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_the_option_of_the_schema(name):
    option, (field,) = SETTINGS[name], fields_of({name: SETTINGS[name]})
    schema = OPTIONS[name]
    assert field["choices"] == list(schema.choices)
    assert (field["low"], field["high"]) == (schema.about.low, MOST.get(name, schema.about.high))
    assert "--" not in field["help"]
    assert field["help"].split()[-1] == without_flags(schema.help).split()[-1]
    value = other_value(option)
    if name in INVERTING:
        form = InvertForm.read({"source": "a cat", "crop": [0, 0, 9, 9], name: value})
        assert form.settings == {name: value}
    else:
        editor = {"editor": option.about.editor} if option.about.editor else {}
        asked = {"target": "a dog", "by_hand": True, **editor, name: value}
        form = EditForm.read(asked, 2, read)
        assert list(
            form.values()[name] if option.kind is Kind.TEXTS else [form.values()[name]]
        ) == (["dog", "cat"] if option.kind is Kind.TEXTS else [value])
    assert option.flag in arguments_of(form.options())


def test_what_the_strength_sets_is_set_by_hand_alone():
    asked = {"target": "a dog", "cross_steps": 0.2, "masa_start": 0.3, "strength": 0.4}
    assert EditForm.read(asked, 2, read).settings == {}
    by_hand = EditForm.read({**asked, "by_hand": True}, 2, read)
    assert (by_hand.strength, by_hand.settings) == (None, {"cross_steps": 0.2, "masa_start": 0.3})


@pytest.mark.parametrize(
    ("verb", "name", "value", "said"),
    [
        ("invert", "steps", 201, "“Steps” is no whole number from 1 to 200"),
        ("invert", "inner_steps", 2.5, "“Inner steps” is no whole number from 0 to 100"),
        ("invert", "guidance", -1, "“Guidance” is -1; choose a number from 0 up."),
        ("invert", "pivot", "none", "“Pivot” is none of ddim, fixed-point"),
        ("edit", "guidance_start", 1.5, "“Guidance starts” is 1.5; choose a number from 0 to 1."),
        ("edit", "target_guidance", "high", "“Target guidance” is no number"),
        ("edit", "editor", "magic", "“Editor” is none of prompt-to-prompt, masactrl"),
        ("edit", "negative", {}, "“Not in the picture” is no text"),
        ("edit", "masa_word", ["dog", 3], "“Foreground” is no text"),
    ],
)
def test_a_wrong_value_is_one_sentence_about_its_field(visitor, verb, name, value, said):
    words = {"source": "a red cat", "target": "a red dog"}
    if verb == "edit":
        visitor.invert("a red cat", method="ddim")
    view = visitor.ask(verb, **words, **{name: value})
    assert said in view["problem"]
    assert view["wrong"] == name
    assert visitor.ask("cancel")["wrong"] is None


def test_an_edit_comes_back_with_the_settings_of_its_inversion(visitor):
    visitor.invert("a red cat", method="ddim", steps=2)
    first = visitor.ask("edit", target="a red dog", hue="model", negative="a cow")["result"]
    visitor.invert("a red cat", budget="fast")
    visitor.ask("edit", target="a black cat")
    fields = visitor.ask("restore", number=first["number"])["fields"]
    assert (fields["method"], fields["steps"], fields["budget"]) == ("ddim", 2, None)
    assert (fields["hue"], fields["negative"], fields["detail"]) == ("model", "a cow", None)


def test_another_frame_keeps_the_words(visitor):
    visitor.invert("a red cat", method="ddim")
    chips = [{"source": 0, "text": "a"}, {"source": 1, "text": "red", "weight": 2.0}]
    revision = visitor.ask("edit", target="a red dog", chips=chips)["filled"]["target"]
    assert (
        visitor.invert("a red cat", method="ddim", crop=[0, 0, 40, 40])["filled"]["target"]
        == revision
    )
    view = visitor.invert("a cat", method="ddim")
    assert (view["fields"]["target"], view["filled"]["target"] > revision) == ("a cat", True)


@pytest.mark.parametrize(
    ("size", "crop"),
    [((90, 60), [0, 0, 90, 60]), ((40, 160), [0, 0, 40, 160]), ((99, 20), [39, 0, 20, 20])],
)
def test_the_first_frame_is_the_whole_photo_where_the_model_takes_it(visitor, tmp_path, size, crop):
    path = tmp_path / "photo.png"
    Image.effect_noise(size, 60).convert("RGB").save(path)
    assert visitor.open(path)["fields"]["crop"] == crop
    assert visitor.invert("a cat", method="ddim")["problem"] is None


# --- Chains --------------------------------------------------------------------------------------


def weighed(words, **weights):
    return [
        {"source": None, "text": word, "weight": weights.get(word, 1.0)} for word in words.split()
    ]


CHAINS = {
    "plain": ([{}, {}], "--then 'a black dog'"),
    "strengths": ([{"strength": 0.8}, {"strength": 0.3}], "--strength 0.8"),
    "weights": (
        [{"chips": weighed("a red dog", red=2.0)}, {"chips": weighed("a black dog", dog=1.5)}],
        "--weight red=2.0 --weight dog=1.5",
    ),
    "by hand": ([{}, {"by_hand": True, "cross_steps": 0.3}], "--cross-steps 0.3"),
    "masactrl": ([{"editor": "masactrl"}, {"editor": "masactrl"}], "--editor masactrl"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_command_repeats_a_chain(visitor, file, run, tmp_path, monkeypatch, name):
    (first, second), said = CHAINS[name]
    visitor.invert("a red cat", method="ddim", crop=[15, 0, 60, 60])
    made = visitor.ask("edit", target="a red dog", **first)["result"]
    view = visitor.ask("go_on", number=made["number"])
    assert (view["words"], view["fields"]["target"]) == (["a", "red", "dog"], "a red dog")
    carried = {chip["text"]: chip["weight"] for chip in view["fields"]["chips"]}
    assert carried["red"] == (2.0 if name == "weights" else 1.0)
    view = visitor.ask("edit", target="a black dog", base=made["number"], **second)
    assert view["problem"] is None
    result = view["result"]
    assert result["label"].startswith("cat → dog")
    assert ", then red → black" in result["label"]
    assert said in result["command"]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*shlex.split(result["command"])[1:])
    assert code == 0, err
    assert (tmp_path / "my cat-edited-2.png").read_bytes() == visitor.local(
        result["download"]
    ).read_bytes()


def test_a_chain_goes_on_where_it_was(visitor):
    visitor.invert("a red cat", method="ddim")
    first = visitor.ask("edit", target="a red dog")["result"]["number"]
    visitor.ask("go_on", number=first)
    problem = visitor.ask("edit", target="a red dog", base=first)["problem"]
    assert problem.startswith("Nothing is changed yet")
    second = visitor.ask("edit", target="a black dog", base=first)["result"]
    view = visitor.ask("look", word=0, base=first)
    assert view["look"]["word"] == 0
    assert visitor.ask("look", word=2, base=first)["look"] is None  # the source has no dog
    view = visitor.ask("go_on")
    assert (view["base"], view["words"]) == (None, ["a", "red", "cat"])
    view = visitor.ask("restore", number=second["number"])
    assert view["base"]["number"] == first
    assert (view["words"], view["fields"]["target"]) == (["a", "red", "dog"], "a black dog")
    third = visitor.ask("edit", target="a black cat in snow", base=second["number"])["result"]
    assert third["label"] == "cat → dog, then red → black, then dog → cat, + in, + snow"
    view = visitor.invert("a cat", method="ddim")
    assert (view["base"], view["words"]) == (None, ["a", "cat"])
    problem = visitor.ask("edit", target="a black dog", base=first)["problem"]
    assert "start from the photo again" in problem  # its words are of another inversion


def test_a_chain_outlives_its_first_edit(model, file):
    with studio_on(nulltext.load(model), model, limits=Limits(history=1)) as studio:
        visitor = Visitor(studio)
        visitor.open(file)
        visitor.invert("a red cat", method="ddim")
        first = visitor.ask("edit", target="a red dog")["result"]["number"]
        visitor.ask("edit", target="a black dog", base=first)
        view = visitor.ask("edit", target="a bright dog", base=first)
        assert view["problem"] is None
        assert [one["target"] for one in view["history"]] == ["a bright dog"]
        assert "--target 'a red dog' --then 'a bright dog'" in view["result"]["command"]


# --- Downloads and batches -----------------------------------------------------------------------


@pytest.fixture
def located(tmp_path):
    """A photo that says where it was taken."""
    exif = Image.Exif()
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "N", (48.0, 8.0, 0.0)
    gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (11.0, 34.0, 0.0)
    path = tmp_path / "garden.jpg"
    Image.effect_noise((90, 60), 60).convert("RGB").save(path, exif=exif)
    return path


def edited(visitor):
    visitor.invert("a red cat", method="ddim", crop=[15, 0, 60, 60])
    return visitor.ask("edit", target="a red dog")["result"]


@pytest.mark.parametrize(
    ("asked", "suffix", "kind", "exact"),
    [
        ({}, ".png", "PNG", True),
        ({"kind": "png", "bits": 16}, ".png", "PNG", True),
        ({"kind": "jpeg", "quality": 60}, ".jpg", "JPEG", False),
        ({"kind": "webp", "gps": True}, ".webp", "WEBP", True),
        ({"kind": "tiff", "bits": 8}, ".tif", "TIFF", True),
        ({"kind": "tiff", "bits": 16, "gps": True}, ".tif", "TIFF", True),
    ],
)
def test_a_result_in_every_format(visitor, located, asked, suffix, kind, exact):
    assert visitor.open(located)["photo"]["has_position"]
    result = edited(visitor)
    view = visitor.ask("export", number=result["number"], ask=7, **asked)
    assert view["problem"] is None
    made = view["export"]
    assert (made["ask"], made["name"]) == (7, f"garden – cat to dog{suffix}")
    path = visitor.local(made["url"])
    assert path.suffix == (".png" if kind == "PNG" else suffix)
    with Image.open(path) as image:
        assert image.format == kind
        assert image.size == (90, 60)
    there, kept = load_photo(path), load_photo(visitor.local(result["download"]))
    assert there.bits == asked.get("bits", 8)
    assert has_position(there.exif) == asked.get("gps", False)
    same = np.asarray(there.image) == np.asarray(kept.image)
    assert same.all() == exact
    again = visitor.ask("export", number=result["number"], ask=8, **asked)["export"]
    assert again == {**made, "ask": 8}
    assert not [one for one in visitor.folder.rglob("*") if one.name.startswith(".")]


def test_a_quality_changes_the_size(visitor):
    result = edited(visitor)
    sizes = [
        visitor.local(
            visitor.ask("export", number=result["number"], kind="jpeg", quality=q)["export"]["url"]
        )
        .stat()
        .st_size
        for q in (20, 60, 95)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("asked", "wrong", "said"),
    [
        ({"kind": "jpeg", "quality": 101}, "quality", "give a number from 1 to 100"),
        ({"kind": "gif"}, None, "There is no format 'gif'"),
        ({"kind": "jpeg", "bits": 16}, None, "JPEG holds 8 bits a channel, not 16"),
        ({"kind": "png", "quality": 90}, None, "A quality is a JPEG's"),
    ],
)
def test_a_format_that_does_not_exist_is_one_sentence(visitor, asked, wrong, said):
    result = edited(visitor)
    view = visitor.ask("export", number=result["number"], **asked)
    assert said in view["problem"]
    assert (view["wrong"], view["export"]) == (wrong, None)


def test_downloads_are_bounded_and_go_with_the_photo(visitor, file):
    result = edited(visitor)
    for quality in range(1, Limits().exports + 4):
        visitor.ask("export", number=result["number"], kind="jpeg", quality=quality)
    assert len([*visitor.folder.rglob("*.jpg")]) == Limits().exports + 2  # and two previews
    visitor.open(file)
    assert len([*visitor.folder.rglob("*.jpg")]) == 1


@pytest.mark.parametrize("crop", [[0, 0, 90, 60], [15, 0, 60, 60]])
def test_a_batch_does_the_same_to_other_photos(visitor, file, run, tmp_path, monkeypatch, crop):
    visitor.invert("a red cat", method="ddim", steps=2, crop=crop)
    first = visitor.ask("edit", target="a red dog", strength=0.7, hue="model")["result"]
    result = visitor.ask("edit", target="a black dog", base=first["number"])["result"]
    batch = result["batch"]
    assert batch["name"] == "my cat – cat to dog, then red to black.jsonl"
    lines = [json.dumps({"image": name, **batch["job"]}) for name in ("b.png", file.name)]
    (tmp_path / batch["name"]).write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / file.name).write_bytes(file.read_bytes())
    Image.effect_noise((90, 60), 60).convert("RGB").save(tmp_path / "b.png")
    jobs = [*read_jobs(tmp_path / batch["name"])]
    assert all(isinstance(job, Job) for job in jobs)
    assert "mask" not in batch["job"]
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(batch["command"])
    assert program == "nulltext"
    code, _, err = run(*arguments, "--batch-size", "1")
    assert code == 0, err
    output = tmp_path / arguments[arguments.index("-o") + 1]
    pictures = [file_pixels(path) for path in output.rglob("*.png")]
    wanted = file_pixels(visitor.local(result["download"]))
    assert any(one.shape == wanted.shape and (one == wanted).all() for one in pictures)


def test_every_editor_has_its_settings():
    for name in EditorName:
        own = [option for option in OPTIONS.values() if option.about.editor is name]
        assert {one.name for one in own} - {"weight"} <= {*EDITING}  # weights are the chips'
