"""Files that are given for photos and cannot be read as such: named, with what to do instead."""

from __future__ import annotations

import errno
import re
import stat
from pathlib import Path

from PIL import Image, TiffImagePlugin

from nulltext.errors import ImageError, shortened
from nulltext.image.sixteen_bits import in_planes
from nulltext.storage.untrusted import refuse_address

HEIC = re.compile(rb"....ftyp(?:he[iv][cmsx]|(?:mif1|msf1)(?!.*avif))", re.DOTALL)
"""How a HEIC file begins; AVIF has the same container."""

_CONVERT = "convert it to JPEG or PNG"
_RAW = "export it from your camera's or RAW software as JPEG, PNG or TIFF"
_FRAME = "save one of its frames as PNG"
_FOREIGN = {
    "PDF": (rb"%PDF", _CONVERT),
    "EPS": (rb"%!PS|\xc5\xd0\xd3\xc6", _CONVERT),
    "PSD": (rb"8BPS", _CONVERT),
    "a web page": (rb"(?i)\s*<(?:!doctype html|html)", "save the image that it shows"),
    "SVG": (rb"<svg|<\?xml", _CONVERT),
    "JPEG XL": (rb"\xff\x0a|\0\0\0\x0cJXL ", _CONVERT),
    "JPEG 2000": (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _CONVERT),
    "OpenEXR": (rb"\x76\x2f\x31\x01", _CONVERT),
    "Radiance HDR": (rb"#\?R", _CONVERT),
    "a Git LFS pointer": (rb"version https://git-lfs", "fetch the file itself: git lfs pull"),
    "an archive": (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "unpack it and give one image of it"),
    "Canon RAW (CR2)": (rb"II\*\0....CR", _RAW),
    "Canon RAW (CR3)": (rb"....ftypcrx ", _RAW),
    "Fujifilm RAW (RAF)": (rb"FUJIFILMCCD-RAW", _RAW),
    "Olympus RAW (ORF)": (rb"IIR[OS]|MMOR", _RAW),
    "Panasonic RAW (RW2)": (rb"IIU\0", _RAW),
    "Minolta RAW (MRW)": (rb"\0MRM", _RAW),
    "Sigma RAW (X3F)": (rb"FOVb", _RAW),
    "a video": (
        rb"....ftyp(?:isom|iso[2-9]|mp4|M4V|qt  |3g[p2]|avc1|dash|MSNV)|....(?:moov|wide|mdat)"
        rb"|\x1a\x45\xdf\xa3|RIFF....AVI ",
        _FRAME,
    ),
}
_RAW_SUFFIXES = {  # TIFF inside: Pillow would take the small preview for the photo
    **dict.fromkeys((".nef", ".nrw"), "Nikon"),
    **dict.fromkeys((".arw", ".srf", ".sr2"), "Sony"),
    ".cr2": "Canon",
    ".dng": "a camera's",
    ".pef": "Pentax",
    ".srw": "Samsung",
    **dict.fromkeys((".3fr", ".fff"), "Hasselblad"),
    ".iiq": "Phase One",
    ".rwl": "Leica",
    ".erf": "Epson",
    **dict.fromkeys((".kdc", ".dcr"), "Kodak"),
    ".mef": "Mamiya",
    ".mos": "Leaf",
}
_TIFF = (b"II*\0", b"MM\0*")
_DNG_VERSION = 50706
"""The tag that every DNG has (DNG 1.7, ch. 4), whatever the file is called."""


def check_regular_file(path: Path, name: str) -> None:
    """Refuse what opening would hang on or misread: addresses, folders, pipes, empty files.

    Raises:
        ImageError: it is one of these, or no name of a file. OSError: it is not there.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        refuse_address(path, ImageError)
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ImageError(f"{shortened(name)} is too long a name: check the path.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name} is a folder: give the path of one image file.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name} is not a regular file: save the image to disk first.")
    if status.st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes): fetch or export it again.")


def refuse_foreign(head: bytes, suffix: str, name: str) -> None:
    """Name the formats that are given for photos and are not decoded here.

    Args:
        head: the file's first bytes. suffix: of its name, for formats that look like TIFF.

    Raises:
        ImageError: it is one of them.
    """
    for kind, (magic, advice) in _FOREIGN.items():
        if re.match(magic, head, re.DOTALL):
            raise _not_read(name, kind, advice)
    maker = _RAW_SUFFIXES.get(suffix.lower())
    if maker is not None and head.startswith(_TIFF):
        raise _not_read(name, f"{maker} RAW ({suffix[1:].upper()})", _RAW)


def refuse_tiff(image: Image.Image, name: str) -> None:
    """Refuse a TIFF that Pillow decodes wrongly, by its tags: DNG, and planes of 16 bits.

    Raises:
        ImageError: it is one.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags:
        raise _not_read(name, "a camera's RAW (DNG)", _RAW)
    deepest = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    packed = tags.get(TiffImagePlugin.COMPRESSION, 1) != 1
    if in_planes(image) and deepest > 8 and not packed:
        kind = f"a TIFF of uncompressed planes of {deepest} bits"
        raise _not_read(name, kind, "save it with interleaved channels, or compressed")


def _not_read(name: str, kind: str, advice: str) -> ImageError:
    return ImageError(f"{name} is {kind}, which is not read: {advice}.")
