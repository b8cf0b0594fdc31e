"""Text, JSON and names of strangers: what is read, and what is refused before it is."""

from __future__ import annotations

import codecs
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nulltext.captioning.caption_files import note_on_left_out, read_json_lines
from nulltext.errors import DataError
from nulltext.evaluation.datasets import read_photos
from nulltext.evaluation.pie import read_pie
from nulltext.storage.untrusted import (
    DEPTH,
    decode_text,
    parse_json,
    read_lines,
    read_text,
    resolve_inside,
)
from nulltext.training.dataset import read_dataset
from nulltext.training.recipe import load_recipe

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
        ('{"a": 1, "b": 2, "a": 1}', "'a' occurs twice"),
        ('{"b": {"a": 1, "a": 2}}', "'a' occurs twice"),
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
    for name, words in (("five", "larger than"), ("pipe", "not a regular"), (".", "not a regular")):
        with pytest.raises(ValueError, match=words):
            read_text(tmp_path / name, 4)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none", 4)


SAID = 'one "\u00e9\u732b"\ntwo\n'
WRITTEN = {
    "utf-8": SAID.encode(),
    "Notepad": codecs.BOM_UTF8 + SAID.replace("\n", "\r\n").encode(),
    "Unicode": codecs.BOM_UTF16_LE + SAID.replace("\n", "\r\n").encode("utf-16-le"),
    "big-endian": codecs.BOM_UTF16_BE + SAID.encode("utf-16-be"),
    "old Macintosh": SAID.replace("\n", "\r").encode(),
}
NOT_READ = {
    "not UTF-8: it may be in Windows-1252 or Latin-1": "caf\u00e9\n".encode("cp1252"),
    "UTF-16 without a byte-order mark": "one\n".encode("utf-16-le"),
    "damaged UTF-16": codecs.BOM_UTF16_LE + b"o\0\n",
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_text_is_the_same_in_every_encoding_that_is_marked(tmp_path, data):
    (tmp_path / "text").write_bytes(data)
    assert read_text(tmp_path / "text", 100) == SAID
    lines = list(read_lines(tmp_path / "text", 100))
    assert [(number, decode_text(line)) for number, line in lines] == [
        (number, line + "\n") for number, line in enumerate(SAID.splitlines(), start=1)
    ]
    (number, cut), _ = read_lines(tmp_path / "text", 4)
    assert (number, cut) == (1, b'one "')


@pytest.mark.parametrize(("words", "data"), NOT_READ.items())
def test_other_encodings_are_refused_with_what_to_do(tmp_path, words, data):
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match=rf"a\.txt' cannot be read.*{words}.*save it as UTF-8"):
        read_photos(tmp_path)
    (tmp_path / "captions.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=rf"captions\.jsonl'.*{words}"):
        read_photos(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_and_captions_are_read_as_notepad_and_excel_write_them(tmp_path, encoding):
    (tmp_path / "a.jpg").touch()
    said = "a \u00e9clair on\u00a0a p\u00adlate"

    def write(name, value):
        (tmp_path / name).write_bytes(value.replace("\n", "\r\n").encode(encoding))

    write("a.txt", f"\u200b{said}\n\n{said} \n")
    expected = "a \u00e9clair on a plate"
    for reader in (read_photos, read_dataset):
        assert [one.captions for one in reader(tmp_path)] == [(expected, expected)]
    line = {"file": "a.jpg", "caption": said, "target": f"{said}\ufeff"}
    write("captions.jsonl", f"{json.dumps(line, ensure_ascii=False)}\n")
    for reader in (read_photos, read_dataset):
        assert [one.captions for one in reader(tmp_path)] == [(expected,)]
    assert read_photos(tmp_path)[0].target == expected
    write("captions.jsonl", '{"file": "a.jpg", "caption": "\u200b\u00ad"}')
    with pytest.raises(DataError, match='line 1, has no "caption"'):
        read_photos(tmp_path)
    edit = {
        "image_path": "a.jpg",
        "editing_type_id": 0,
        "blended_word": "\ufeffcat dog",
        "mask": [],
    }
    edit |= {"original_prompt": "a \u00ad[cat]", "editing_prompt": "a\u00a0[dog]"}
    write("mapping_file.json", json.dumps({"1": edit}, indent=1))
    (item,) = read_pie(tmp_path)
    assert (item.source, item.target, item.blend) == ("a cat", "a dog", ("cat", "dog"))
    write("recipe.json", '{"name": "\u00e9"}')
    assert load_recipe(str(tmp_path / "recipe.json")).name == "\u00e9"


def test_texts_beside_pictures_have_the_names_that_other_tools_give_them(tmp_path):
    """kohya's NAME.caption, NAME.jpg.txt, endings in capitals; what is left out is named."""
    names = {"a.JPG": "a.TXT", "b.jpg": "b.jpg.txt", "c.png": "c.caption", "d.gif": "d.PNG.txt"}
    for picture, text in names.items():
        (tmp_path / picture).touch()
        (tmp_path / text).write_text(picture)
    for name in ("e.jpg", "f.jxl", "below/g.png", "below/h.webp", "below/i.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c.txt").write_text("first of all")
    for hidden in ("._a.txt", "._b.jpg.txt", ".kept/a.jpg", ".kept/a.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7\xff")
    expected = {"a.JPG": "a.JPG", "b.jpg": "b.jpg", "c.png": "first of all"}
    for reader in (read_photos, read_dataset):
        assert {one.path.name: one.captions[0] for one in reader(tmp_path)} == expected
    assert note_on_left_out(tmp_path) == (
        f"Note: left out of '{tmp_path}': 5 pictures without a caption (below/g.png, below/h.webp, "
        "below/i.bmp, …), 1 file of a format that is not read (f.jxl)."
    )
    line = '{"file": "a.JPG", "caption": "a cat", "mask": "e.jpg"}'
    (tmp_path / "captions.jsonl").write_text(line)
    assert "7 pictures without" not in note_on_left_out(tmp_path)
    assert "6 pictures without a caption (b.jpg, " in note_on_left_out(tmp_path)
    for name in ("captions.jsonl", *names.values(), "c.txt"):
        (tmp_path / name).unlink()
    assert note_on_left_out(tmp_path) == ""  # which is an error of its own
    for reader in (read_photos, read_dataset):
        with pytest.raises(
            DataError, match=r"no captioned photo, but 8 pictures without .* 1 file"
        ):
            reader(tmp_path)


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ("captions.jsonl", {"file_name": "a", "text": "b"}, 'no "file"; it has "file_name"'),
        ("captions.jsonl", {"file": "a.jpg", "text": "b"}, 'it has "text": call that "caption"'),
        ("captions.jsonl", {"file": "a.jpg", "Caption": "b"}, 'it has "Caption"'),
        (
            "labels.jsonl",
            {"file": "a.jpg", "kind": "rose", "color": "red"},
            'no "colour"; it has "c',
        ),
        ("edits.jsonl", {"file": "a.jpg", "prompt": "b"}, 'has no "target"; it has "prompt"'),
    ],
)
def test_a_field_of_another_name_is_told_apart_from_a_missing_one(tmp_path, table, line, words):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / table).write_text(json.dumps(line))
    with pytest.raises(DataError, match=words):
        read_photos(tmp_path)


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
        resolve_inside(folder, name)
    for allowed in ("below/a.png", "inner.png", "below/../below/a.png", "not-there.png"):
        assert resolve_inside(folder, allowed) == folder / allowed


@pytest.mark.parametrize("name", [*OUTSIDE[:3], "x" * 5000])
@pytest.mark.parametrize("table", ["labels.jsonl", "captions.jsonl", "mask", "coco"])
def test_no_table_names_a_file_outside_its_folder(folder, table, name):
    read = [read_photos] if table in ("mask", "coco") else [read_photos, read_dataset]
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
        options = {"split": "train"} if reader is read_photos else {}
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
    for reader in (read_photos, read_dataset):
        with pytest.raises(DataError, match="line 2"):
            reader(folder)


def test_an_end_of_line_is_a_newline_and_nothing_else(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "one\u2028two"}\n\n{"a": 3}')
    lines = [(line.number, line.fields) for line in read_json_lines(tmp_path / "a.jsonl")]
    assert lines == [(1, {"a": "one\u2028two"}), (3, {"a": 3})]
