"""The study from the command line: rows that survive a kill, settings that hold, a whole report."""

from __future__ import annotations

import csv
import json
import random
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from nulltext.errors import NumericalError, OutputError
from nulltext.evaluation import experiments as studied
from nulltext.evaluation.datasets import CaptionedPhoto
from nulltext.evaluation.metrics import DiffusionJudge
from nulltext.evaluation.plan import EXPERIMENTS, USUAL_VARIANTS, VARIANT_NAMES, StudyPlan
from nulltext.evaluation.plots import LOOKS
from nulltext.evaluation.rows import key_of, open_results, read_results
from nulltext.evaluation.study import plan_study, study_steps
from nulltext.evaluation.summary import lines_of
from support.counting import unet_passes
from support.processes import killed_when

SMALL = ("--steps", "2", "--iterations", "1")


@pytest.fixture
def photos(tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo.save(folder / "a.png")
    photo.rotate(180).save(folder / "b.png")
    lines = [
        {"file": "a.png", "captions": ["a cat", "a pet"], "target": "a dog"},
        {"file": "b.png", "caption": "a grey <cat> & more", "target": "a white cat"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "captions.jsonl").write_text(text)
    return folder


@pytest.fixture
def study(run, monkeypatch, tmp_path, model):
    """Run `nulltext study` in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run("study", "--model", model, *SMALL, *arguments)


def rows_in(folder):
    return read_results(folder)[1]


def test_a_whole_study_and_what_it_hands_over(study, photos, tmp_path):
    code, out, err = study(photos, "-o", "out", "--quick", "--limit", 1, "--json")
    assert code == 0, err
    assert re.search(r"1 photo, \d+ rows; about [\d,]+ UNet evaluations", err)
    result, folder = json.loads(out), tmp_path / "out"
    rows = rows_in(folder)
    assert result["rows"] == len(rows)
    assert result["failed"] == 0
    assert len({key_of(row) for row in rows}) == len(rows)
    assert {row["experiment"] for row in rows} == set(EXPERIMENTS)
    assert {row["variant"] for row in rows if row["experiment"] == "reconstruction"} | {
        "sdedit"
    } == set(USUAL_VARIANTS)
    for row in rows:
        assert row["pictures"]
        assert all((folder / name).is_file() for name in row["pictures"].values())
        missing = {name for name, value in row["figures"].items() if value is None}
        assert missing == row["undefined"].keys()
        assert "lpips" not in row["figures"] or row["undefined"]["lpips"]
    kinds = {row["setting"]["caption"] for row in rows if row["experiment"] == "captions"}
    assert kinds == {"own", "none", "another of its own", "another photo's"}
    check_summary(folder, rows)
    check_report(folder, rows)
    for name in EXPERIMENTS:
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
        assert Image.open(folder / f"{name}.png").width > 1000
    check_estimate(study, photos, rows)


def check_summary(folder, rows):
    lines = list(csv.DictReader((folder / "summary.csv").open()))
    wanted = {"experiment": "reconstruction", "variant": "null-text", "figure": "psnr"}
    (line,) = [x for x in lines if wanted.items() <= x.items()]
    (value,) = [
        row["figures"]["psnr"]
        for row in rows
        if (row["experiment"], row["variant"]) == ("reconstruction", "null-text")
    ]
    assert (line["n"], line["low"], line["high"]) == ("1", "", "")
    assert float(line["mean"]) == pytest.approx(value, rel=1e-5)
    lpips = next(x for x in lines if x["figure"] == "lpips")
    assert (lpips["n"], lpips["mean"], lpips["undefined"]) == ("0", "", "1")
    assert "lpips" in lpips["reasons"]
    assert "nan" not in (folder / "summary.csv").read_text().lower()


class Page(HTMLParser):
    """Collects what a page would fetch or run, and whether its tags are balanced."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.images = [], [], 0

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.images += tag == "img"
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            value = values.get(name) or "#"
            if not value.startswith(("#", "data:image/")):
                self.fetched.append(value)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_report(folder, rows):
    text = (folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert page.open == []
    assert page.images > 25
    assert "diffusion classifier" in text
    assert "a grey &lt;cat&gt; &amp; more" in text
    assert "<cat>" not in text
    for title in EXPERIMENTS.values():
        assert title in text
    assert "not installed" in text, "why LPIPS is missing"


def check_estimate(study, photos, rows):
    """What was announced is what the rows' inversions took, shared ones counted once."""
    code, out, _ = study(photos, "-o", "no", "--quick", "--limit", 1, "--json", "--estimate")
    assert code == 0
    estimate = json.loads(out)
    assert estimate["rows"] == len(rows)
    seen, taken = set(), 0
    for row in rows:
        cost = row.get("cost")
        if cost is None or row["experiment"] not in ("reconstruction", "guidance"):
            continue
        what = (row["image"], row["variant"], json.dumps(row["setting"]))
        assert what not in seen
        seen.add(what)
        taken += cost["unet_evaluations"]
    assert taken < estimate["unet_evaluations"] < 10 * taken


def test_the_estimate_equals_what_the_unet_is_asked_for(tiny_sd1, photos, tmp_path):
    item = CaptionedPhoto("a.png", photos / "a.png", ("a cat", "a pet"), "a dog")
    plan = StudyPlan(
        num_steps=2,
        iterations=(1,),
        strengths=(0.5, 1.0),
        inversion_guidances=(1.0, 3.0),
        variants=("bound", "ddim", "negative-prompt", "null-text", "textual-pivot", "sdedit"),
    )
    judge = DiffusionJudge(tiny_sd1)
    schedule = plan_study([item], [item], plan, (), judge.unet_evaluations)
    with unet_passes() as seen, open_results(tmp_path / "out", {}, fresh=False) as book:
        *_, last = study_steps(tiny_sd1, schedule, plan, book, judge)
    assert seen.total == last.evaluations == last.all_evaluations == schedule.evaluations


def test_the_estimate_of_fixed_points_is_near_what_they_take(tiny_sd1, photos, tmp_path):
    """T + 1 to 6 T to invert; every step of the source costs one evaluation."""
    item = CaptionedPhoto("a.png", photos / "a.png", ("a cat",), "a dog")
    plan = StudyPlan(
        num_steps=5, strengths=(0.5, 1.0), variants=("fixed-point", "direct"), pivot="fixed-point"
    )
    judge = DiffusionJudge(tiny_sd1)
    schedule = plan_study([item], [item], plan, (), judge.unet_evaluations)
    replays, edits, judged = 5 * (1 + 2), 5 * (1 + 4 + 2 + 4), 2 * 2 * judge.unet_evaluations
    assert schedule.evaluations == 5 * (2 + 4) + replays + edits + judged
    with unet_passes() as seen, open_results(tmp_path / "out", {}, fresh=False) as book:
        *_, last = study_steps(tiny_sd1, schedule, plan, book, judge)
        assert {row["status"] for row in book.rows} == {"ok"}
    assert 0.5 * schedule.evaluations < seen.total < 2 * schedule.evaluations
    assert last.evaluations == schedule.evaluations


def test_the_pivot_is_a_setting_of_all_rows(study, photos, tmp_path):
    chosen = (photos, "--limit", 1, "--experiments", "reconstruction")
    chosen += ("--methods", "bound,ddim,negative-prompt,fixed-point")
    psnr = {}
    for pivot in ("ddim", "fixed-point"):
        code, _, err = study(*chosen, "-o", pivot, "--pivot", pivot)
        assert code == 0, err
        settings, rows = read_results(tmp_path / pivot)
        assert settings["pivot"] == pivot
        psnr[pivot] = {row["variant"]: row["figures"]["psnr"] for row in rows}
    walked, exact = psnr["ddim"], psnr["fixed-point"]
    assert all(walked[name] == exact[name] for name in ("bound", "ddim", "fixed-point"))
    assert walked["negative-prompt"] != exact["negative-prompt"]
    code, _, err = study(*chosen, "-o", "ddim", "--pivot", "fixed-point")
    assert code == 2
    assert "pivot ddim (now fixed-point)" in err

    path = tmp_path / "ddim" / "settings.json"  # as written before there was a choice
    before = json.loads(path.read_text())
    before.pop("pivot")
    path.write_text(json.dumps(before))
    assert study(*chosen, "-o", "ddim")[0] == 0


ONE = ("--experiments", "reconstruction", "--methods", "bound,ddim,negative-prompt")


def test_a_rerun_makes_only_what_is_missing(study, photos, tmp_path, monkeypatch):
    code, _, err = study(photos, "-o", "out", "--limit", 1, *ONE)
    assert code == 0, err
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    code, _, err = study(photos, "-o", "out", *ONE)
    assert "6 rows, 3 of them done" in err
    after = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(rows_in(tmp_path / "out")) == 6
    monkeypatch.setattr(studied, "invert", None)
    code, _, err = study(photos, "-o", "out", "--resume", *ONE)
    assert code == 0, err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == after


def test_a_torn_last_line_is_made_again(study, photos, tmp_path):
    study(photos, "-o", "out", *ONE)
    path = tmp_path / "out" / "results.jsonl"
    whole = path.read_bytes()
    torn = whole[: -len(whole.splitlines()[-1]) // 2]
    path.write_bytes(torn)
    code, _, err = study(photos, "-o", "out", *ONE)
    assert code == 0, err
    assert "6 rows, 5 of them done" in err
    rows = rows_in(tmp_path / "out")
    assert len({key_of(row) for row in rows}) == len(rows) == 6
    assert path.read_bytes().count(b"\n") == 6


def test_an_estimate_counts_what_is_there_and_changes_nothing(study, photos, tmp_path):
    def estimated(*options):
        code, out, err = study(photos, "-o", "out", *ONE, "--estimate", *options)
        assert code == 0, err
        return out.strip()

    alone = estimated()
    assert re.fullmatch(r"2 photos, 6 rows; about [\d]+ UNet evaluations\.", alone)
    study(photos, "-o", "out", *ONE, "--limit", 1)
    results = tmp_path / "out" / "results.jsonl"
    before, rest = results.read_bytes(), int(re.search(r"about (\d+)", alone)[1]) // 2
    with results.open("ab") as file:
        file.write(b"torn")
    said = f"2 photos, 6 rows, 3 of them done; about {rest} UNet evaluations to go."
    assert estimated() == said
    with open_results(tmp_path / "out", read_results(tmp_path / "out")[0], fresh=False):
        assert estimated() == said  # whoever writes there
    assert results.read_bytes() == before
    assert estimated("--fresh") == alone
    assert estimated("--guidance", 3) == alone  # the run will refuse the folder


def test_other_settings_are_refused_and_fresh_starts_over(study, photos, tmp_path):
    study(photos, "-o", "out", *ONE)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    code, _, err = study(photos, "-o", "out", *ONE, "--guidance", 3)
    assert code == 2
    assert "guidance w 7.5 (now 3.0)" in err
    assert "--fresh" in err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    code, _, err = study(photos, "-o", "out", *ONE, "--guidance", 3, "--fresh")
    assert code == 0, err
    assert read_results(tmp_path / "out")[0]["guidance w"] == 3


def test_a_photo_that_fails_is_a_row_with_its_reason(study, photos, tmp_path, monkeypatch, photo):
    (photos / "a.png").write_bytes(b"no picture")
    original = studied.invert

    def sometimes(model, given, prompt, **options):
        if options["method"].name == "negative-prompt":
            raise NumericalError("the numbers ended")
        return original(model, given, prompt, **options)

    monkeypatch.setattr(studied, "invert", sometimes)
    code, out, err = study(photos, "-o", "out", *ONE, "--json")
    assert code == 1, err  # numbers ended, which outweighs a bad photo
    assert json.loads(out)["failed"] == 4
    code, out, _ = study(photos, "-o", "out", *ONE[:2], "--methods", "negative-prompt", "--json")
    result = json.loads(out)
    assert (code, result["rows"], result["asked"], result["failed"]) == (1, 6, 2, 2)
    code, out, _ = study(photos, "-o", "out", *ONE, "--estimate")
    assert "6 rows, 6 of them done; about 0 UNet evaluations to go." in out
    code, out, _ = study(photos, "-o", "out", *ONE, "--estimate", "--retry-failed")
    assert "6 rows, 2 of them done; about " in out
    rows = rows_in(tmp_path / "out")
    reasons = {(r["image"], r["variant"]): r["reason"] for r in rows if r["status"] == "failed"}
    assert reasons["b.png", "negative-prompt"] == "the numbers ended"
    assert "is not an image" in reasons["a.png", "bound"]
    summary = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    line = next(x for x in summary if x["variant"] == "negative-prompt")
    assert (line["n"], line["failed"]) == ("0", "2")
    assert "Rows that failed" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.setattr(studied, "invert", original)
    photo.save(photos / "a.png")
    code, _, err = study(photos, "-o", "out", *ONE)
    assert code == 1, err
    assert len([r for r in rows_in(tmp_path / "out") if r["status"] == "failed"]) == 4
    code, _, err = study(photos, "-o", "out", *ONE, "--retry-failed")
    assert code == 0, err
    rows = rows_in(tmp_path / "out")
    assert len({key_of(row) for row in rows}) == len(rows) == 6
    assert all(row["status"] == "ok" for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "ddim,pnp"), "no variant 'pnp'"),
        (("--experiments", "speed"), "no experiment 'speed'"),
        (("--iterations", "1,x"), "1,3,10"),
        (("--iterations", "0"), "from 1 up"),
        (("--guidance", "1"), "more than 1"),
        (("--limit", "0"), "limit is 0"),
        (("--sample", "9"), "from 1 to 2"),
        (("--seed", "-1"), "seed is -1"),
        (("--resume",), "to continue"),
        (("--clip", "no/such/clip/here"), "as CLIP"),
        (("--steps", "5000"), "number of steps"),
    ],
)
def test_mistakes_are_one_sentence_and_make_nothing(study, photos, tmp_path, arguments, words):
    code, out, err = study(photos, "-o", "out", *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out" / "results.jsonl").is_file()


def test_captions_and_edits_for_other_tools_are_told_of(study, photos):
    lines = [
        {"file": "a.png", "caption": "a cat", "target": "make it red"},
        {"file": "b.png", "caption": "a (grey:2) cat", "target": "a red++ cat"},
    ]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, _, err = study(photos, "-o", "out", *ONE)
    assert code == 0, err
    assert 'Note: "(grey:2)", "red++": another tool\'s emphasis' in err
    assert '"make it red" is an instruction' in err


def test_photos_without_edits_are_told_of(study, photos, tmp_path):
    (photos / "captions.jsonl").write_text('{"file": "a.png", "caption": "a cat"}\n')
    code, _, err = study(
        photos, "-o", "out", "--experiments", "captions,editing", "--methods", "null-text,sdedit"
    )
    assert code == 0, err
    assert "1 of 1 photos have no edit prompt" in err
    rows = rows_in(tmp_path / "out")
    assert {row["experiment"] for row in rows} == {"captions"}
    assert all(row["undefined"]["agreement"] for row in rows)


def test_two_studies_do_not_share_a_folder(tmp_path):
    with (
        open_results(tmp_path / "out", {"a": 1}, fresh=False),
        pytest.raises(OutputError, match="by another nulltext"),
        open_results(tmp_path / "out", {"a": 1}, fresh=False),
    ):
        pass


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with open_results(tmp_path / "out", {"version": 1}, fresh=False):
        pass
    (tmp_path / "out" / "results.jsonl").write_text('{"x"\n{}\n')
    with (
        pytest.raises(OutputError, match="line 1"),
        open_results(tmp_path / "out", {"version": 1}, fresh=False),
    ):
        pass


def test_ctrl_c_keeps_the_rows_and_says_how_to_go_on(study, photos, tmp_path, monkeypatch):
    original = studied.invert

    def interrupted(model, given, prompt, **options):
        if options["method"].name == "negative-prompt":
            raise KeyboardInterrupt
        return original(model, given, prompt, **options)

    monkeypatch.setattr(studied, "invert", interrupted)
    code, _, err = study(photos, "-o", "out", *ONE)
    assert code == 130
    assert "2 of 6 rows kept in out; the same command continues" in err
    assert len(rows_in(tmp_path / "out")) == 2


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_row_and_repeats_none(study, model, photos, tmp_path):
    out, draw = tmp_path / "out", random.Random()
    chosen = ("--quick", "--experiments", "reconstruction,guidance", "--iterations", "1,2")
    chosen += ("--methods", "bound,ddim,null-text,global-null")
    wanted = draw.randint(2, 12)
    killed_when(
        lambda: lines_on_disk(out) >= wanted,
        *("study", photos, "-o", out, "--model", model, "-q", *SMALL, *chosen),
        later=draw.random() * 0.1,
    )
    found = (out / "results.jsonl").read_bytes()
    survived = found[: found.rfind(b"\n") + 1]
    assert survived.count(b"\n") >= wanted
    code, _, err = study(photos, "-o", "out", *chosen)
    assert code == 0, err
    assert f"{survived.count(bytes([10]))} of them done" in err
    rows, raw = rows_in(out), (out / "results.jsonl").read_bytes()
    assert raw.startswith(survived), "a finished row was lost or changed"
    assert raw.count(b"\n") == len(rows) == len({key_of(row) for row in rows})
    assert len(rows) == 2 * (1 + 1 + 2 * 2 + 3)
    assert (out / "report.html").is_file()


def lines_on_disk(out):
    path = out / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_sdedit_at_full_strength_is_sampling_from_noise_and_at_none_is_the_photo(tiny_sd1, photos):
    bench = studied.StudiedPhoto(
        tiny_sd1,
        CaptionedPhoto("a.png", photos / "a.png", ("a cat",)),
        4,
        0,
        DiffusionJudge(tiny_sd1),
        None,
    )
    latents = tiny_sd1.encode(bench.crop[None])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    steps = tiny_sd1.schedule.grid(4)[-2:]
    z = steps[0].noisier.add_noise(latents, noise)
    empty, prompt = tiny_sd1.embed(["", "a dog"]).chunk(2)
    with torch.no_grad():
        for step in steps:
            null, cond = (tiny_sd1.predict(z, step.noisier, e) for e in (empty, prompt))
            z = step.denoise(z, null + 3.0 * (cond - null))
    torch.testing.assert_close(
        bench.sdedit("a dog", 0.5, 3.0), tiny_sd1.decode(z)[0], atol=1e-4, rtol=1e-4
    )


def test_a_failed_inversion_is_not_tried_twice(tiny_sd1, photos, monkeypatch):
    calls = []

    def failing(*args, **options):
        calls.append(1)
        raise NumericalError("ended")

    monkeypatch.setattr(studied, "invert", failing)
    bench = studied.StudiedPhoto(
        tiny_sd1,
        CaptionedPhoto("a.png", photos / "a.png", ("a cat",)),
        2,
        0,
        DiffusionJudge(tiny_sd1),
        None,
    )
    key = studied.InversionKey.of("ddim", 5, "a cat", StudyPlan())
    assert key.inner_steps == 0
    for _ in range(2):
        with pytest.raises(NumericalError):
            bench.inversion(key)
    assert len(calls) == 1


def test_every_line_has_a_look_of_its_own():
    assert LOOKS.keys() == set(VARIANT_NAMES)
    drawn = [look for name, look in LOOKS.items() if name not in ("bound", "ddim")]
    assert len({look.colour for look in drawn}) == len(drawn)
    assert len({look.marker for look in drawn}) == len(drawn)


def test_lines_stand_in_the_order_of_the_tables():
    def row(variant, n):
        place = {"experiment": "reconstruction", "image": "a", "variant": variant}
        return place | {"setting": {"N": n}, "status": "ok", "figures": {"psnr": 1.0}}

    rows = [row("null-text", 10), row("null-text", 2), row("ddim", 0), row("bound", 0)]
    order = [(line.variant, line.setting["N"]) for line in lines_of(rows)]
    assert order == [("bound", 0), ("ddim", 0), ("null-text", 2), ("null-text", 10)]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, fresh):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "wedding.jpg").write_bytes(b"precious")
    (tmp_path / "results.jsonl").write_text('{"own": 1}\n')
    with (
        pytest.raises(OutputError, match="not a study or benchmark's"),
        open_results(tmp_path, {"version": 1}, fresh=fresh),
    ):
        pass
    assert (tmp_path / "pictures" / "wedding.jpg").read_bytes() == b"precious"
    assert (tmp_path / "results.jsonl").read_text() == '{"own": 1}\n'
