"""XMP, IPTC and texts of a photo's file: what results hold of them, and what never."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image, IptcImagePlugin, PngImagePlugin, TiffImagePlugin

from nulltext.image.metadata import (
    Metadata,
    has_places,
    iptc_of_result,
    settings_in,
    xmp_of_result,
)
from nulltext.image.photos import Photo, load_photo
from nulltext.image.saving import Picture, encode

NAMES = ["a.jpg", "a.png", "a.tif", "a.webp"]

XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:aux="http://ns.adobe.com/exif/1.0/aux/" xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
 xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
 xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/">
<rdf:Description rdf:about="" tiff:Orientation="6" exif:GPSLatitude="46,57.1N"
 photoshop:City="Bern" photoshop:Credit="Agency" aux:SerialNumber="4711" crs:Exposure="+1"
 xmpRights:WebStatement="https://example.org/licence" xmpMM:DocumentID="xmp.did:1">
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">© Ana</rdf:li></rdf:Alt></dc:rights>
<dc:creator><rdf:Seq><rdf:li>Ana</rdf:li></rdf:Seq></dc:creator>
<xmp:Thumbnails><rdf:Alt><rdf:li>AAAA</rdf:li></rdf:Alt></xmp:Thumbnails>
<xmpMM:History><rdf:Seq><rdf:li>saved</rdf:li></rdf:Seq></xmpMM:History>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".encode()
KEPT = ["© Ana", "Ana", "Agency", "https://example.org/licence"]
PLACE = ["46,57.1N", "Bern"]
DROPPED = ["4711", "+1", "xmp.did:1", "AAAA", "saved", "Orientation"]

IPTC = {80: ["José"], 25: ["red", "dahlia"], 116: ["© José"], 90: ["Bern"], 55: ["20240131"]}


def iptc(values: dict[int, list[str]], encoding: str = "utf-8") -> bytes:
    records = b""
    for dataset, texts in values.items():
        for text in texts:
            data = text.encode(encoding)
            records += b"\x1c\x02" + bytes([dataset]) + len(data).to_bytes(2, "big") + data
    return records


def photo_with(path: Path, **told: bytes | None) -> Photo:
    path.write_bytes(encode(Picture(Image.new("RGB", (64, 48), "orange")), path, **told))
    return load_photo(path)


def result_of(photo: Photo, path: Path, *, gps: bool = False) -> Photo:
    data = encode(
        Picture(photo.image),
        path,
        xmp=xmp_of_result(photo.metadata, gps=gps, settings='{"target": "ü"}'),
        iptc=iptc_of_result(photo.metadata, gps=gps),
    )
    path.write_bytes(data)
    return load_photo(path)


def xmp_by_pillow(path: Path) -> str:
    with Image.open(path) as image:
        image.load()
        packet = image.info["xmp"]
    ElementTree.fromstring(packet)  # well-formed
    return packet.decode()


def iptc_by_pillow(path: Path) -> dict:
    with Image.open(path) as image:
        return IptcImagePlugin.getiptcinfo(image) or {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["photo.jpg", "photo.png", "photo.tif", "photo.webp"])
@pytest.mark.parametrize("gps", [False, True])
def test_xmp_goes_from_every_format_into_every_format(
    tmp_path: Path, source: str, name: str, gps: bool
) -> None:
    photo = photo_with(tmp_path / source, xmp=XMP)
    assert has_places(photo.metadata)
    result_of(photo, tmp_path / name, gps=gps)
    text = xmp_by_pillow(tmp_path / name)
    assert all(f">{value}<" in text for value in KEPT)
    assert all((f">{value}<" in text) is gps for value in PLACE)
    assert not any(value in text for value in DROPPED)
    assert settings_in(tmp_path / name) == {"target": "ü"}


@pytest.mark.parametrize("source", ["photo.jpg", "photo.tif"])
@pytest.mark.parametrize("name", NAMES)
def test_iptc_is_kept_and_told_in_xmp_as_well(tmp_path: Path, source: str, name: str) -> None:
    photo = photo_with(tmp_path / source, iptc=iptc(IPTC))
    result_of(photo, tmp_path / name)
    text = xmp_by_pillow(tmp_path / name)
    for value in ("José", "red", "dahlia", "© José", "2024-01-31"):
        assert f">{value}<" in text
    assert "Bern" not in text
    there = iptc_by_pillow(tmp_path / name)
    if name in ("a.png", "a.webp"):
        assert there == {}
        return
    assert there[(1, 90)] == b"\x1b%G"
    assert there[(2, 25)] == [b"red", b"dahlia"]
    assert there[(2, 116)] == "© José".encode()
    assert (2, 90) not in there
    result_of(photo, tmp_path / name, gps=True)
    assert iptc_by_pillow(tmp_path / name)[(2, 90)] == b"Bern"


def test_settings_are_read_from_the_largest_pictures(tmp_path: Path) -> None:
    text = {"nulltext": '{"target": "x"}'}
    data = encode(Picture(Image.new("RGB", (8, 8))), "a.png", text=text)
    head = b"IHDR" + struct.pack(">II", 16_000, 12_000) + data[24:29]  # beyond Pillow's own limit
    (tmp_path / "a.png").write_bytes(
        data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    )
    assert settings_in(tmp_path / "a.png") == {"target": "x"}


def test_a_packet_needs_no_xmpmeta(tmp_path: Path) -> None:
    start, end = XMP.index(b"<rdf:RDF"), XMP.index(b"</x:xmpmeta>")
    photo = photo_with(tmp_path / "photo.jpg", xmp=XMP[start:end])
    result_of(photo, tmp_path / "a.jpg")
    assert all(f">{value}<" in xmp_by_pillow(tmp_path / "a.jpg") for value in KEPT)


@pytest.mark.parametrize("gps", [False, True])
def test_places_within_other_properties_are_places(tmp_path: Path, gps: bool) -> None:
    hidden = XMP.replace(b"<rdf:li>Ana", b'<rdf:li exif:GPSLongitude="7,26E">Ana')
    hidden = hidden.replace(b"</dc:creator>", b"<photoshop:City>Thun</photoshop:City></dc:creator>")
    result_of(photo_with(tmp_path / "photo.png", xmp=hidden), tmp_path / "a.tif", gps=gps)
    text = xmp_by_pillow(tmp_path / "a.tif")
    assert ">Ana<" in text.replace(' exif:GPSLongitude="7,26E"', "")
    assert [value in text for value in ("7,26E", "Thun")] == [gps, gps]


def test_xmp_wins_over_iptc_and_old_encodings_are_read(tmp_path: Path) -> None:
    records = iptc({80: ["José"], 116: ["nobody"]}, "latin-1")
    metadata = photo_with(tmp_path / "photo.jpg", xmp=XMP, iptc=records).metadata
    assert metadata.iptc == ((80, "José"), (116, "nobody"))
    assert metadata.xmp is not None
    assert b"nobody" not in metadata.xmp


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("order", ["<", ">"])
def test_iptc_of_a_tiff_written_as_numbers(tmp_path: Path, order: str) -> None:
    records = iptc({116: ["© José"]})
    records += b"\0" * (-len(records) % 4)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TiffImagePlugin.IPTC_NAA_CHUNK] = records
    mode = "RGB" if order == "<" else "I;16B"  # the one mode that Pillow writes big-endian
    path = tmp_path / "photo.tif"
    Image.new(mode, (32, 32)).save(path, tiffinfo=tags)
    data, size = path.read_bytes(), len(records)
    with Image.open(path) as image:
        kind = image.tag_v2.tagtype[TiffImagePlugin.IPTC_NAA_CHUNK]  # type: ignore[attr-defined]
    entry = struct.pack(f"{order}HHI", TiffImagePlugin.IPTC_NAA_CHUNK, kind, size)
    assert data.count(entry) == 1
    longs = struct.pack(f"{order}HHI", TiffImagePlugin.IPTC_NAA_CHUNK, 4, size // 4)
    path.write_bytes(data.replace(entry, longs))
    assert load_photo(tmp_path / "photo.tif").metadata.iptc == ((116, "© José"),)


def test_texts_of_a_png_name_the_author(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "Ana")
    texts.add_itxt("Copyright", "© Ana")
    texts.add_text("Comment", "secret")
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png", pnginfo=texts)
    result_of(load_photo(tmp_path / "photo.png"), tmp_path / "a.jpg")
    text = xmp_by_pillow(tmp_path / "a.jpg")
    assert ">Ana<" in text
    assert ">© Ana<" in text
    assert "secret" not in text


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + XMP.split(b"?>", 1)[1].replace(
    b">Ana<", b">&b;<"
)


@pytest.mark.parametrize(
    "packet",
    [
        b"<x",
        b"\xff\xfe\0\0",
        XMP[: len(XMP) // 2],
        BOMB,
        XMP.replace(b">AAAA<", b">" + b"A" * (1 << 20) + b"<"),
        b"<a>" * 100_000,
        b'<r xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:RDF><rdf:Description>'
        b'<dc:rights xmlns:dc="http://purl.org/dc/elements/1.1/">'
        + b"<a>" * 50_000
        + b"</a>" * 50_000
        + b"</dc:rights></rdf:Description></rdf:RDF></r>",
    ],
    ids=["cut", "binary", "half", "entities", "long", "open", "deep"],
)
def test_damaged_and_hostile_packets_count_as_none(tmp_path: Path, packet: bytes) -> None:
    photo = photo_with(tmp_path / "photo.png")
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    photo.image.save(tmp_path / "photo.png", pnginfo=chunks)
    read = load_photo(tmp_path / "photo.png")
    assert read.metadata == Metadata()
    assert xmp_of_result(read.metadata, gps=True) is None


def test_large_values_are_dropped_and_the_rest_fits_a_jpeg(tmp_path: Path) -> None:
    item = b"<rdf:li>" + b"k" * 9000 + b"</rdf:li>"
    long = XMP.replace(b"<dc:creator>", b"<dc:subject>" + item + b"</dc:subject><dc:creator>")
    photo = photo_with(tmp_path / "photo.png", xmp=long, iptc=None)
    assert photo.metadata.xmp is not None
    assert b"kkk" not in photo.metadata.xmp
    assert "© Ana".encode() in photo.metadata.xmp
    many = iptc({25: ["k" * 1000] * 60, 116: ["late"]})
    photo = photo_with(tmp_path / "photo.tif", iptc=many)
    result_of(photo, tmp_path / "a.jpg")
    assert len(iptc_by_pillow(tmp_path / "a.jpg")[(2, 25)]) == 29


@pytest.mark.parametrize("records", [b"\x1c", b"\x1c\x02\x74\xff\xff", b"\x1c\x02\x74\x80\x04abcd"])
def test_damaged_iptc_is_no_error(tmp_path: Path, records: bytes) -> None:
    good = iptc({80: ["Ana"]})
    photo = photo_with(tmp_path / "photo.jpg", iptc=good + records)
    assert photo.metadata.iptc == ((80, "Ana"),)


def test_nothing_is_written_where_nothing_was(tmp_path: Path) -> None:
    photo = photo_with(tmp_path / "photo.jpg")
    assert xmp_of_result(photo.metadata, gps=True) is None
    assert iptc_of_result(photo.metadata, gps=True) is None
    data = encode(Picture(photo.image), "a.jpg")
    with Image.open(io.BytesIO(data)) as image:
        assert "xmp" not in image.info
        assert "photoshop" not in image.info
    (tmp_path / "a.jpg").write_bytes(data)
    assert settings_in(tmp_path / "a.jpg") is None
