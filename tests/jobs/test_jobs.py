"""Job files: whatever stands in a line leads to a job or to one sentence, and lines have an id."""

from __future__ import annotations

import contextlib
import csv
import inspect
import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nulltext.cli.edit import edit
from nulltext.errors import DataError, UserError
from nulltext.jobs.batch import check_steps, read_batch
from nulltext.jobs.job_files import (
    KEYS,
    LONGEST_LINE,
    LONGEST_TEXT,
    NO_KEYS,
    Job,
    Refused,
    parse_job,
    read_jobs,
)
from nulltext.jobs.options import REMOVED
from nulltext.jobs.request import check_options
from nulltext.jobs.worker import grouped, unit_of
from nulltext.storage.untrusted import decode_text

GOOD = {"image": "a.png", "source": "a cat", "target": "a dog"}


def parsed(base, **more):
    return parse_job(json.dumps(GOOD | more).encode(), 3, base)


def test_a_job_has_every_option_of_edit():
    """But those that are the batch's own, which it is told by name."""
    own = set(inspect.signature(edit).parameters)
    assert (KEYS.keys() | NO_KEYS.keys()) - REMOVED.keys() == own
    assert not KEYS.keys() & NO_KEYS.keys()


def test_every_key_becomes_an_option(tmp_path):
    given = {
        "mask": "m.png",
        "full": True,
        "method": "direct",
        "steps": 7,
        "guidance": 3,
        "crop": "0,0,20",
        "size": "photo",
        "seed": 5,
        "captioner": "flowers",
        "inner_steps": 2,
        "pivot": "fixed-point",
        "budget": "fast",
        "inversion": "i.safetensors",
    }
    job = parsed(tmp_path, **given, weight="dog=2", strength=0.3, detail="model", then=["a cow"])
    assert isinstance(job, Job)
    options = job.edit_options()
    asked = {name: getattr(options, name) for name in given}
    paths = {name: tmp_path / given[name] for name in ("mask", "inversion")}
    assert asked == given | paths
    assert options.image == tmp_path / "a.png"
    assert (options.prompts, options.strength) == (("a dog", "a cow"), 0.3)
    assert options.editor_settings == {"weight": ("dog=2",)}
    assert (options.detail, options.source_branch) == ("model", "replay")


REFUSED = {
    "{": "no JSON",
    "[]": "no JSON object",
    "3": "no JSON object",
    "[" * 30_000: "no JSON",
    '{"image": "a", "image": "b"}': 'has "image" twice',
    '{"target": NaN}': "holds NaN",
    '{"target": "x", "strength": 1e999}': "no finite number",
    '{"target": "x", "steps": 1.5}': "no whole number from 1",
    '{"target": "x", "steps": true}': "no whole number",
    '{"target": "x", "steps": ' + "9" * 400 + "}": "no whole number",
    '{"target": "x", "seed": 9223372036854775808}': "no whole number",
    '{"target": "x", "full": 1}': "neither true nor false; write one of these.",
    '{"target": "x", "strip": "../../etc/x.png"}': "neither true nor false",
    '{"target": "x", "output": "../x.png"}': 'has "output", which a job has not',
    '{"target": "x", "save_inversion": "/x"}': "a batch keeps every inversion itself",
    '{"target": "x", "model": "owner/name"}': "nulltext batch --model",
    '{"target": "x", "trust_remote_code": true}': "no option of `nulltext edit`",
    '{"target": "x", "method": "magic"}': "none of fixed-point, null-text, ",
    '{"target": []}': "a list of 0; give 1 to 64",
    '{"target": [1]}': "no text",
    '{"target": "\\ud800"}': "no text that can be written",
    '{"target": "x", "image": "a\\u0000b"}': "no text that can be written",
    '{"target": "x", "image": " "}': "empty",
    '{"target": "' + "x" * (LONGEST_TEXT + 1) + '"}': "longer than 4096 characters",
    '{"image": "a"}': 'has no "target"',
}


@pytest.mark.parametrize(("line", "said"), REFUSED.items(), ids=REFUSED.values())
def test_a_bad_line_is_one_sentence_with_its_number(tmp_path, line, said):
    found = parse_job(line.encode(), 3, tmp_path)
    assert isinstance(found, Refused)
    assert found.reason.startswith("Line 3 ")
    assert said in found.reason
    assert "\n" not in found.reason
    assert len(found.reason) < 300


def test_a_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "jobs.jsonl"
    good = json.dumps(GOOD).encode()
    long = b'{"target": "' + b"x" * 10 * LONGEST_LINE + b'"}'
    path.write_bytes(b"\n".join([good, b"", b"\xff\xfe", long, good + b"\r"]))
    found = list(read_jobs(path))
    assert [one.line for one in found] == [1, 3, 4, 5]
    assert [type(one) for one in found] == [Job, Refused, Refused, Job]
    assert f"more than {LONGEST_LINE} bytes" in found[2].reason
    assert len(found[2].text) <= LONGEST_LINE


MEANT = {
    "cross-steps": "cross_steps",
    "Cross Steps": "cross_steps",
    "crossSteps": "cross_steps",
    "Image": "image",
    "file": "image",
    "taget": "target",
    "prompt": "source",
    "guidance_scale": "guidance",
    "num_inference_steps": "steps",
    "negative_prompt": "negative",
}


@pytest.mark.parametrize(("key", "right"), MEANT.items())
def test_a_key_of_another_spelling_or_tool_is_told_by_its_right_name(tmp_path, key, right):
    line = json.dumps({name: text for name, text in GOOD.items() if name != right} | {key: 1})
    found = parse_job(line.encode(), 3, tmp_path)
    assert isinstance(found, Refused)
    assert found.reason.startswith(f'Line 3 has "{key}", ')
    assert found.reason.endswith(f'perhaps "{right}" is meant.')
    both = parsed(tmp_path, Output="x")
    assert isinstance(both, Refused)
    assert '"output" is none of a job either: a batch names its pictures itself' in both.reason
    assert '; perhaps "target" is meant.' in parse_job(b'{"prompt": "x"}', 1, tmp_path).reason


def test_a_removed_key_says_what_to_write_instead(tmp_path):
    found = parse_job(json.dumps(GOOD | {"solver": "adam"}).encode(), 3, tmp_path)
    assert isinstance(found, Refused)
    assert "--method null-text is the published solver" in found.reason


SEVERAL = [
    GOOD | {"steps": 20, "strength": 0.5, "full": True, "seed": -1, "method": "direct"},
    GOOD | {"target": ["a dog, red", 'a "cow"'], "crop": "8,0,48"},
    GOOD | {"target": "a \u732b"},
]
HEADER = ["image", "source", "target", "steps", "strength", "full", "seed", "method", "crop"]


def table(delimiter, comma="."):
    """As a spreadsheet writes it: empty cells, true and false in capitals, lists in lines."""
    out = io.StringIO()
    rows = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    rows.writerow([*HEADER, ""])
    for job in SEVERAL:
        job = {k: "\n".join(v) if isinstance(v, list) else v for k, v in job.items()}
        job = {k: str(v).upper() if v is True else v for k, v in job.items()}
        job = {k: str(v).replace(".", comma) if isinstance(v, float) else v for k, v in job.items()}
        rows.writerow([*[job.get(name, "") for name in HEADER], ""])
    return out.getvalue() + delimiter * 3 + "\r\n"


LINES = "\n".join(json.dumps(job, ensure_ascii=False) for job in SEVERAL)
LAYOUTS = {
    "lines": ("Line", LINES.encode()),
    "lines of Notepad": ("Line", LINES.replace("\n", "\r\n").encode("utf-8-sig")),
    "lines of PowerShell": ("Line", LINES.replace("\n", "\r\n").encode("utf-16")),
    "array": ("Row", json.dumps(SEVERAL).encode()),
    "array of Notepad": ("Row", json.dumps(SEVERAL, indent=2).encode("utf-8-sig")),
    "one job in a line of an array": ("Row", f"[{','.join(LINES.splitlines())}]".encode()),
    "pretty objects": ("Row", "\n".join(json.dumps(job, indent=1) for job in SEVERAL).encode()),
    "lines of an old Macintosh": ("Line", LINES.replace("\n", "\r").encode()),
    "CSV": ("Row", table(",").encode()),
    "CSV UTF-8 of Excel": ("Row", table(";", ",").encode("utf-8-sig")),
    "CSV of pandas": ("Row", table(",").replace(",20,", ",20.0,").encode()),
    "CSV that says its separator": ("Row", ("sep=;\r\n" + table(";")).encode("utf-8-sig")),
    "Unicode text of Excel": ("Row", table("\t", ",").encode("utf-16")),
}


@pytest.mark.parametrize(("word", "data"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_of_a_job_file_gives_the_same_jobs(tmp_path, word, data):
    path = tmp_path / "jobs"
    path.write_bytes(data)
    found = list(read_jobs(path))
    expected = [parse_job(json.dumps(job).encode(), n, tmp_path) for n, job in enumerate(SEVERAL)]
    assert all(isinstance(job, Job) for job in found), found
    assert [job.options for job in found] == [job.options for job in expected]
    assert [unit_of(job).id for job in found] == [unit_of(job).id for job in expected]
    first = 1 + (decode_text(data)[0] not in "[{")  # a header is row 1
    assert [job.place for job in found] == [
        f"{word} {number}" for number in range(first, first + 3)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"target": 5},\n{"a": 1, "a": 2}]', ['Row 1 has a "target" that', 'Row 2 has "a" tw']),
        ('{\n"target": NaN\n}\n[3]', ["Row 1 holds NaN", "Row 2 is no JSON object"]),
        ("image,target\na,b\n\nc,\n", ['Row 4 has no "target"']),
        ("image;target;steps\na;b;many", ['Row 2 has a "steps" that is no whole number']),
        ("image,target\na,a dog, red", ["Row 2 has a cell below no key of the header"]),
        ('{"image"\n{"target": 1}', ["Line 1 is no JSON", 'Line 2 has a "target" that is no text']),
        ('# mine\n{"target": 1}', ["Line 1 is no JSON", 'Line 2 has a "target" that is no text']),
    ],
)
def test_bad_rows_are_told_one_by_one(tmp_path, text, said):
    (tmp_path / "jobs").write_text(text)
    reasons = [one.reason for one in read_jobs(tmp_path / "jobs") if isinstance(one, Refused)]
    assert len(reasons) == len(said)
    assert all(part in reason for part, reason in zip(said, reasons, strict=True)), reasons


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'[\n{"image": "a"},\n{"image": "b"\n', "line 4 column 1"),
        (b'{\n "image": "a",\n "target": \n}\n', "line 4"),
        (b"- image: a.jpg\n  target: a dog\n", "it begins with '- image: a.jpg'"),
        (b"a.jpg,a cat,a dog\nb.jpg,a cat,a dog\n", "it begins with 'a.jpg,a cat,a dog'"),
        (b"image,prompt\na,b\nc,d\n", 'its header has "prompt".* perhaps "target" is meant'),
        (b"image,target,image\na,b,c\n", 'its header has "image" twice'),
        ("image,target\na,caf\u00e9\n".encode("cp1252"), "not UTF-8: it may be in Windows-1252"),
        ('{"image": "a"}\n'.encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        (b"\1\2" + bytes(80), r"no text at all; save it as UTF-8 \(in Excel as"),
        (b"PK\3\4\x14\0\6\0\x08\0\0\0\xff\n", r'a workbook \(.*; save it as "CSV UTF-8"'),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", r"a workbook \(.*xls"),
        (b'image,target\na,b\nc,"d\ne,f\n', "the quote that opens in row 3 is not closed"),
        (b'image,target\na,"b\n' * 3, "line 4: ',' expected after"),
    ],
)
def test_a_file_that_holds_no_jobs_is_one_error(tmp_path, data, said):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"is no job file \(.*{said}") as caught:
        list(read_jobs(path))
    assert len(str(caught.value)) < 700
    assert "image,source,target" in str(caught.value)


def test_invisible_characters_make_no_other_job(tmp_path):
    dirty = {"source": "a\u00a0cat\u200b", "target": ["\ufeffa d\u00adog"], "weight": "dog\ufeff=2"}
    clean = {"source": "a cat", "target": ["a dog"], "weight": "dog=2"}
    assert unit_of(parsed(tmp_path, **dirty)).id == unit_of(parsed(tmp_path, **clean)).id
    assert parsed(tmp_path, **dirty).edit_options() == parsed(tmp_path, **clean).edit_options()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": ["a cat\u200b"]}, 'The target "a cat" says the same as the source "a cat"'),
        ({"target": ["a dog"], "then": ["a\u00a0dog "]}, 'same as the source "a dog"'),
        ({"target": ["a cat"], "weight": ["cat=1"]}, "says the same"),
        ({"target": ["\u200b"]}, "A prompt is empty"),
        ({"target": ["a dog", "   "]}, "A prompt is empty"),
        ({"source": "\ufeff", "target": ["a dog"]}, "A prompt is empty"),
        ({"target": ["a cat"], "weight": ["cat=2"]}, None),
        ({"source": "auto", "target": ["auto"]}, None),
    ],
)
def test_words_that_ask_for_nothing_are_seen_before_any_work(tmp_path, options, said):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    line = {"image": "a.png", "source": "a cat", **options}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line))
    (info,) = check_steps(read_batch(tmp_path / "jobs.jsonl"))
    assert (info.row["status"] == "ok") == (said is None)
    assert said is None or said in str(info.row)


def test_a_file_that_is_none_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, said in ((tmp_path, "no regular file"), (pipe, "no regular file")):
        with pytest.raises(DataError, match=said):
            list(read_jobs(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_jobs(tmp_path / "none"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(options=st.dictionaries(st.sampled_from([*KEYS, *NO_KEYS, "x"]), json_values))
def test_no_line_ends_in_a_traceback(tmp_path_factory, options):
    base = tmp_path_factory.getbasetemp()
    for whole in (options, GOOD | options):
        found = parse_job(json.dumps(whole).encode(), 1, base)
        if isinstance(found, Job):
            with contextlib.suppress(UserError):
                check_options(found.edit_options())
            unit_of(found)


@settings(max_examples=150, deadline=None)
@given(line=st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(tmp_path_factory, line):
    assert isinstance(parse_job(line, 1, tmp_path_factory.getbasetemp()), Job | Refused)


def test_an_id_is_of_the_options_and_of_what_is_in_the_files(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    first = unit_of(parsed(tmp_path))
    assert unit_of(parsed(tmp_path)) == first
    assert unit_of(parse_job(json.dumps(GOOD).encode(), 9, tmp_path)).id == first.id
    other = unit_of(parsed(tmp_path, target="a cow"))
    assert other.id != first.id
    assert other.group == first.group
    assert unit_of(parsed(tmp_path, steps=3)).group != first.group
    picture.write_bytes(b"two")
    changed = unit_of(parsed(tmp_path))
    assert changed.id != first.id
    assert changed.group != first.group
    assert grouped([first, changed, other]) == [[first, other], [changed]]


def test_files_must_be_regular_and_may_be_kept_within_a_folder(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(tmp_path / "a.png")
    (inside / "b.png").write_bytes(b"x")
    (inside / "loop.png").symlink_to("loop.png")
    os.mkfifo(inside / "pipe.png")
    for name in ("../a.png", "link.png", str(tmp_path / "a.png")):
        job = parsed(inside, image=name)
        assert unit_of(job).reason == ""
        assert "where --within keeps" in unit_of(job, inside).reason
    assert unit_of(parsed(inside, image="b.png"), inside).reason == ""
    for name in ("pipe.png", "loop.png", ".", "none.png", "x" * 400):
        assert unit_of(parsed(inside, image=name)).reason.startswith("Line 3: ")
