"""Text, JSON and names of strangers: what is read, and what is refused before it is."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nulltext.captioned import read_json_lines
from nulltext.errors import DataError
from nulltext.evaluation.datasets import read_items
from nulltext.training.collection import read_collection
from nulltext.untrusted import DEPTH, inside, parse_json, read_text

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_ordinary_json_is_read_as_it_is(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "'a' stands twice"),
        ('{"b": {"a": 1, "a": 2}}', "'a' stands twice"),
        ("[" * 100_000, "nested deeper"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), "nested deeper"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper"),
        (r'["\ud800"]', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        ("1" * 5000, "digit"),
        ("{", "Expecting"),
    ],
)
def test_json_that_readers_disagree_on_or_break_at_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    assert parse_json("[" * DEPTH + "]" * DEPTH)
    assert parse_json(r'["\ud83d\ude00"]') == ["\U0001f600"]


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    (tmp_path / "five").write_text("12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "five", 5) == "12345"
    for name, words in (("five", "larger than"), ("pipe", "no regular"), (".", "no regular")):
        with pytest.raises(ValueError, match=words):
            read_text(tmp_path / name, 4)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none", 4)


@pytest.fixture
def folder(tmp_path):
    """A folder beside a file that is none of its business."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.png").write_bytes(b"a")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inner.png").symlink_to(folder / "below" / "a.png")
    return folder


OUTSIDE = ["../secret.png", "below/../../secret.png", "link.png", "/etc/passwd", "", "..", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE[:4], "..", "a\0b", "x" * 5000, "\ud800"])
def test_no_name_leads_out_of_its_folder(folder, name):
    with pytest.raises((ValueError, OSError)):
        inside(folder, name)
    for allowed in ("below/a.png", "inner.png", "below/../below/a.png", "not-there.png"):
        assert inside(folder, allowed) == folder / allowed


@pytest.mark.parametrize("name", [*OUTSIDE[:3], "x" * 5000])
@pytest.mark.parametrize("table", ["labels.jsonl", "captions.jsonl", "mask", "coco"])
def test_no_table_names_a_file_outside_its_folder(folder, table, name):
    read = [read_items] if table in ("mask", "coco") else [read_items, read_collection]
    line = {"file": name, "caption": "a cat", "kind": "rose", "colour": "red", "split": "train"}
    if table == "mask":
        line |= {"file": "inner.png", "mask": name}
        table = "captions.jsonl"
    (folder / table).write_text(json.dumps(line) + "\n")
    if table == "coco":
        images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "below/a.png"}]
        notes = [{"id": i, "image_id": i, "caption": "a cat"} for i in (1, 2)]
        (folder / table).unlink()
        path = folder / "captions_val2017.json"
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    for reader in read:
        options = {"split": "train"} if reader is read_items else {}
        with pytest.raises(DataError) as caught:
            reader(folder, **options)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "line",
    [
        '{"file": "inner.png", "captions": 5}',
        '{"file": "inner.png", "captions": true}',
        '{"file": "inner.png", "captions": {"a": "b"}}',
        '{"file": "inner.png", "caption": "a", "caption": "b"}',
        "[" * 100_000,
        '{"caption": "' + "a" * (1 << 20) + '"}',
    ],
    ids=["number", "flag", "object", "twice", "deep", "long"],
)
def test_malformed_lines_are_refused_by_number(folder, line):
    (folder / "captions.jsonl").write_text('{"file": "inner.png", "caption": "a"}\n' + line)
    for reader in (read_items, read_collection):
        with pytest.raises(DataError, match="line 2"):
            reader(folder)


def test_an_end_of_line_is_a_newline_and_nothing_else(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "one\u2028two"}\n\n{"a": 3}')
    assert [*read_json_lines(tmp_path / "a.jsonl")] == [(1, {"a": "one\u2028two"}), (3, {"a": 3})]
