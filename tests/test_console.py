"""Standard output and error in encodings that lack most characters, and closed ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from nulltext.cli.console import SIGNS, open_streams
from nulltext.cli.main import app

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
        ("studio", "--captioner", NAME, "--no-browser", "--port", 0),
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


def test_a_pipe_that_is_closed_ends_a_command_without_a_traceback(inversion_file):
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "nulltext.cli.entry", "inspect", inversion_file]
    done = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


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
