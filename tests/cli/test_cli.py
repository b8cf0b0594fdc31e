"""The command line from end to end, on a tiny model folder, and on the bundled model once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import nulltext
from nulltext.models.side_files import KnownWords, write_guidance, write_words
from support.examples import DAHLIA_PROMPT, EDIT, EXAMPLE
from support.pictures import file_pixels


def test_names_of_files_in_any_script(here, model, run):
    photo, kept, made = "\u732b \U0001f408.png", "Ka\u0308tzchen 1.safetensors", "K\u00e4tzchen.png"
    (here / "cat.png").rename(photo)
    edit = ("edit", photo, "--source", "a cat", "--target", "a dog", "--model", model)
    code, out, err = run(
        *(*edit, "--steps", 1, "--method", "ddim", "--save-inversion", kept, "-o", made, "--json")
    )
    assert code == 0, err
    assert json.loads(out)["outputs"] == [made]
    assert sorted(path.name for path in here.iterdir()) == sorted([photo, kept, made])
    assert nulltext.Inversion.load(kept).header.prompt == "a cat"


def test_edit_writes_a_picture_a_strip_and_one_json_object(here, model, run):
    code, out, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model),
        *("--steps", 3, "-o", "dog.png", "--strip", "strip.png", "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert set(result) == {
        "outputs",
        "source",
        "strip",
        "sweep",
        "regions",
        "psnr_bound",
        "psnr_replay",
        "psnr_reconstruction",
        "changed_fraction",
        "psnr_outside",
        "mask_fraction",
        "region_fraction",
        "shows_at",
        "unchanged",
        "remarks",
        "seconds_invert",
        "seconds_edit",
        "unet_evaluations",
    }
    assert result["outputs"] == ["dog.png"]
    with Image.open("dog.png") as picture:
        assert picture.size == (32, 32)
        settings = json.loads(picture.text["nulltext"])
    assert settings["target"] == "a dog"
    assert settings["method"] == "fixed-point"
    with Image.open("strip.png") as strip:
        assert strip.width > 4 * 256
    assert "Inversion" in err
    assert "Editing" in err
    assert sorted(p.name for p in here.iterdir()) == ["cat.png", "dog.png", "strip.png"]


def test_several_targets_get_numbers_and_quiet_is_quiet(here, model, run):
    code, out, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--target", "a red cat"),
        *("--model", model, "--steps", 2, "--method", "ddim", "--quiet"),
    )
    assert (code, out, err) == (0, "", "")
    assert (here / "cat-edited-1.png").is_file()
    assert (here / "cat-edited-2.png").is_file()


def test_invert_replay_inspect_and_edit_again(here, model, run):
    code, out, err = run(
        *("invert", "cat.png", "--prompt", "a cat", "--model", model, "--steps", 3),
        *("-o", "kept.safetensors", "--json"),
    )
    assert code == 0, err
    inverted = json.loads(out)
    assert inverted["file"] == "kept.safetensors"
    assert inverted["method"] == "fixed-point"
    code, out, _ = run("replay", "kept.safetensors", "--model", model, "-o", "r.png", "--json")
    assert code == 0
    assert json.loads(out)["psnr_reconstruction"] == pytest.approx(
        inverted["psnr_reconstruction"], abs=1e-3
    )
    code, out, _ = run("inspect", "kept.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["prompt"] == "a cat"
    assert json.loads(out)["tensors"]["trajectory"] == [4, 4, 8, 8]
    edited = {}
    for name, arguments in {
        "again": ("--inversion", "kept.safetensors"),
        "at once": ("cat.png", "--source", "a cat", "--steps", 3),
    }.items():
        code, _, err = run(
            "edit", *arguments, "--target", "a dog", "--model", model, "-o", f"{name}.png"
        )
        assert code == 0, err
        edited[name] = file_pixels(f"{name}.png")
    assert np.array_equal(edited["again"], edited["at once"])


def test_full_pastes_into_the_photo_at_its_own_size(here, model, run, photo):
    code, _, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model),
        *("--steps", 2, "--crop", "10,5,30", "--full", "-o", "dog.png"),
    )
    assert code == 0, err
    before, after = np.asarray(photo), file_pixels("dog.png")
    assert before.shape == after.shape
    changed = (before != after).any(axis=-1)
    assert changed[6:34, 11:39].any()
    changed[5:35, 10:40] = False
    assert not changed.any()


def test_save_inversion_keeps_it(here, model, run):
    code, _, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a dog", "--model", model),
        *("--steps", 2, "--save-inversion", "kept.safetensors"),
    )
    assert code == 0, err
    assert nulltext.Inversion.load("kept.safetensors").header.prompt == "a cat"


def test_a_weight_goes_to_the_targets_that_have_its_word(here, model, run):
    code, _, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a red cat", "--target", "a dog"),
        *("--weight", "red=2", "--model", model, "--steps", 2, "-o", "out.png"),
    )
    assert code == 0, err
    weights = []
    for name in ("out-1.png", "out-2.png"):
        with Image.open(name) as picture:
            weights.append(json.loads(picture.text["nulltext"])["weights"])
    assert weights == [{"red": 2.0}, {}]


def test_a_weight_of_one_of_two_equal_words(here, model, run):
    """Without a number both are weighed, as ever; with one, that word alone."""
    edit = ("edit", "cat.png", "--source", "a red cat", "--model", model, "--steps", 2, "--target")
    both = "a red cat on a red sofa"
    pictures = []
    for weights in (["red=2"], ["red#1=2", "red#2=2"], ["red#2=2"], ["red=2", "red#1=1"]):
        flags = [text for weight in weights for text in ("--weight", weight)]
        code, _, err = run(*edit, both, *flags, "-o", "out.png")
        assert code == 0, err
        pictures.append(file_pixels("out.png").tolist())
    assert pictures[0] == pictures[1] != pictures[2] == pictures[3]
    code, _, err = run(*edit, both, "--weight", "red#3=2", "-o", "third.png")
    assert code == 2
    assert "which says 'red' 2 times; write 'red' or a number up to 2." in " ".join(err.split())
    assert not Path("third.png").exists()


def test_the_colour_profile_of_the_photo_is_kept(here, model, run):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(file_pixels("cat.png")).save("managed.png", icc_profile=profile)
    for extra in ((), ("--full",)):
        code, _, err = run(
            *("edit", "managed.png", "--source", "a cat", "--target", "a dog", "--model", model),
            *("--steps", 2, "-o", "out.png", "--strip", "strip.png", *extra),
        )
        assert code == 0, err
        for name in ("out.png", "strip.png"):
            with Image.open(name) as picture:
                assert picture.info.get("icc_profile") == profile, name


def test_words_that_the_model_reads_letter_by_letter_are_pointed_out(here, model, run):
    code, _, err = run(
        *("edit", "cat.png", "--source", "a cat", "--target", "a qzj", "--model", model),
        *("--target", "a ((red)) cat", "--target", "make it red", "--steps", 1, "--method", "ddim"),
    )
    assert code == 0, err
    assert "no word for qzj" in err
    assert 'Note: "((red))": another tool\'s emphasis' in err
    assert "pass --weight red=1.21." in err
    assert 'Note: "make it red" is an instruction' in err
    assert "has not learnt" not in err  # nobody knows what it was taught


def test_words_that_the_model_was_not_taught_are_pointed_out(here, run):
    code, _, err = run(
        *("edit", "cat.png", "--source", "a photo of a cat", "--target", "a photo of a dog"),
        *("--then", "a qzj", "--steps", 1, "--method", "ddim", "--region", "everywhere"),
        *("--detail", "model"),
    )
    assert code == 0, err
    assert err.count("Note:") == 1
    assert 'has not learnt "cat", "dog", "qzj", and' in err
    assert "what changes is chance. It knows flower, dandelion, " in err


def test_the_words_of_a_saved_inversion_are_looked_at_too(saved, model, run):
    taught = shutil.copytree(model, Path("taught"))
    write_words(KnownWords(("photo",), ()), nulltext.load(taught).fingerprint, taught)
    code, _, err = run("edit", "--inversion", saved, "--target", "a dog", "--model", "taught")
    assert code == 0, err
    assert 'has not learnt "cat", "dog", and "a cat" and "a dog" differ in nothing else' in err
    code, _, err = run("attention", saved, "--model", "taught", "--target", "make it (red:2) now")
    assert code == 0, err
    assert 'has not learnt "cat", which' in err
    assert "pass --weight red=2." in err
    assert "is an instruction" in err


def test_the_models_guidance_is_every_commands_default(here, model, run):
    careful = Path(shutil.copytree(model, "careful"))
    write_guidance(3.5, nulltext.load(careful).fingerprint, careful)
    how = ("--model", careful, "--steps", 2)
    words = ("--source", "a cat", "--target", "a dog", "-o", "dog.png")
    for name, given, scale in (("own", (), 3.5), ("given", ("--guidance", 4), 4.0)):
        kept = f"{name}-edit.safetensors"
        code, _, err = run("edit", "cat.png", *words, *how, *given, "--save-inversion", kept)
        assert code == 0, err
        made = f"{name}.safetensors"
        code, _, err = run("invert", "cat.png", "--prompt", "a cat", *how, *given, "-o", made)
        assert code == 0, err
        for file in (kept, made):
            assert nulltext.Inversion.load(file).header.guidance_scale == scale


REFUSED = {
    "no such file": (("edit", "gone.png", *EDIT[2:]), "gone.png"),
    "not an image": (("edit", "text.png", *EDIT[2:]), "not an image"),
    "empty image": (("edit", "empty.png", *EDIT[2:]), "empty"),
    "truncated image": (("edit", "half.png", *EDIT[2:]), "half.png"),
    "bomb": (("edit", "bomb.png", *EDIT[2:]), "pixels"),
    "crop outside": ((*EDIT, "--crop", "40,0,48"), "64 x 48"),
    "crop malformed": ((*EDIT, "--crop", "40,0"), "x,y,size"),
    "crop empty": ((*EDIT, "--crop", ""), "x,y,size"),
    "empty source": ((*EDIT[:3], "", *EDIT[4:]), "empty"),
    "blank target": ((*EDIT[:5], "   "), "empty"),
    "too many tokens": ((*EDIT[:5], "a dog " * 20), "40 tokens"),
    "weight of a missing word": ((*EDIT, "--weight", "tabby=2"), "Words: a, dog"),
    "weight malformed": ((*EDIT, "--weight", "dog"), "WORD=FACTOR"),
    "weight no number": ((*EDIT, "--weight", "dog=much"), "WORD=FACTOR"),
    "weight not finite": ((*EDIT, "--weight", "dog=inf"), "dog"),
    "same prompts": ((*EDIT[:5], "a cat"), "same as the source"),
    "no steps": ((*EDIT, "--steps", "0"), "from 1 to 1000"),
    "too many steps": ((*EDIT, "--steps", "1001"), "from 1 to 1000"),
    "too many inner steps": ((*EDIT, "--inner-steps", "10000"), "from 0 to 9999"),
    "steps of invert": (("invert", "cat.png", "--prompt", "a", "--steps", "0"), "from 1 to 1000"),
    "removed option": ((*EDIT, "--solver", "adam"), "published solver, Adam"),
    "removed option, with =": ((*EDIT, "--null-start=empty"), "--method null-text begins"),
    "pivot of the default": ((*EDIT, "--pivot", "ddim"), "not an option of the method fixed"),
    "method of another budget": ((*EDIT, "--method", "ddim", "--budget", "fast"), "leave one"),
    "guidance of one": (
        (*EDIT, "--method", "null-text", "--guidance", "1"),
        "cannot do anything",
    ),
    "guidance not finite": ((*EDIT, "--guidance", "nan"), "guidance"),
    "guidance infinite": ((*EDIT, "--guidance", "inf"), "--guidance is inf"),
    "fraction": ((*EDIT, "--cross-steps", "1.2"), "from 0 to 1"),
    "unwritable output": ((*EDIT, "-o", "no/such/folder.png"), "does not exist"),
    "output is a folder": ((*EDIT, "-o", "folder.png"), "folder"),
    "output of unknown kind": ((*EDIT, "-o", "dog.docx"), ".png"),
    "output over input": ((*EDIT, "-o", "cat.png"), "choose another name"),
    "strip over output": ((*EDIT, "-o", "a.png", "--strip", "a.png"), "choose another name"),
    "no target": (EDIT[:4], "--target"),
    "no source": (("edit", "cat.png", "--target", "a dog"), "--source"),
    "no image": (("edit", "--source", "a cat", "--target", "a dog"), "IMAGE"),
    "no inversion": (("edit", "--inversion", "x.safetensors", "--target", "b"), "does not exist"),
    "foreign inversion": (("edit", "--inversion", "cat.png", "--target", "b"), "cat.png"),
    "inversion of unknown kind": (("invert", "cat.png", "--prompt", "a", "-o", "a.pt"), "a.pt"),
    "replay of nothing": (("replay", "x.safetensors"), "does not exist"),
    "inspect of nothing": (("inspect", "x.safetensors"), "does not exist"),
    "missing model": ((*EDIT, "--model", "no-such-model"), "neither bundled"),
    "folder without a model": ((*EDIT, "--model", "folder.png"), "model_index.json"),
    "seed": ((*EDIT, "--seed", "99999999999999999999"), "seed"),
    "device": ((*EDIT, "--device", "warp"), "warp"),
    "blend of a missing word": ((*EDIT, "--blend", "tabby"), "Words: a, cat; a, dog"),
    "exception without a blend": ((*EDIT, "--blend-except", "cat"), "--blend"),
    "threshold": ((*EDIT, "--blend", "cat", "--blend-threshold", "1"), "threshold"),
    "no such mask": ((*EDIT, "--mask", "gone.png"), "gone.png"),
    "mask that is no image": ((*EDIT, "--mask", "text.png"), "not an image"),
    "empty mask": ((*EDIT, "--mask", "black.png"), "black everywhere"),
    "full mask": ((*EDIT, "--mask", "white.png"), "white everywhere"),
    "mask of another shape": ((*EDIT, "--mask", "long.png"), "64 x 48"),
    "mask outside the crop": ((*EDIT, "--mask", "corner.png", "--crop", "20,10,30"), "no white"),
    "mask all over the crop": (
        (*EDIT, "--mask", "corner.png", "--crop", "0,0,8"),
        "white all over the crop 0,0,8",
    ),
    "mask as output": ((*EDIT, "--mask", "corner.png", "-o", "corner.png"), "choose another"),
    "strength": ((*EDIT, "--strength", "1.5"), "from 0 to 1"),
    "strength and its parts": ((*EDIT, "--strength", "1", "--self-steps", "0.2"), "--self-steps"),
    "region and mask": ((*EDIT, "--region", "words", "--mask", "m.png"), "leave one out"),
    "region and blend": ((*EDIT, "--region", "everywhere", "--blend", "cat"), "leave one out"),
    "region over output": ((*EDIT, "-o", "a.png", "--region-out", "a.png"), "choose another name"),
    "threshold of nothing": ((*EDIT, "--blend-threshold", "0.2"), "--blend"),
    "sweep over output": ((*EDIT, "-o", "a.png", "--sweep", "a.png"), "choose another name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_one_sentence_and_nothing_written(case, here, model, run):
    make_bad_files(here)
    arguments, words = REFUSED[case]
    if "--model" not in arguments and arguments[0] != "inspect":
        arguments = (*arguments, "--model", model)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code, out, err = run(*arguments)
    assert code == 2, err
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert err.startswith("Error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def make_bad_files(folder):
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes((folder / "cat.png").read_bytes()[:200])
    whole = bytearray((folder / "cat.png").read_bytes())
    whole[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the PNG header
    import zlib

    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(whole)
    (folder / "folder.png").mkdir()
    Image.new("L", (64, 48)).save(folder / "black.png")
    Image.new("L", (64, 48), 255).save(folder / "white.png")
    corner = Image.new("L", (64, 48))
    corner.paste(255, (0, 0, 9, 9))
    corner.save(folder / "corner.png")
    corner.resize((64, 16)).save(folder / "long.png")


@pytest.mark.parametrize(
    "option",
    [
        "--steps=5",
        "--guidance=3",
        "--method=ddim",
        "--crop=0,0,9",
        "--budget=fast",
        "--pivot=ddim",
        "--seed=1",
    ],
)
def test_what_a_saved_inversion_settles_cannot_be_asked_again(saved, run, option):
    code, _, err = run("edit", "--inversion", saved, "--target", "a dog", option)
    assert code == 2
    assert "settled by the saved inversion" in err


def test_a_saved_inversion_goes_with_its_own_photo_prompt_and_model(saved, here, model, run):
    cat = Image.fromarray(file_pixels("cat.png"))
    cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("other.png")
    edit = ("edit", "--inversion", saved, "--target", "a dog", "--model", model)
    assert run(*edit, "other.png")[0] == 2
    assert "another photo" in run(*edit, "other.png")[2]
    assert "was made for" in run(*edit, "--source", "a dog")[2]
    assert run(*edit, "--source", " a\u00a0cat\u200b ", "-o", "spaced.png")[0] == 0
    assert "other weights" in run(*edit[:-2])[2]
    assert "pass IMAGE" in run(*edit, "--full")[2]
    cat.save("same.jpg", quality=97)
    code, _, err = run(*edit, "same.jpg", "-o", "edited.png")
    assert code == 0, err


def test_a_failed_edit_leaves_older_results_alone(here, model, run):
    (here / "dog.png").write_bytes(b"precious")
    code, _, _ = run(*EDIT, "-o", "dog.png", "--model", model, "--weight", "tabby=2")
    assert code == 2
    assert (here / "dog.png").read_bytes() == b"precious"


def test_out_of_memory_says_what_to_lower(here, model, run, monkeypatch):
    from nulltext.models.latent_diffusion import LatentDiffusion

    def exhausted(self, *arguments):
        import torch

        return torch.empty(2**60)

    monkeypatch.setattr(LatentDiffusion, "predict", exhausted)
    code, _, err = run(*EDIT, "--model", model, "--steps", 2)
    assert code == 2
    assert "out of memory" in err
    assert "float16" in err


VERBS = ["edit", "invert", "replay", "inspect", "attention"]


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_shows_an_example(run, verb):
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert "Example: nulltext" in " ".join(out.split())


def test_version(run):
    assert run("--version") == (0, f"nulltext {nulltext.__version__}\n", "")


def test_the_installed_command_edits_the_example(tmp_path):
    command = shutil.which("nulltext", path=str(sys.prefix) + "/bin")
    assert command, "the console script is not installed"
    done = subprocess.run(
        [
            *(command, "edit", str(EXAMPLE), "--source", DAHLIA_PROMPT, "--steps", "6"),
            *("--target", DAHLIA_PROMPT.replace("orange", "red"), "-o", "red.png", "--json"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["psnr_reconstruction"] > result["psnr_bound"] - 8  # DDIM alone is 10 below
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.size == (128, 128)
