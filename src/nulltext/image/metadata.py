"""XMP and IPTC of a photo's file: what results keep, and the settings of an edit beside it.

Who made a photo, whose it is, what it is called and says, how it may be used and when it was taken
are kept: the properties of `_KEPT`, `_KEPT_WHOLE` and `_IPTC`. All others are dropped, for they
would be untrue of an edit (thumbnails, histories, identifiers, raw development, regions of faces,
copies of EXIF), name a machine or its owner (serial numbers), or are unknown. What says where the
photo was taken is written on request alone, as EXIF's position is.

XMP is written into every format; what a photo says in IPTC or in a PNG's text is added to it where
it has no such property, so that every format holds it. IPTC itself is written into JPEG and TIFF.
Source: XMP part 1 (ISO 16684-1) and part 3; IPTC-IIM 4.2; IPTC Photo Metadata Standard 2023 for
the pairs of IIM and XMP.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, TiffImagePlugin

from nulltext.image.opening import large_pictures

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META, _XML, _OWN = "adobe:ns:meta/", "http://www.w3.org/XML/1998/namespace", "urn:nulltext:1.0/"
_SPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "plus": "http://ns.useplus.org/ldf/xmp/1.0/",
    "cc": "http://creativecommons.org/ns#",
    "exif": "http://ns.adobe.com/exif/1.0/",
}
for _prefix, _uri in {**_SPACES, "x": _META, "rdf": RDF, "nulltext": _OWN}.items():
    ElementTree.register_namespace(_prefix, _uri)

_KEPT_WHOLE = [_SPACES[name] for name in ("xmpRights", "plus", "cc")]
"""Namespaces of rights and licences."""
_KEPT = """
dc:title dc:creator dc:rights dc:description dc:subject dc:contributor dc:publisher dc:source
dc:date dc:language xmp:CreateDate xmp:Rating xmp:Label photoshop:AuthorsPosition
photoshop:CaptionWriter photoshop:Category photoshop:Credit photoshop:DateCreated
photoshop:Headline photoshop:Instructions photoshop:Source photoshop:SupplementalCategories
photoshop:TransmissionReference photoshop:Urgency Iptc4xmpCore:CreatorContactInfo
Iptc4xmpCore:IntellectualGenre Iptc4xmpCore:Scene Iptc4xmpCore:SubjectCode
Iptc4xmpCore:AltTextAccessibility Iptc4xmpCore:ExtDescrAccessibility Iptc4xmpExt:Contributor
Iptc4xmpExt:CVterm Iptc4xmpExt:Event Iptc4xmpExt:ModelAge Iptc4xmpExt:PersonInImage
"""
_PLACES = """
photoshop:City photoshop:State photoshop:Country Iptc4xmpCore:Location Iptc4xmpCore:CountryCode
Iptc4xmpExt:LocationCreated Iptc4xmpExt:LocationShown exif:GPSVersionID exif:GPSLatitude
exif:GPSLongitude exif:GPSAltitude exif:GPSAltitudeRef exif:GPSTimeStamp exif:GPSMapDatum
exif:GPSImgDirection exif:GPSImgDirectionRef exif:GPSHPositioningError
"""
MAX_READ_BYTES = 1 << 20
"""Longest packet that is parsed."""
MAX_XMP_BYTES, MAX_IPTC_BYTES = 32_768, 30_000
"""Most that is kept of either: JPEG has room for 64 KiB each."""
MAX_PROPERTY_BYTES = 8192


def _tag(name: str) -> str:
    """Expand "prefix:name" to ElementTree's "{namespace}name"."""
    prefix, _, local = name.partition(":")
    return f"{{{_SPACES[prefix]}}}{local}"


_KEPT_TAGS = {_tag(name) for name in _KEPT.split()}
_PLACE_TAGS = {_tag(name) for name in _PLACES.split()}
_SETTINGS = f"{{{_OWN}}}settings"
_DESCRIPTION, _LIST_ITEM, _LANGUAGE = f"{{{RDF}}}Description", f"{{{RDF}}}li", f"{{{_XML}}}lang"


@dataclass(frozen=True)
class _Pair:
    """A dataset of IPTC's record 2, and the property of XMP that says the same."""

    name: str
    container: str | None = None
    """How XMP lists its values: Alt (by language), Seq or Bag; None for a single text."""


_IPTC = {
    5: _Pair("dc:title", "Alt"),
    10: _Pair("photoshop:Urgency"),
    15: _Pair("photoshop:Category"),
    20: _Pair("photoshop:SupplementalCategories", "Bag"),
    25: _Pair("dc:subject", "Bag"),
    40: _Pair("photoshop:Instructions"),
    55: _Pair("photoshop:DateCreated"),
    80: _Pair("dc:creator", "Seq"),
    85: _Pair("photoshop:AuthorsPosition"),
    90: _Pair("photoshop:City"),
    92: _Pair("Iptc4xmpCore:Location"),
    95: _Pair("photoshop:State"),
    100: _Pair("Iptc4xmpCore:CountryCode"),
    101: _Pair("photoshop:Country"),
    103: _Pair("photoshop:TransmissionReference"),
    105: _Pair("photoshop:Headline"),
    110: _Pair("photoshop:Credit"),
    115: _Pair("photoshop:Source"),
    116: _Pair("dc:rights", "Alt"),
    120: _Pair("dc:description", "Alt"),
    122: _Pair("photoshop:CaptionWriter"),
}
_TEXTS = {"Author": 80, "Copyright": 116, "Title": 5, "Description": 120}
"""Keywords of a PNG's text (PNG 3, 11.3.3.2), by the dataset that says the same."""
_DATE, _DATE_DIGITS = 55, 8
_APPLICATION_RECORD, _UTF8 = 2, b"\x1c\x01\x5a\x00\x03\x1b%G"
"""Number of the record that is kept; dataset 1:90, which says that texts are UTF-8."""
_PHOTOSHOP_IPTC, _APP13 = 0x0404, 0xFFED


@dataclass(frozen=True)
class Metadata:
    """What is kept of a photo's XMP and IPTC, places included."""

    xmp: bytes | None = None
    """A packet of the kept properties, those of IPTC and PNG's texts included."""
    iptc: tuple[tuple[int, str], ...] = ()
    """(dataset, value) of record 2, in the file's order."""


def kept_metadata(image: Image.Image) -> Metadata:
    """Read what is kept of a decoded image's metadata; its file is still open.

    What is damaged or too large counts as not there: the pixels are good.
    """
    iptc: list[tuple[int, str]] = []
    with contextlib.suppress(Exception):
        for one in _iptc_of(image):
            iptc.append(one)
    kept, size = [], 0
    for dataset, value in iptc:
        size += len(value.encode()) + 5
        if size <= MAX_IPTC_BYTES:
            kept.append((dataset, value))
    properties: list[ElementTree.Element] = []
    with contextlib.suppress(Exception):
        properties = [one for one in _properties(_packet_of(image)) if _is_kept(one.tag)]
    told = {one.tag for one in properties}
    said = [*kept, *_texts_of(image)]
    for dataset in dict.fromkeys(number for number, _ in said):
        if _tag(_IPTC[dataset].name) not in told:
            properties.append(_as_property(dataset, [text for at, text in said if at == dataset]))
    return Metadata(_packet(_bounded(properties)), tuple(kept))


def xmp_of_result(metadata: Metadata, *, gps: bool, settings: str | None = None) -> bytes | None:
    """Build the packet of a result.

    Args:
        gps: whether places are written. settings: JSON to hold beside the rest.
    """
    properties = [*_properties(metadata.xmp)]
    if not gps:
        properties = [_without_places(one) for one in properties if one.tag not in _PLACE_TAGS]
    if settings is not None:
        own = ElementTree.Element(_SETTINGS)
        own.text = settings
        properties.append(own)
    return _packet(properties)


def iptc_of_result(metadata: Metadata, *, gps: bool) -> bytes | None:
    """Build the IPTC records of a result, in UTF-8; None for none."""
    written = [
        struct.pack(">BBBH", 0x1C, _APPLICATION_RECORD, dataset, len(data)) + data
        for dataset, value in metadata.iptc
        if (gps or _tag(_IPTC[dataset].name) not in _PLACE_TAGS) and (data := value.encode())
    ]
    return _UTF8 + b"".join(written) if written else None


def has_places(metadata: Metadata) -> bool:
    return any(one.tag in _PLACE_TAGS for one in _properties(metadata.xmp))


def photoshop_segment(iptc: bytes) -> bytes:
    """Wrap IPTC for a JPEG: segment APP13 with Photoshop's image resource 0x0404."""
    resource = b"8BIM" + struct.pack(">HHI", _PHOTOSHOP_IPTC, 0, len(iptc)) + iptc
    data = b"Photoshop 3.0\0" + resource + b"\0" * (len(iptc) % 2)
    return struct.pack(">HH", _APP13, len(data) + 2) + data


def settings_in(path: Path) -> dict[str, Any] | None:
    """Read the settings that an edit's file holds, in XMP or a PNG's text; None where none are.

    Raises:
        OSError: it is no picture that can be read.
    """
    with large_pictures(), Image.open(path) as image:
        text = image.info.get("nulltext")
        if not isinstance(text, str):
            text = None
            with contextlib.suppress(Exception):
                found = (one.text for one in _properties(_packet_of(image)) if one.tag == _SETTINGS)
                text = next(found, None)
    try:
        values = json.loads(text or "null")
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


# --- XMP ------------------------------------------------------------------------------------------


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses declarations of entities, with which a short text can expand without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002
        raise ValueError("XMP has no document type")


def _packet_of(image: Image.Image) -> bytes | None:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    data = packet.encode() if isinstance(packet, str) else packet
    return data if isinstance(data, bytes) and len(data) <= MAX_READ_BYTES else None


def _properties(packet: bytes | None) -> Iterator[ElementTree.Element]:
    """Yield each property of a packet as an element, those written as attributes, too."""
    if packet is None:
        return
    parser = ElementTree.XMLParser(target=_NoDoctype())
    parser.feed(packet.strip(b"\0 \r\n\t"))
    for rdf in parser.close().iter(f"{{{RDF}}}RDF"):  # the root itself, where there is no xmpmeta
        for description in rdf.iterfind(_DESCRIPTION):
            for name, value in description.items():
                one = ElementTree.Element(name)
                one.text = value
                yield one
            yield from description


def _without_places(one: ElementTree.Element) -> ElementTree.Element:
    """Take places out of a property's parts and their attributes; return the property."""
    for part in [*one.iter()]:
        for name in part.attrib.keys() & _PLACE_TAGS:
            del part.attrib[name]
        for child in [child for child in part if child.tag in _PLACE_TAGS]:
            part.remove(child)
    return one


def _is_kept(tag: str) -> bool:
    space = tag[1:].partition("}")[0]
    return tag in _KEPT_TAGS or tag in _PLACE_TAGS or space in _KEPT_WHOLE


def _bounded(properties: list[ElementTree.Element]) -> list[ElementTree.Element]:
    """Drop properties that are too large, alone or together with those before."""
    kept, total, seen = [], 0, set()
    for one in properties:
        one.tail = None
        try:
            size = len(ElementTree.tostring(one))
        except RecursionError:
            continue
        if size <= MAX_PROPERTY_BYTES and total + size <= MAX_XMP_BYTES and one.tag not in seen:
            kept.append(one)
            seen.add(one.tag)
            total += size
    return kept


def _packet(properties: list[ElementTree.Element]) -> bytes | None:
    if not properties:
        return None
    meta = ElementTree.Element(f"{{{_META}}}xmpmeta")
    description = ElementTree.SubElement(
        ElementTree.SubElement(meta, f"{{{RDF}}}RDF"), _DESCRIPTION, {f"{{{RDF}}}about": ""}
    )
    description.extend(properties)
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{head}{ElementTree.tostring(meta, "unicode")}<?xpacket end="r"?>'.encode()


def _as_property(dataset: int, values: list[str]) -> ElementTree.Element:
    pair = _IPTC[dataset]
    one = ElementTree.Element(_tag(pair.name))
    if pair.container is None:
        text = values[0]
        if dataset == _DATE and len(text) == _DATE_DIGITS:
            text = f"{text[:4]}-{text[4:6]}-{text[6:]}"
        one.text = text
        return one
    listed = ElementTree.SubElement(one, f"{{{RDF}}}{pair.container}")
    for value in values[:1] if pair.container == "Alt" else values:
        item = ElementTree.SubElement(listed, _LIST_ITEM)
        item.text = value
        if pair.container == "Alt":
            item.set(_LANGUAGE, "x-default")
    return one


# --- IPTC -----------------------------------------------------------------------------------------


def _iptc_of(image: Image.Image) -> Iterator[tuple[int, str]]:
    """Yield the kept datasets of a JPEG's or TIFF's IPTC."""
    data: Any = None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        data = image.tag.tagdata.get(TiffImagePlugin.IPTC_NAA_CHUNK)  # as it is, whatever its type
    elif isinstance(resources := image.info.get("photoshop"), dict):
        data = resources.get(_PHOTOSHOP_IPTC)
    at = 0
    while isinstance(data, bytes) and data[at : at + 1] == b"\x1c":
        record, dataset, size = struct.unpack_from(">BBH", data, at + 1)
        value = data[at + 5 : at + 5 + size]
        at += 5 + size
        if record == _APPLICATION_RECORD and dataset in _IPTC and size <= MAX_PROPERTY_BYTES:
            yield dataset, _decoded(value)


def _decoded(value: bytes) -> str:
    """Decode a text of IPTC: many files lie about their character set, so UTF-8 is tried first."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return _printable(text)


def _printable(text: str) -> str:
    """Take out characters that XML cannot hold."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def _texts_of(image: Image.Image) -> Iterator[tuple[int, str]]:
    """Yield what a PNG's texts say of author and rights."""
    for key, dataset in _TEXTS.items():
        value = image.info.get(key)
        if isinstance(value, str) and value.strip():
            yield dataset, _printable(str(value))
