"""Batches: one path with `edit`, shared inversions, nothing lost or twice, one bad job alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nulltext
from nulltext.cli import main as cli
from nulltext.cli.batch import ADDRESS
from nulltext.errors import NumericalError
from nulltext.jobs import batch as batches
from nulltext.jobs import pictures
from nulltext.jobs.batch import BATCH
from nulltext.jobs.ledger import read_book
from nulltext.models.choice import ModelChoice
from nulltext.models.side_files import KnownWords, write_words
from support.examples import small_disk
from support.processes import killed_when

SHORT = {"source": "a cat", "steps": 2}
ADAM = {"budget": "paper", "inner_steps": 1}
"""Null-text inversion, which also works on several photos."""


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    """A folder with two photos and a mask."""
    monkeypatch.chdir(tmp_path)
    photo.save("a.png")
    photo.rotate(180).save("b.png")
    mask = np.zeros((48, 64), np.uint8)
    mask[:24] = 255
    Image.fromarray(mask).save("m.png")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys, model):
    """Run `nulltext batch` in this process: (exit code, JSON, standard error)."""

    def call(*arguments, verb="batch"):
        line = ["nulltext", verb, *map(str, arguments), "--model", model, "--json"]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        said = json.loads(captured.out) if captured.out else None
        return stop.value.code or 0, said, captured.err

    return call


def write(folder, *jobs, name="jobs.jsonl"):
    lines = [job if isinstance(job, str) else json.dumps(SHORT | job) for job in jobs]
    (folder / name).write_text("\n".join(lines))
    return folder / name


def rows_in(folder):
    return read_book(BATCH, folder)[1]


def everything_in(folder):
    """Bytes by name, and rows without what was measured."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix == ".png"
    }
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    rows = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["job"] not in rows
        rows[row["job"]] = {k: v for k, v in row.items() if not k.startswith("seconds")}
    return found, names, rows


def pixels_of(path):
    return np.asarray(Image.open(path), dtype=np.int16)


def assert_same_pictures(ours, theirs, levels):
    """Equal rows and names, and pictures that differ by so many of 255 levels at most.

    Figures of pictures are the same within 0.05: decibels, and shares of the picture. For few
    steps: random weights magnify rounding from step to step.
    """
    first, second = everything_in(ours), everything_in(theirs)
    assert first[1] == second[1]  # names
    assert first[2].keys() == second[2].keys()
    for job, row in first[2].items():
        other = second[2][job]
        assert row.keys() == other.keys()
        for name in row.keys() - {"sha256"}:
            assert row[name] == pytest.approx(other[name], abs=0.05), name
        for output in row.get("outputs", ()):
            between = np.abs(pixels_of(ours / output) - pixels_of(theirs / output))
            assert between.max() <= levels, output


def counted(monkeypatch):
    """Prompts that are inverted from now on, those of each batch together."""
    from nulltext.inversion import invert

    seen = []
    alone, several = invert.request_steps, invert.many_steps

    def request_steps(model, request, partial):
        seen.append([request.prompt])
        return alone(model, request, partial)

    def many_steps(model, requests, batch_size):
        seen.append(sorted(request.prompt for request in requests))
        return several(model, requests, batch_size)

    monkeypatch.setattr(invert, "request_steps", request_steps)
    monkeypatch.setattr(invert, "many_steps", many_steps)
    return seen


def test_a_job_is_what_edit_makes_of_the_same_options(here, run):
    options = {"target": ["a dog", "a red cat"], "mask": "m.png", "full": True, "strength": 0.7}
    options |= {"weight": "dog=2", "crop": "8,0,48", "strip": True, "sweep": True, "seed": 2}
    options |= {"target_guidance": 4, "detail": "photo", "source_branch": "exact"}
    options |= {"over": "self=0,1", "align": "refine"}
    code, said, err = run(write(here, {"image": "a.png"} | options), "-o", "out")
    assert (code, said["done"], said["failed"]) == (0, 1, 0), err
    (row,) = rows_in(here / "out")
    code, direct, err = run(
        *("a.png", "--source", "a cat", "--target", "a dog", "--target", "a red cat", "--full"),
        *("--mask", "m.png", "--strength", 0.7, "--weight", "dog=2", "--crop", "8,0,48"),
        *("--strip", "s.png", "--sweep", "g.png", "--seed", 2, "--target-guidance", 4),
        *("--detail", "photo", "--source-branch", "exact", "--over", "self=0,1"),
        *("--align", "refine", "--steps", 2, "-o", "x.png"),
        verb="edit",
    )
    assert code == 0, err
    pairs = [*zip(row["outputs"], direct["outputs"], strict=True)]
    pairs += [(row["strip"], "s.png"), (row["sweep"], "g.png")]
    assert len(pairs) == 4
    for ours, theirs in pairs:
        assert (here / "out" / ours).read_bytes() == (here / theirs).read_bytes(), theirs
    for figure in (
        "psnr_bound",
        "psnr_reconstruction",
        "changed_fraction",
        "psnr_outside",
        "unchanged",
    ):
        assert row[figure] == direct[figure]


def test_a_table_asks_for_the_jobs_of_its_lines_and_repeats_none(here, run):
    jobs = [{"image": "a.png", "target": "a dog"}, {"image": "b.png", "target": "a dog"}]
    assert run(write(here, jobs[0]), "-o", "out")[0] == 0
    rows = [
        "image;source;target;steps;full",
        "a.png;a cat;a dog;2;",
        "",
        "b.png;;;2;",
    ]
    (here / "jobs.csv").write_text("\r\n".join(rows), encoding="utf-16")
    before = everything_in(here / "out")[2]
    code, said, err = run("jobs.csv", "-o", "out")
    assert (code, said["done"], said["failed"]) == (2, 1, 1), err
    assert said["reasons"] == [
        {"line": 4, "reason": 'Row 4 has no "target"; say what the photo shall show.'}
    ]
    assert before.items() <= everything_in(here / "out")[2].items()  # nothing was done again
    (here / "array.json").write_text(json.dumps([SHORT | job for job in jobs], indent=2))
    code, said, _ = run("array.json", "-o", "out")
    assert (code, said["done"], said["failed"]) == (0, 2, 0)
    (here / "jobs.yaml").write_text("- image: a.png\n  target: a dog\n" * 20)
    code, said, err = run("jobs.yaml", "-o", "out")
    assert (code, said) == (2, None)
    assert err.count("is no job file") == 1


def test_a_row_remarks_on_words_that_the_model_was_not_taught(here, run, model):
    targets = ["a qzj", "((red)) cat", "make it red"]
    unlisted = write(here, {"image": "a.png", "target": targets, "method": "ddim"})
    code, _, err = run(unlisted, "-o", "unlisted")
    assert code == 0
    ((syntax, instruction, said),) = (row["remarks"] for row in rows_in(here / "unlisted"))
    assert "pass --weight red=1.21." in syntax
    results = Path("unlisted") / "results.jsonl"
    assert f"1 row has remarks; see {results}. The first, of line 1: {syntax}\n" in err
    assert '"make it red" is an instruction' in instruction
    assert "no word for qzj and reads letter by letter" in said  # as `edit` says it
    known = KnownWords(("dog", "red"), ("a",))
    path = write_words(known, nulltext.load(model).fingerprint, Path(model))
    try:
        job = {"image": "a.png", "method": "ddim"}
        jobs = write(here, *(job | {"target": f"a {word}"} for word in ("dog", "fox")))
        assert run(jobs, "-o", "out")[0] == 0
    finally:
        path.unlink()
    remarks = {row["target"][0]: row["remarks"] for row in rows_in(here / "out")}
    ((simple,), (blind,)) = remarks["a dog"], remarks["a fox"]
    assert 'has not learnt "cat", which will do little' in simple
    assert "differ in nothing else" in blind


def test_an_address_is_told_from_a_path(here, run):
    jobs = write(here, {"image": "https://example.com/a.jpg", "target": "a dog"})
    code, said, _ = run(jobs, "-o", "out", "--dry-run")
    assert code == 2
    (reason,) = (each["reason"] for each in said["reasons"])
    assert reason.startswith("Line 1: 'https://example.com/a.jpg' is an address")


def test_jobs_on_one_photo_share_its_inversion(here, run, monkeypatch):
    seen = counted(monkeypatch)
    jobs = write(
        here,
        {"image": "a.png", "target": "a dog"},
        {"image": "b.png", "target": "a dog"},
        {"image": "a.png", "target": "a red cat"},
        {"image": "./a.png", "target": "a cow"},
        {"image": "a.png", "target": "a cow", "guidance": 4},
        {"image": "a.png", "target": "a cow", "source": "a dog"},
    )
    code, said, err = run(jobs, "-o", "out")
    assert (code, said["done"]) == (0, 6), err
    # the one at another guidance stands alone
    assert seen == [["a cat", "a cat", "a dog"], ["a cat"]]
    rows = rows_in(here / "out")
    kept = {row["inversion"] for row in rows}
    assert len(kept) == 4
    assert {p.relative_to(here / "out").as_posix() for p in here.rglob("*.safetensors")} == kept
    assert len({name for row in rows for name in row["outputs"]}) == 6
    inversion = nulltext.Inversion.load(here / "out" / rows[0]["inversion"])
    assert rows[0]["unet_evaluations_invert"] == inversion.header.unet_evaluations > 0


def test_photos_side_by_side_give_the_pictures_of_one_by_one(here, run, monkeypatch):
    Image.open("a.png").crop((0, 0, 40, 48)).save("c.png")
    Image.open("a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("d.png")
    jobs = [{"image": f"{n}.png", "target": t} for n in "abcd" for t in ("a dog", "a cow")]
    jobs += [{"image": f"{n}.png", "target": "a dog", "size": "photo"} for n in "abcd"]
    jobs += [{"image": f"{n}.png", "target": "a dog", **ADAM} for n in "abc"]
    jobs += [{"image": "a.png", "target": "a dog", "method": "negative-prompt"}]
    path = write(here, *jobs)
    assert run(path, "-o", "alone", "--batch-size", 1)[0] == 0
    seen = counted(monkeypatch)
    code, said, err = run(path, "-o", "together", "--batch-size", 3)
    assert (code, said["done"]) == (0, len(jobs)), err
    # four at the model's size; three of one size and one of another; by Adam; a method for one
    assert [len(prompts) for prompts in seen] == [3, 1, 2, 1, 1, 3, 1]
    # float32 rounding through 2 steps, which can turn the rounding of a level
    assert_same_pictures(here / "together", here / "alone", levels=1)
    costs = [row["unet_evaluations_invert"] for row in rows_in(here / "together")]
    assert min(costs) > 0


def test_a_photo_that_fails_leaves_its_neighbours_alone(here, run, monkeypatch):
    from nulltext.inversion import fixed_point

    (here / "half.png").write_bytes((here / "a.png").read_bytes()[:200])
    Image.open("a.png").rotate(90).save("c.png")
    good = [{"image": f"{n}.png", "target": "a dog"} for n in "abc"]
    bad = [{"image": "half.png", "target": "a dog"}]
    bad += [{"image": "a.png", "source": "cat " * 90, "target": "a dog"}]
    bad += [{"image": "b.png", "source": "a bad cat", "target": "a dog"}]
    plain, sizes = fixed_point.fixed_point_steps, []

    def without_bad_ones(model, latents, prompt_embeds, *rest, **more):
        sizes.append(len(latents))
        bad = model.embed(["a bad cat"])
        if any(torch.equal(row[None], bad) for row in prompt_embeds):
            raise NumericalError("The fixed-point inversion produced NaN.")
        return plain(model, latents, prompt_embeds, *rest, **more)

    monkeypatch.setattr(fixed_point, "fixed_point_steps", without_bad_ones)
    code, said, err = run(write(here, *bad, *good), "-o", "out")
    assert (code, said["done"], said["failed"]) == (1, 3, 3), err
    assert sizes == [4, 1, 1, 1, 1]  # one by one after all
    reasons = {reason["line"]: reason["reason"] for reason in said["reasons"]}
    assert "half.png" in reasons[1]
    assert "tokens" in reasons[2]
    assert "NaN" in reasons[3]


def test_what_is_stopped_between_two_jobs_inverts_nothing_again(here, run, monkeypatch):
    jobs = [{"image": f"{n}.png", "target": t} for n in "ab" for t in ("dog", "cow")]
    path = write(here, *jobs)
    assert run(path, "-o", "whole")[0] == 0
    plain, made = pictures.pictures_of, []

    def stopping(*arguments):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(plain(*arguments))
        return made[-1]

    with monkeypatch.context() as broken:
        broken.setattr(pictures, "pictures_of", stopping)
        run(path, "-o", "out")
    assert len(rows_in(here / "out")) == 3
    seen = counted(monkeypatch)
    assert run(path, "-o", "out")[1]["done"] == 4
    assert seen == []
    assert everything_in(here / "out") == everything_in(here / "whole")


def test_out_of_memory_makes_batches_smaller(here, run, monkeypatch):
    from nulltext.inversion import fixed_point

    for turn in range(1, 5):
        Image.open("a.png").rotate(20 * turn).save(f"{turn}.png")
    plain, sizes = fixed_point.fixed_point_steps, []

    def small(model, latents, *rest, **more):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise RuntimeError("CUDA out of memory")
        return plain(model, latents, *rest, **more)

    monkeypatch.setattr(fixed_point, "fixed_point_steps", small)
    jobs = [{"image": f"{turn}.png", "target": "a dog"} for turn in range(1, 5)]
    code, said, err = run(write(here, *jobs), "-o", "out")
    assert (code, said["done"]) == (0, 4), err
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize("method", ["fixed-point", "null-text"])
def test_an_inversion_that_was_begun_goes_on_alone(here, run, monkeypatch, method):
    from nulltext.inversion.partial import Partial

    own = {"method": method} | ({} if method == "fixed-point" else {"pivot": "fixed-point"})
    jobs = [{"image": f"{n}.png", "target": "a dog", **own} for n in "ab"]
    one = write(here, jobs[0], name="one.jsonl")
    written = Partial.write

    def stopping(partial, *kept):
        written(partial, *kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Partial, "write", stopping)
        run(one, "-o", "out")
    (begun,) = (here / "out").rglob("*.partial")
    seen = counted(monkeypatch)
    code, said, err = run(write(here, *jobs), "-o", "out")
    assert (code, said["done"]) == (0, 2), err
    assert [len(prompts) for prompts in seen] == [1, 1]
    assert not begun.exists()
    assert {row["inversion"] for row in rows_in(here / "out")} == {
        path.relative_to(here / "out").as_posix() for path in (here / "out").rglob("*.safetensors")
    }
    assert begun.with_suffix("").exists()  # under the name that it was begun under


def test_a_bad_job_is_told_and_the_others_are_done(here, run):
    jobs = write(
        here,
        {"image": "a.png", "target": "a dog"},
        {"image": "none.png", "target": "a dog"},
        '{"image": "a.png"',
        {"image": "jobs.jsonl", "target": "a dog"},
        {"image": "a.png", "target": "a dog", "blend": "zebra"},
        {"image": "a.png", "target": "a cat"},
        {"image": "a.png", "target": "a dog", "mask": "m.png", "save_inversion": "../x"},
        {"image": "b.png", "target": "a dog"},
    )
    dry, looked, _ = run(jobs, "-o", "out", "--dry-run")
    assert (dry, looked["jobs"], looked["inversions"], looked["done"]) == (2, 8, 3, 0)
    assert [reason["line"] for reason in looked["reasons"]] == [2, 3, 4, 6, 7]  # no model looked
    assert (
        "Error: 5 jobs cannot be done; the first: Line 2"
        in run(jobs, "-o", "o", "--dry-run", "-q")[2]
    )
    assert not (here / "out").exists()
    code, said, _ = run(jobs, "-o", "out")
    assert (code, said["done"], said["failed"]) == (2, 2, 6)
    assert sorted(reason["line"] for reason in said["reasons"]) == [2, 3, 4, 5, 6, 7]
    for row in rows_in(here / "out"):
        assert (row["status"] == "ok") == (row["line"] in (1, 8))
        if row["status"] == "failed":
            assert row["reason"].startswith(f"Line {row['line']}")
            assert row["input"] is True
    reasons = {reason["line"]: reason["reason"] for reason in said["reasons"]}
    assert "'zebra' is a word neither of" in reasons[5]
    assert "is not an image" in reasons[4]


def test_a_failure_of_ours_exits_with_1_and_is_retried_only_when_asked(here, run, monkeypatch):
    jobs = write(here, {"image": "a.png", "target": "a dog"}, {"image": "b.png", "target": "a dog"})
    plain, failures = pictures.pictures_of, []

    def sometimes(model, inputs, *rest):
        if failures and inputs.options.image.name == "a.png":
            raise failures.pop()
        return plain(model, inputs, *rest)

    monkeypatch.setattr(pictures, "pictures_of", sometimes)
    for failure in (NumericalError("The latents are NaN at timestep 1."), KeyError("oops")):
        failures.append(failure)
        code, said, _ = run(jobs, "-o", "out", "--retry-failed")
        assert (code, said["done"], said["failed"]) == (1, 1, 1)
    assert "KeyError: 'oops'" in said["reasons"][0]["reason"]
    assert run(jobs, "-o", "out")[0] == 1
    code, said, err = run(jobs, "-o", "out", "--retry-failed")
    assert (code, said["done"], said["failed"]) == (0, 2, 0), err
    assert {row["status"] for row in rows_in(here / "out")} == {"ok"}


def test_a_rerun_repeats_nothing_and_does_what_is_new(here, run, monkeypatch):
    first = {"image": "a.png", "target": "a dog"}
    code, _, err = run(write(here, first, first), "-o", "out")
    assert code == 0, err
    assert "repeat" in err
    before = (here / "out" / "results.jsonl").read_bytes()
    picture = here / "out" / rows_in(here / "out")[0]["outputs"][0]
    stamp = picture.stat().st_mtime_ns
    second = {"image": "a.png", "target": "a cow"}
    seen = counted(monkeypatch)
    code, said, _ = run(write(here, second, first), "-o", "out", "--limit", 2)
    assert (code, said["done"], seen) == (0, 2, [])
    after = (here / "out" / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 2
    assert picture.stat().st_mtime_ns == stamp
    picture.unlink()  # a row whose picture was taken away is open again
    assert run(here / "jobs.jsonl", "-o", "out")[1]["done"] == 2
    assert picture.exists()
    Image.open("b.png").save("a.png")  # another photo under the same name is another job
    assert run(here / "jobs.jsonl", "-o", "out")[1]["done"] == 2
    assert len(rows_in(here / "out")) == 4
    assert len(seen) == 1


def test_settings_must_not_change_midway(here, run):
    jobs = write(here, {"image": "a.png", "target": "a dog"})
    assert run(jobs, "-o", "out")[0] == 0
    code, _, err = run(jobs, "-o", "out", "--dtype", "bfloat16")
    assert code == 2
    assert "holds a batch with other settings: dtype float32 (now bfloat16)" in err
    (here / "other").mkdir()
    (here / "other" / "mine.txt").write_text("keep")
    code, _, err = run(jobs, "-o", "other")
    assert code == 2
    assert "files that are not a batch's" in err
    assert (here / "other" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("part", ["pictures", "inversions", "results.jsonl", "pictures/??"])
def test_nothing_is_written_through_a_symbolic_link(here, run, part):
    jobs = write(here, {"image": "a.png", "target": "a dog"})
    assert run(jobs, "-o", "out")[0] == 0
    (picture,) = (here / "out").glob("pictures/*/*.png")
    picture.unlink()
    (target,) = (here / "out").glob(part)
    elsewhere = here / "elsewhere"
    target.rename(elsewhere)
    target.symlink_to(elsewhere)
    held = sorted(elsewhere.rglob("*")) if elsewhere.is_dir() else elsewhere.read_bytes()
    code, _, err = run(jobs, "-o", "out")
    assert code == 2
    assert "symbolic link" in err
    assert held == (sorted(elsewhere.rglob("*")) if elsewhere.is_dir() else elsewhere.read_bytes())


def test_two_batches_do_not_mix(here, run, monkeypatch):
    jobs = write(here, {"image": "a.png", "target": "a dog"})
    plain, tried = pictures.pictures_of, []

    def meanwhile(*arguments):
        tried.append(run(jobs, "-o", "out"))
        return plain(*arguments)

    monkeypatch.setattr(pictures, "pictures_of", meanwhile)
    run(jobs, "-o", "out")
    code, _, err = tried[0]
    assert code == 2
    assert "is being written by another" in err


def test_a_full_disk_stops_with_one_sentence_and_keeps_what_is_there(here, run):
    with small_disk(here / "small", "2m") as small:
        jobs = [{"image": name, "target": t} for name in ("a.png", "b.png") for t in ("dog", "cow")]
        one = write(here, jobs[0], name="one.jsonl")
        assert run(one, "-o", small / "out")[0] == 0
        before = everything_in(small / "out")
        ballast = small / "ballast"
        with ballast.open("wb") as stream:
            try:
                while True:
                    os.write(stream.fileno(), b"x" * 4096)
            except OSError:
                pass
        code, said, err = run(write(here, *jobs), "-o", small / "out")
        assert (code, said) == (2, None)
        sentences = [line for line in err.splitlines() if line.startswith("Error")]
        assert len(sentences) == 1
        assert "No space left on device" in sentences[0]
        assert everything_in(small / "out")[2] == before[2]
        assert everything_in(small / "out")[0] == before[0]
        ballast.unlink()
        assert run(here / "jobs.jsonl", "-o", small / "out")[1]["done"] == 4
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        held = everything_in(small / "out")
        code, _, err = run(here / "jobs.jsonl", "-o", small / "out")
        assert code == 2
        assert "Read-only file system" in err
        assert everything_in(small / "out") == held


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(here, run, model):
    """Four kills, each when something else has just come into being."""
    jobs = [{"image": f"{n}.png", "target": t, "steps": 6} for n in "ab" for t in ("dog", "cow")]
    path = write(here, *jobs)
    one_by_one = ("--batch-size", 1)  # so that bytes are the same
    assert run(path, "-o", "whole", *one_by_one)[0] == 0
    signs = ("inversions/*/*.partial", "inversions/*/*.safetensors", "pictures/*/*.png")
    for sign in (*signs, "pictures/*/b-*.png"):
        killed_when(
            lambda sign=sign: any((here / "out").glob(sign)),
            *("batch", path, "-o", "out", "--model", model, *one_by_one),
        )
        for inversion in (here / "out").rglob("*.safetensors"):
            nulltext.Inversion.load(inversion)  # whole, under its final name
        for picture in (here / "out").rglob("*.png"):
            with Image.open(picture) as opened:
                opened.load()
    code, said, err = run(path, "-o", "out", *one_by_one)
    assert (code, said["done"]) == (0, 4), err
    assert everything_in(here / "out") == everything_in(here / "whole")


@pytest.mark.slow
def test_kill_9_of_photos_side_by_side_loses_nothing(here, run, model):
    Image.open("a.png").rotate(90).save("c.png")
    targets = ("dog", "cow", "red cat", "blue cat")
    path = write(here, *({"image": f"{n}.png", "target": t} for n in "abc" for t in targets))
    assert run(path, "-o", "whole", "--batch-size", 1)[0] == 0
    for sign in ("inversions/*/*.safetensors", "pictures/*/b-*.png"):
        killed_when(
            lambda sign=sign: any((here / "out").glob(sign)),
            *("batch", path, "-o", "out", "--model", model),
        )
    code, said, err = run(path, "-o", "out")
    assert (code, said["done"]) == (0, 12), err
    assert_same_pictures(here / "out", here / "whole", levels=1)  # float32 rounding, 2 steps


@pytest.mark.parametrize("batch_size", [1, 8])
def test_jobs_on_ray_are_done_as_here_though_a_worker_is_killed(here, run, model, batch_size):
    ray = pytest.importorskip("ray")
    from nulltext.jobs.cluster import Cluster
    from nulltext.jobs.worker import Setup

    for turn in (1, 2):
        Image.open("a.png").rotate(20 * turn).save(f"{turn}.png")
    # what the model drew: the cut where a region ends may turn on a rounding
    drawn = {} if batch_size == 1 else {"region": "everywhere", "detail": "model"}
    pairs = [(n, t) for n in "ab12" for t in ("dog", "cow", "red cat")]
    jobs = [{"image": f"{n}.png", "target": t, **drawn} for n, t in pairs]
    path = write(here, *jobs, {"image": "none.png", "target": "a dog"})
    assert run(path, "-o", "whole", "--batch-size", 1)[0] == 2
    folder = here / "out"
    setup = Setup(ModelChoice(str(model)), folder, batch_size)
    cluster = Cluster(setup, workers=2, threads=torch.get_num_threads())
    try:
        with batches.open_batch(setup, cluster.identity) as book:
            found = batches.read_batch(path)
            killed = 0
            for info in batches.batch_steps(cluster, found, book):
                busy = [slot for slot in cluster._slots if slot.unit is not None]
                if info.done >= 2 and busy and not killed:
                    ray.kill(busy[0].actor)
                    killed = 1
        assert killed
        assert (info.done, info.failed) == (12, 1)
    finally:
        cluster.close()
    if batch_size == 1:
        assert everything_in(folder) == everything_in(here / "whole")
    else:
        assert_same_pictures(folder, here / "whole", levels=1)  # float32 rounding


def test_a_worker_on_ray_that_dies_over_several_photos_leaves_them_to_be_done(here, run, model):
    ray = pytest.importorskip("ray")
    from nulltext.jobs.cluster import Cluster
    from nulltext.jobs.worker import Setup

    for turn in (1, 2):
        Image.open("a.png").rotate(20 * turn).save(f"{turn}.png")
    path = write(here, *({"image": f"{n}.png", "target": "dog", "steps": 40} for n in "ab12"))
    setup = Setup(ModelChoice(str(model)), here / "out", 4)
    cluster = Cluster(setup, workers=1, threads=torch.get_num_threads())
    asked, killed = cluster._assign, []

    def kill_once(slot):
        asked(slot)
        if slot.together and not killed:
            killed.append(len(slot.together))
            ray.kill(slot.actor)

    cluster._assign = kill_once
    try:
        with batches.open_batch(setup, cluster.identity) as book:
            *_, last = batches.batch_steps(cluster, batches.read_batch(path), book)
    finally:
        cluster.close()
    assert (killed, last.done, last.failed) == ([4], 4, 0)


def test_without_ray_one_sentence_says_how_to_get_it(here, run, monkeypatch):
    jobs = write(here, {"image": "a.png", "target": "a dog"})
    monkeypatch.setitem(sys.modules, "ray", None)
    for more in (["--ray"], ["--ray", "auto"], ["--workers", 2]):
        code, _, err = run(jobs, "-o", "out", *more)
        assert code == 2
        assert ("pip install 'nulltext[ray]'" in err) == ("--ray" in more)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("text", "is_address"),
    [
        ("auto", True),
        ("local", True),
        ("head.lan:6379", True),
        ("[fe80::1]:6379", True),
        ("ray://head:10001", True),
        ("jobs.jsonl", False),
        ("-o", False),
        ("", False),
    ],
)
def test_what_stands_behind_ray(text, is_address):
    assert bool(ADDRESS.fullmatch(text)) == is_address
