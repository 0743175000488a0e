"""Bytes to RGB at working size, or a rejection with a reason; thumbnails.

The hot path of tagging, called from many threads at once: nothing here keeps state, and simplejpeg, Pillow and OpenCV
let go of the GIL while they work on pixels. All input is untrusted:

* The format is told by its first bytes and opened by that one decoder, never by whichever would take it.
* Width × height are read from the header and held against ``max_pixels`` **before** any pixel is decoded (the original
  size, also where only a scaled picture is decoded). Pillow's own guards stay on beneath it: 179 million pixels, and
  the limits on compressed text and profiles in PNG.
* Only the first frame or page is decoded, however many there are.
* A picture that could not be read in full is rejected, never padded with grey. A JPEG without its end marker counts as
  cut, even where all rows could be read: a file that does not end is not known to have arrived whole. A GIF is read up
  to the end of its first frame, so a cut behind that does no harm.
* A warning of libjpeg that says nothing about the pixels (stray bytes between segments or before the end marker, an
  unknown JFIF revision) does not reject: what it complains of is taken out, and the rest must then decode without any.

Colour profiles are ignored and sRGB is assumed: converting costs more than decoding, and the backbones were trained on
pixels read this way. CMYK is converted by the plain formula, which is enough to recognise a thing by.

The one known gap: JPEG with chroma sampling that libjpeg-turbo's API has no name for is decoded by Pillow, which does
notice a cut file, but not one that was cut and then given a new end marker.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

# Imported by name, so that no thread is the first to make Pillow look for its plugins.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

Rgb = NDArray[np.uint8]

REASONS: Final[dict[str, str]] = {
    "empty": "文件是空的",
    "too_large": "文件太大，没有读取",
    "truncated": "文件不完整，请重新上传",
    "corrupt": "文件已损坏",
    "not_an_image": "不是图片",
    "unsupported_format": "图片格式暂不支持，请转成 JPEG、PNG 或 WebP",
    "too_many_pixels": "像素太多，超出上限",
    "too_small": "图片太小，看不清内容",
    "unreadable_uri": "暂时读不到这个文件，每晚会再试",
}
"""Every reason code that ``quarantine`` may hold, and what pages say for it. ``too_large`` is about bytes and, like
``unreadable_uri``, is given by whoever fetches them; all others come from `decode`."""

TRANSIENT_REASONS: Final = frozenset({"unreadable_uri"})
"""Reasons that may be gone tomorrow: such images are tried again every night, all others when their bytes change."""

MIN_SIDE: Final = 8
"""Pixels: a picture with a shorter side is a tracking pixel, a spacer or a rule, and shows no thing to tag."""

MAX_SCANS: Final = 100
"""Scans of a progressive JPEG. Encoders write about ten; thousands make a small file take hours."""

_MAX_SEGMENTS = 4096  # of a JPEG, or boxes of an AVIF; real files hold some dozens, an ICC profile up to 255
_MENDS = 3  # rounds of taking out what a harmless warning is about
_THUMBNAIL_QUALITY = 80

# In a pool of threads, one each: by default every AVIF picture would start as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# What Pillow's and simplejpeg's decoders raise on damaged files (seen with flipped bytes; not all is documented).
# OSError includes UnidentifiedImageError; the bytes are in memory, so none of these means a disk.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

# Modes with a plain meaning as colour. Left out: LAB (needs a profile), 32-bit integers and floats (no fixed white).
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"})

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value by type; all others 1
_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# Pictures that we know by their first bytes and do not decode.
_UNSUPPORTED = (
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "icon"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"II\xbc", "JPEG XR"),
    (b"gimp xcf", "GIMP"),
    (b"qoif", "QOI"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx "})

_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height

# JPEG markers (ITU-T T.81, table B.1).
_SOI, _EOI, _SOS, _APP0, _APP1 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1
_SCAN = 0  # our own: the entropy-coded bytes behind an SOS
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xDA)})  # without a length
_ANY_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


class Rejected(Exception):  # noqa: N818 - a verdict on an image, not a failure of ours
    """An image that gives no pixels.

    Attributes:
        reason: a key of `REASONS`.
        detail: an English remark for logs: sizes, or what the decoder said.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is no rejection reason; use one of {', '.join(REASONS)}")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Decoded:
    """A picture, upright and on white.

    Attributes:
        rgb: uint8, height × width × 3, C-contiguous, writable; possibly smaller than the original.
        width: pixels of the original, upright.
        height: pixels of the original, upright.
    """

    rgb: Rgb
    width: int
    height: int


def content_sha256(data: bytes) -> str:
    """The SHA-256 of ``data``, 64 hex digits: what one content is known by."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, short_side: int, max_pixels: int) -> Decoded:
    """The first picture in ``data``.

    A JPEG is decoded at 1/1, 1/2, 1/4 or 1/8, whichever is the smallest with a short side of at least ``short_side``
    (or the original's, if that is smaller); other formats in full, and made smaller from four times ``short_side`` on.

    Args:
        data: a whole file: JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF.
        short_side: pixels that the caller needs on the shorter side, at least 1.
        max_pixels: the most that width × height of the original may be. Above 179 million Pillow's own limit holds.

    Returns:
        The picture, turned as its EXIF says, transparency laid on white.

    Raises:
        Rejected: when there is no such picture, or not all of it.
    """
    kind = _kind(data)
    if kind == "JPEG":
        return _decode_jpeg(data, short_side, max_pixels)
    return _decode_with_pillow(data, kind, short_side, max_pixels)


def resize(rgb: Rgb, width: int, height: int) -> Rgb:
    """``rgb`` (uint8, H × W × 3) at ``width`` × ``height``: area-averaged when it shrinks by half or more, else linear.

    Linear takes a quarter of the time, and below a factor of two it still sees every pixel.
    """
    import cv2

    halves = 2 * width <= rgb.shape[1] and 2 * height <= rgb.shape[0]
    resized: Rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if halves else cv2.INTER_LINEAR)
    return resized


def thumbnail(rgb: Rgb, longest: int = 320) -> bytes:
    """A JPEG of ``rgb`` (uint8, H × W × 3) with a longer side of at most ``longest`` pixels; never enlarged."""
    height, width = rgb.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        rgb = resize(rgb, max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.ascontiguousarray(rgb)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=_THUMBNAIL_QUALITY, colorspace="RGB", colorsubsampling="420"))


def _kind(data: bytes) -> str:
    """The Pillow format name that the first bytes tell."""
    if not data:
        raise Rejected("empty", "0 bytes")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if data[4:8] == b"ftyp":
        return _kind_of_iso_file(data)
    for magic, name in _UNSUPPORTED:
        if data.startswith(magic):
            raise Rejected("unsupported_format", name)
    if _is_svg(data):
        raise Rejected("unsupported_format", "SVG")
    raise Rejected("not_an_image", f"starts with {data[:8].hex(' ')}")


def _kind_of_iso_file(data: bytes) -> str:
    """AVIF among the many kinds of ISO base media files (HEIC, MP4, ...), by the brands in its first box."""
    major = data[8:12]
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {major, *(data[start : start + 4] for start in range(16, end, 4))}
    if major in {b"avif", b"avis"} or (major in {b"mif1", b"msf1"} and brands & {b"avif", b"avis"}):
        return "AVIF"
    if brands & _HEIF_BRANDS:
        raise Rejected("unsupported_format", f"HEIF or camera raw, brand {major!r}")
    raise Rejected("not_an_image", f"an ISO media file, brand {major!r}")


def _is_svg(data: bytes) -> bool:
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return head.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in head and b"<html" not in head


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Rejected("too_many_pixels", f"{width} × {height}, the limit is {max_pixels} pixels")
    if min(width, height) < MIN_SIDE:
        raise Rejected("too_small", f"{width} × {height}, the shorter side needs {MIN_SIDE} pixels")


def _rejected(kind: str, data: bytes, error: BaseException) -> Rejected:
    """The verdict on ``data`` after a decoder's ``error``."""
    # Pillow's message would name an address in memory, and a night run again must give the same rows.
    unidentified = isinstance(error, UnidentifiedImageError)
    said = "the header makes no sense" if unidentified else str(error)
    message = said.lower()
    detail = f"{kind}: {type(error).__name__}: {said}"
    if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Rejected("too_many_pixels", detail)
    if "truncated" in message or "premature end" in message:
        return Rejected("truncated", detail)
    if "unsupported" in message or "not available" in message:
        return Rejected("unsupported_format", detail)
    if _IS_CUT[kind](data):
        return Rejected("truncated", detail)
    if kind == "TIFF" and unidentified:  # its directory is there: a layout Pillow lacks
        return Rejected("unsupported_format", detail)
    return Rejected("corrupt", detail)


def _tiff_is_cut(data: bytes) -> bool:
    """Whether the first directory or a value that it points to ends behind the file (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    first = number(4, 4) + 2
    end = first + 12 * number(first - 2, 2)
    ends = [end + 4]
    for entry in range(first, min(end, len(data)), 12):
        size = number(entry + 4, 4) * _TIFF_SIZES.get(number(entry + 2, 2), 1)
        if size > 4:
            ends.append(number(entry + 8, 4) + size)
    return max(ends) > len(data)


def _iso_is_cut(data: bytes) -> bool:
    position = 0
    for _ in range(_MAX_SEGMENTS):
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8 or position >= len(data):  # 0 means up to the end of the file, 1 a long size
            break
        position += size
    return position > len(data)


# Asked only once decoding has failed, to tell a cut file from a damaged one where the decoder does not.
_IS_CUT: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda data: b"\xff\xd9" not in data,
    "PNG": lambda data: b"IEND" not in data,
    "GIF": lambda data: not data.rstrip(b"\0").endswith(b";"),
    "WEBP": lambda data: int.from_bytes(data[4:8], "little") + 8 > len(data),
    "BMP": lambda data: int.from_bytes(data[2:6], "little") > len(data),
    "TIFF": _tiff_is_cut,
    "AVIF": _iso_is_cut,
}


def _decode_with_pillow(data: bytes, kind: str, short_side: int, max_pixels: int) -> Decoded:
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
            _check_size(*picture.size, max_pixels)
            picture.load()
            rgb = _upright(_flattened(picture), _orientation(picture.getexif))
    except _DECODER_ERRORS as error:
        raise _rejected(kind, data, error) from error
    height, width = rgb.shape[:2]
    return Decoded(_bounded(rgb, short_side), width, height)


def _flattened(picture: Image.Image) -> Rgb:
    """The pixels of a loaded picture as RGB on white."""
    if picture.mode.startswith("I;16"):
        return _from_16_bit_grey(picture)
    if picture.mode not in _MODES:
        raise Rejected("unsupported_format", f"{picture.format} with pixels of mode {picture.mode}")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _from_16_bit_grey(picture: Image.Image) -> Rgb:
    """The upper byte, as Pillow does with 16-bit colour; for grey its ``convert`` would clip at 255."""
    values = np.array(picture)
    grey = (values >> 8).astype(np.uint8)
    if getattr(picture, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white
        grey = ~grey
    if "transparency" in picture.info:
        grey[values == picture.info["transparency"]] = 255
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _bounded(rgb: Rgb, short_side: int) -> Rgb:
    """``rgb`` by a whole factor smaller when its short side is four times what is needed, or more."""
    height, width = rgb.shape[:2]
    factor = min(height, width) // (2 * short_side)
    if factor < 2:
        return rgb
    return resize(rgb, -(-width // factor), -(-height // factor))


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the EXIF is damaged (as browsers do: the pixels are sound)."""
    try:
        value = read_exif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(rgb: Rgb, orientation: int) -> Rgb:
    """``rgb`` turned and mirrored as EXIF ``orientation`` (Exif 2.32, tag 0x0112) asks."""
    if orientation == 1:
        return rgb
    import cv2

    turns: dict[int, Callable[[Any], Any]] = {
        2: lambda image: cv2.flip(image, 1),
        3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
        4: lambda image: cv2.flip(image, 0),
        5: cv2.transpose,
        6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
        7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
        8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }
    turned: Rgb = turns[orientation](rgb)
    return turned


def _decode_jpeg(data: bytes, short_side: int, max_pixels: int, mends: int = _MENDS) -> Decoded:
    try:
        lying = _decode_strictly(data, short_side, max_pixels)
    except _DECODER_ERRORS as error:
        if "subsampling level" in str(error):  # of a kind that libjpeg-turbo's API has no name for
            _check_scans(data)
            return _decode_with_pillow(data, "JPEG", short_side, max_pixels)
        mended = _mended(data, str(error)) if mends else data
        if mended == data:
            raise _rejected("JPEG", data, error) from error
        return _decode_jpeg(mended, short_side, max_pixels, mends - 1)
    orientation = _jpeg_orientation(data)
    width, height = (lying.height, lying.width) if orientation in _SIDEWAYS else (lying.width, lying.height)
    return Decoded(_upright(lying.rgb, orientation), width, height)


def _decode_strictly(data: bytes, short_side: int, max_pixels: int) -> Decoded:
    """A JPEG as it lies, at the smallest useful power of two; any warning is a ValueError."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(width, height, max_pixels)
    _check_scans(data)
    # Powers of two only: libjpeg-turbo has fast code for these, and the others are slower than decoding more pixels.
    needed = min(short_side, width, height)
    factor = next(factor for factor in (8, 4, 2, 1) if -(-min(width, height) // factor) >= needed)
    rgb = simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // factor), min_width=-(-width // factor))
    return Decoded(rgb, width, height)


def _check_scans(data: bytes) -> None:
    # The plain count is fast but sees those in thumbnails and in what was appended too: only then count exactly.
    if data.count(b"\xff\xda") > MAX_SCANS:
        starts = (marker for marker, _, _ in _segments(data) if marker == _SOS)
        if next(itertools.islice(starts, MAX_SCANS, None), None) is not None:
            raise Rejected("corrupt", f"JPEG: more than {MAX_SCANS} scans")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG, from behind its SOI to its EOI; gaps are stray bytes."""
    position = 2
    count = 0
    while match := _ANY_MARKER.search(data, position):
        start = match.start()
        marker = data[start + 1]
        length = 0 if marker in _BARE_MARKERS else int.from_bytes(data[start + 2 : start + 4], "big")
        position = start + 2 + length
        yield marker, start, position
        count += 1
        if count > _MAX_SEGMENTS:
            raise Rejected("corrupt", f"JPEG: more than {_MAX_SEGMENTS} segments")
        if marker == _EOI:
            return
        if marker == _SOS:
            found = _SCAN_END.search(data, position)
            start, position = position, found.start() if found else len(data)
            yield _SCAN, start, position


def _jpeg_orientation(data: bytes) -> int:
    for marker, start, end in _segments(data):
        if marker == _SOS:
            break
        if marker == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return _orientation(functools.partial(_parsed_exif, data[start + 4 : end]))
    return 1


def _parsed_exif(payload: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(payload)
    return exif


def _mended(data: bytes, warning: str) -> bytes:
    """``data`` without what a harmless ``warning`` of libjpeg is about; the same bytes when it is not harmless.

    libjpeg tells only its first warning, so a harmless one may stand before a serious one: the caller decodes again.
    """
    extraneous = _EXTRANEOUS.search(warning)
    if not extraneous and "unknown JFIF revision" not in warning:
        return data
    parts = [data[:2]]
    before = _SOI
    for marker, start, end in _segments(data):
        if extraneous and marker == _EOI and before == _SCAN and int(extraneous[2], 16) == _EOI:
            parts[-1] = parts[-1][: -int(extraneous[1])]
        parts.append(_known_revision(data[start:end]) if marker == _APP0 else data[start:end])
        before = marker
    return b"".join(parts)


def _known_revision(segment: bytes) -> bytes:
    """An APP0 segment; a JFIF one with its major revision, at byte 9, set to 1."""
    return segment[:9] + b"\1" + segment[10:] if segment[4:9] == b"JFIF\0" else segment
