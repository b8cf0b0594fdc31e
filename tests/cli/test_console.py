"""Standard output and error in encodings that lack most characters, and closed ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nulltext.cli.main import app
from nulltext.cli.report import SIGNS, open_streams

ENCODINGS = ("cp1252", "ascii")
VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
NAME = "猫–é"
"""Of files: the first letter is in neither encoding, the others are in cp1252."""
WRITTEN = {"cp1252": r"\u732b–é", "ascii": r"\u732b-\xe9"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("verb", [*VERBS, "benchmark", "benchmark pie", ""])
def test_every_help_is_shown(run_encoded, encoding, verb):
    code, out, err = run_encoded(encoding, *verb.split(), "--help")
    assert (code, err) == (0, "")
    assert "Usage" in out
    assert not set("┌╭│") & set(out)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_and_signs_that_an_encoding_lacks_are_written_in_ascii(
    run_encoded, encoding, here, model, photo
):
    photo.save(f"{NAME}.png")
    written, options = WRITTEN[encoding], ("--model", model, "--steps", 1)
    kept = f"{NAME}.safetensors"
    lines = {
        f"{written}.safetensors": ("invert", f"{NAME}.png", "--prompt", "a cat", *options),
        f"{written}-edited.png": (
            *("edit", f"{NAME}.png", "--source", "a cat", "--target", "a dog"),
            *(*options, "-o", f"{NAME}-edited.png"),
        ),
        f"{written}-replay.png": ("replay", kept, "--model", model),
        f"{written}-attention.png": ("attention", kept, "--model", model),
        written: ("inspect", kept),
        "Problem: psnr_bound is": ("doctor", "--model", model),  # of random weights
    }
    for said, line in lines.items():
        code, out, err = run_encoded(encoding, *line)
        assert code == (line[0] == "doctor"), err
        assert said in out
    code, out, err = run_encoded(encoding, "caption", f"{NAME}.png")
    assert code == 0, err
    ellipsis = "..." if encoding == "ascii" else "…"
    assert f"{written}.png' --source 'a photo of" in err
    assert f'--target "{ellipsis}"' in err
    code, out, err = run_encoded(encoding, "inspect", kept, "--json")
    assert json.loads(out)["file"] == kept


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_mistakes_name_files_in_any_encoding(run_encoded, encoding, here):
    for line in (
        ("train", NAME, "-o", "new"),
        ("study", NAME),
        ("benchmark", "pie", NAME),
        ("batch", NAME, "-o", "out"),
        ("convert-captioner", NAME, "--clip", NAME, "--gpt2", NAME, "-o", "captioner"),
        ("studio", "--captioner", NAME, "--no-browser", "--forget", "--port", 0),
        ("edit", "cat.png", f"--{NAME}"),
    ):
        code, out, err = run_encoded(encoding, *line)
        assert (code, out) == (2, ""), line
        assert WRITTEN[encoding] in err.replace("\n", ""), line


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-8"])
def test_a_name_that_is_no_text_is_shown_by_its_bytes(run_encoded, encoding, here):
    name = os.fsdecode(b"\xff.png")
    for line in (("caption", name), ("caption", f"--{name}")):
        code, out, err = run_encoded(encoding, *line)
        assert (code, out) == (2, "")
        assert r"\xff.png" in err


def test_every_sign_has_ascii_in_its_place():
    assert all(stands.isascii() and stands.isprintable() for stands in SIGNS.values())
    assert all(not sign.isascii() for sign in SIGNS)


def test_a_closed_stream_takes_every_line(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    open_streams()
    with sys.stdout as stream:
        stream.write("猫")


ENTRY = [sys.executable, "-m", "nulltext.cli.entry"]
FULL = Path("/dev/full")
"""A file of a disk that has no room."""
NO_ROOM = (
    b"Error: Standard output does not take what is written to it (No space left on device); files "
    b"that were finished are whole.\n"
)


@pytest.mark.parametrize("verb", ["inspect", "--help", "--version"])
def test_a_reader_that_has_gone_is_no_failure(inversion_file, verb):
    reading, writing = os.pipe()
    os.close(reading)
    line = [*ENTRY, verb, *([inversion_file] if verb == "inspect" else [])]
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("line", "code"), [("--help", 1), ("--version", 1), ("inspect gone.safetensors", 2)]
)
def test_a_full_disk_behind_the_streams_is_one_line_and_keeps_the_code(line, code, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with FULL.open("wb") as full:
        given = {"env": environment, "check": False}
        lost = subprocess.run([*ENTRY, *line.split()], stdout=full, stderr=subprocess.PIPE, **given)
        mute = subprocess.run([*ENTRY, *line.split()], stdout=full, stderr=full, **given)
    assert (lost.returncode, mute.returncode) == (code, code)
    if code == 1:
        assert lost.stderr == NO_ROOM
    else:
        assert b"gone.safetensors" in lost.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device here")
def test_a_picture_is_written_with_a_full_disk_behind_the_streams(here, model, photo):
    photo.save("cat.png")
    line = [*ENTRY, "edit", "cat.png", "--source", "a cat", "--target", "a dog", "--steps", "1"]
    line += ["--model", str(model), "-o", "dog.png", "--json"]
    with FULL.open("wb") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1
        assert done.stderr.endswith(NO_ROOM)
        made = Path("dog.png").read_bytes()
        Path("dog.png").unlink()
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["outputs"] == ["dog.png"]
    assert Path("dog.png").read_bytes() == made


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are no bytes there")
def test_an_argument_in_another_encoding_than_the_consoles_says_how_to_set_it(here, model, photo):
    photo.save("cat.png")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = ["edit", "cat.png", "--source", "a cat", "--target", "a 🐶", "--steps", "1"]
    done = subprocess.run(
        [*ENTRY, *line, "--model", str(model)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert b"Character 3 of the prompt was typed in UTF-8, which the system's enc" in done.stderr
    assert b"set LC_ALL=C.UTF-8 or PYTHONUTF8=1." in done.stderr


def test_a_real_process_in_a_western_windows_encoding():
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-m", "nulltext.cli.entry", "inspect", f"{NAME}.safetensors"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.decode("cp1252").startswith(r"Error: ")
    assert r"\u732b–é.safetensors" in done.stderr.decode("cp1252")
