"""Decoding: every format against pixels known beforehand, and every kind of bad file against its reason."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import skimage.data
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wwts_ops import images
from wwts_ops.images import Decoded, Rejected, decode

# Pillow says aloud what is wrong with a damaged TIFF before it gives up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

MAX_PIXELS = 20_000_000
PHOTO = skimage.data.chelsea()  # 300 × 451 × 3
HEIGHT, WIDTH = PHOTO.shape[:2]
PICTURE = Image.fromarray(PHOTO)
SMALL = PICTURE.resize((120, 80), Image.Resampling.LANCZOS)
FRAMES = [SMALL, SMALL.rotate(90), SMALL.rotate(180)]


def saved(kind: str, picture: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def encoded(extension: str, array: np.ndarray) -> bytes:
    """By OpenCV, which writes 16 bits where Pillow does not."""
    done, data = cv2.imencode(extension, array)
    assert done
    return data.tobytes()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def in_full(data: bytes) -> np.ndarray:
    return decode(data, 10_000, MAX_PIXELS).rgb


def off(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(float) - expected).mean())


def rejection(data: bytes, max_pixels: int = MAX_PIXELS, short_side: int = 64) -> Rejected:
    with pytest.raises(Rejected) as caught:
        decode(data, short_side, max_pixels)
    return caught.value


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, three equal channels."""
    return np.repeat((rgb @ [0.299, 0.587, 0.114])[:, :, np.newaxis], 3, axis=2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, np.newaxis] / 255
    return rgb * share + 255 * (1 - share)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_png_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """``data`` with one chunk more, right behind IHDR."""
    return data[:33] + png_chunk(name, body) + data[33:]


def flat_jpeg(width: int, height: int, factors: list[int]) -> bytes:
    """A grey JPEG with the sampling factors given (0xHV each): one-bit codes, every block two zero bits."""

    def segment(marker: int, body: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body

    widest, tallest = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    units = -(-width // (8 * widest)) * -(-height // (8 * tallest))
    bits = 2 * units * sum((f >> 4) * (f & 15) for f in factors)
    one_code = bytes([1, *[0] * 15, 0])
    components = b"".join(bytes([number, f, 0]) for number, f in enumerate(factors, 1))
    scan = bytes([len(factors)]) + b"".join(bytes([number, 0]) for number in range(1, len(factors) + 1)) + b"\0\x3f\0"
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + b"\1" * 64),
            segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + components),
            segment(0xC4, b"\0" + one_code + b"\x10" + one_code),
            segment(0xDA, scan),
            bytes(-(-bits // 8)),
            b"\xff\xd9",
        ]
    )


def jpeg_part(data: bytes, marker: int) -> int:
    """Where the first segment of ``marker`` starts (photographs here carry no thumbnail)."""
    return data.index(bytes([0xFF, marker]))


class TestFormats:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("PNG", {}),
            ("PNG", {"compress_level": 0}),
            ("WEBP", {"lossless": True}),
            ("BMP", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "tiff_adobe_deflate"}),
            ("TIFF", {"compression": "packbits"}),
        ],
    )
    def test_lossless_formats_give_the_very_pixels(self, kind: str, options: dict[str, Any]) -> None:
        decoded = decode(saved(kind, **options), 128, MAX_PIXELS)
        assert np.array_equal(decoded.rgb, PHOTO)
        assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("JPEG", {"subsampling": 0}),
            ("JPEG", {"subsampling": 2}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"restart_marker_rows": 1}),
            ("JPEG", {"keep_rgb": True}),
            ("WEBP", {}),
            ("AVIF", {}),
            ("TIFF", {"compression": "jpeg"}),
        ],
    )
    def test_lossy_formats_come_close(self, kind: str, options: dict[str, Any]) -> None:
        assert off(in_full(saved(kind, quality=92, **options)), PHOTO) < 3

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
    def test_grey_becomes_three_equal_channels(self, kind: str) -> None:
        options = {"quality": 95} if kind in {"JPEG", "AVIF"} else {"lossless": True} if kind == "WEBP" else {}
        assert off(in_full(saved(kind, PICTURE.convert("L"), **options)), luma(PHOTO)) < 2

    @pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("TIFF", {})])
    def test_cmyk_is_converted(self, kind: str, options: dict[str, Any]) -> None:
        """Pillow writes CMYK without black, so that the plain formula gives the photograph back."""
        assert off(in_full(saved(kind, PICTURE.convert("CMYK"), **options)), PHOTO) < 3

    def test_cmyk_without_adobes_segment_is_read_inverted_all_the_same(self) -> None:
        data = saved("JPEG", PICTURE.convert("CMYK"), quality=95)
        start = jpeg_part(data, 0xEE)
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        assert b"Adobe" in data[start:end]
        assert off(in_full(data[:start] + data[end:]), PHOTO) < 3

    def test_ycck_is_told_by_adobes_segment(self) -> None:
        """Adobe stores the opposite of the ink and calls that CMY: its luma is dark where the picture is light."""
        grey = 255 - np.asarray(PICTURE.convert("L"))
        ycck = np.dstack([grey, np.full_like(grey, 128), np.full_like(grey, 128), np.full_like(grey, 255)])
        data = saved("JPEG", Image.fromarray(255 - ycck, "CMYK"), quality=95)
        start = jpeg_part(data, 0xEE)
        assert data[start + 15] == 0
        told = data[: start + 15] + b"\2" + data[start + 16 :]
        assert off(in_full(told), luma(PHOTO)) < 3

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
    def test_palettes_are_looked_up(self, kind: str) -> None:
        indexed = PICTURE.quantize(61)
        colours = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
        assert np.array_equal(in_full(saved(kind, indexed)), colours[np.asarray(indexed)])

    @pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"})])
    def test_one_bit_becomes_black_and_white(self, kind: str, options: dict[str, Any]) -> None:
        bits = np.asarray(PICTURE.convert("L")) > 120
        expected = np.repeat(np.where(bits, 255, 0)[:, :, np.newaxis], 3, axis=2)
        assert np.array_equal(in_full(saved(kind, Image.fromarray(bits), **options)), expected)

    @pytest.mark.parametrize("extension", [".png", ".tiff"])
    def test_16_bits_keep_their_upper_half(self, extension: str) -> None:
        colour = PHOTO.astype(np.uint16) * 257
        grey = PHOTO[:, :, 1].astype(np.uint16) * 257
        assert np.array_equal(in_full(encoded(extension, colour[:, :, ::-1])), PHOTO)
        assert np.array_equal(in_full(encoded(extension, grey)), np.repeat(PHOTO[:, :, 1:2], 3, axis=2))

    @pytest.mark.parametrize(("byteorder", "zero_is"), [("<", "black"), (">", "black"), ("<", "white")])
    def test_16_bit_tiff_in_both_byte_orders_and_polarities(self, byteorder: str, zero_is: str) -> None:
        grey = PHOTO[:, :, 1].astype(np.uint16) * 257
        stored = grey if zero_is == "black" else 65535 - grey
        data = tiff(stored, byteorder=byteorder, photometric=f"minis{zero_is}")
        assert np.array_equal(in_full(data), np.repeat(PHOTO[:, :, 1:2], 3, axis=2))

    def test_big_tiff_and_planar_tiff(self) -> None:
        assert np.array_equal(in_full(tiff(PHOTO, photometric="rgb", bigtiff=True)), PHOTO)
        planes = tiff(np.moveaxis(PHOTO, 2, 0).copy(), photometric="rgb", planarconfig="separate")
        assert np.array_equal(in_full(planes), PHOTO)

    @pytest.mark.parametrize("dtype", [np.float32, np.uint32])
    @pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
    def test_pixels_without_a_fixed_white_are_not_guessed(self, dtype: type, photometric: str) -> None:
        pixels = PHOTO if photometric == "rgb" else PHOTO[:, :, 0]
        assert rejection(tiff(pixels.astype(dtype), photometric=photometric)).reason == "unsupported_format"

    def test_jpeg_with_sampling_of_no_common_name_is_decoded(self) -> None:
        data = flat_jpeg(120, 72, [0x31, 0x11, 0x11])
        assert np.array_equal(in_full(data), np.full((72, 120, 3), 128))
        assert rejection(data[:-20]).reason == "truncated"

    def test_what_comes_back_can_be_written_to_and_is_contiguous(self) -> None:
        for data in EVERY_FORMAT.values():
            rgb = decode(data, 32, MAX_PIXELS).rgb
            assert rgb.dtype == np.uint8
            assert rgb.flags["C_CONTIGUOUS"]
            assert rgb.flags["WRITEABLE"]


class TestTransparency:
    ALPHA = np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))

    @pytest.mark.parametrize(
        ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]
    )
    def test_alpha_is_laid_on_white(self, kind: str, options: dict[str, Any]) -> None:
        found = in_full(saved(kind, Image.fromarray(np.dstack([PHOTO, self.ALPHA])), **options))
        assert np.abs(found - on_white(PHOTO, self.ALPHA)).max() <= 1
        assert (found[self.ALPHA == 0] == 255).all()
        assert np.array_equal(found[self.ALPHA == 255], PHOTO[self.ALPHA == 255])

    def test_avif_and_grey_with_alpha(self) -> None:
        transparent = Image.fromarray(np.dstack([PHOTO, self.ALPHA]))
        assert off(in_full(saved("AVIF", transparent, quality=92)), on_white(PHOTO, self.ALPHA)) < 3
        found = in_full(saved("PNG", transparent.convert("LA")))
        assert off(found, on_white(luma(PHOTO), self.ALPHA)) < 1

    def test_a_palette_with_an_alpha_for_each_colour(self) -> None:
        indexed = PICTURE.quantize(40)
        indices = np.asarray(indexed)
        alphas = np.arange(40, dtype=np.uint8) * 6
        colours = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
        found = in_full(saved("PNG", indexed, transparency=alphas.tobytes()))
        assert np.abs(found - on_white(colours[indices], alphas[indices])).max() <= 1

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_one_transparent_colour_of_a_palette(self, kind: str) -> None:
        indexed = PICTURE.quantize(40)
        indices = np.asarray(indexed)
        expected = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)[indices]
        expected[indices == 7] = 255
        assert np.array_equal(in_full(saved(kind, indexed, transparency=7)), expected)

    def test_one_transparent_shade_of_16_bit_grey(self) -> None:
        grey = PHOTO[:, :, 1]
        data = encoded(".png", grey.astype(np.uint16) * 257)
        found = in_full(with_png_chunk(data, b"tRNS", struct.pack(">H", 100 * 257)))
        assert (grey == 100).any()
        assert np.array_equal(found[:, :, 0], np.where(grey == 100, 255, grey))


class TestFirstFrame:
    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
    def test_only_the_first_of_several_counts(self, kind: str) -> None:
        data = saved(kind, FRAMES[0], save_all=True, append_images=FRAMES[1:])
        with Image.open(io.BytesIO(data)) as whole:
            assert getattr(whole, "n_frames", 1) == 3
        found = in_full(data)
        near, *far = (off(found, np.asarray(frame)) for frame in FRAMES)
        assert near < 12
        assert min(far) > 2 * near

    def test_a_gif_cut_in_its_second_frame_still_has_its_first(self) -> None:
        data = saved("GIF", FRAMES[0], save_all=True, append_images=FRAMES[1:])
        assert np.array_equal(in_full(data[:-2000]), in_full(data))


class TestOrientation:
    # Where row 0 and column 0 of the stored pixels are in the upright picture: Exif 2.32, tag 0x0112.
    SIDES: ClassVar = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }

    def stored(self, orientation: int) -> Image.Image:
        row_0, column_0 = self.SIDES[orientation]
        pixels = PHOTO if row_0 in {"top", "bottom"} else PHOTO.transpose(1, 0, 2)
        pixels = pixels[::-1] if row_0 in {"bottom", "right"} else pixels
        pixels = pixels[:, ::-1] if column_0 in {"bottom", "right"} else pixels
        return Image.fromarray(np.ascontiguousarray(pixels))

    def exif(self, orientation: object) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif.tobytes()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG"])
    def test_all_eight_end_upright(self, kind: str, orientation: int) -> None:
        options = {"lossless": True} if kind == "WEBP" else {"quality": 92} if kind in {"AVIF", "JPEG"} else {}
        decoded = decode(saved(kind, self.stored(orientation), exif=self.exif(orientation), **options), 300, MAX_PIXELS)
        assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)
        assert off(decoded.rgb, PHOTO) < (3 if kind in {"AVIF", "JPEG"} else 1e-9)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_scaled_picture_is_turned_too_and_the_size_is_the_originals(self, orientation: int) -> None:
        data = saved("JPEG", self.stored(orientation), exif=self.exif(orientation), quality=92)
        decoded = decode(data, 150, MAX_PIXELS)
        assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)
        assert decoded.rgb.shape == (150, 226, 3)
        assert off(decoded.rgb, images.resize(PHOTO, 226, 150)) < 4

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "exif",
        [
            b"",
            b"nonsense",
            b"II*\0\xff\xff\xff\xff",
            b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0) + bytes(4),  # 9
            b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0") + bytes(4),  # text
        ],
    )
    def test_damaged_exif_leaves_the_pixels_as_they_lie(self, kind: str, exif: bytes) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        assert off(in_full(saved(kind, exif=b"Exif\0\0" + exif, **options)), PHOTO) < 5


class TestWorkingSize:
    @pytest.mark.parametrize("size", [(1024, 768), (1023, 769), (512, 512), (511, 1600), (257, 255), (100, 2000)])
    @pytest.mark.parametrize("short_side", [32, 64, 128, 200, 256, 300])
    def test_jpeg_is_halved_while_its_short_side_suffices(self, size: tuple[int, int], short_side: int) -> None:
        width, height = size
        decoded = decode(saved("JPEG", PICTURE.resize(size), quality=90), short_side, MAX_PIXELS)
        needed = min(short_side, width, height)
        factor = max(f for f in (1, 2, 4, 8) if -(-min(size) // f) >= needed)
        assert decoded.rgb.shape == (-(-height // factor), -(-width // factor), 3)
        assert (decoded.width, decoded.height) == size

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("factor", [2, 4, 8])
    def test_a_scaled_jpeg_is_the_full_one_averaged(self, factor: int, progressive: bool) -> None:
        whole = np.asarray(PICTURE.resize((1024, 768), Image.Resampling.LANCZOS))
        data = saved("JPEG", Image.fromarray(whole), quality=92, progressive=progressive)
        found = decode(data, 768 // factor, MAX_PIXELS).rgb
        averaged = whole.reshape(768 // factor, factor, 1024 // factor, factor, 3).mean(axis=(1, 3))
        assert off(found, averaged) < 3

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
    def test_other_formats_shrink_from_four_times_on(self, kind: str) -> None:
        whole = np.asarray(PICTURE.resize((1280, 960), Image.Resampling.LANCZOS))
        data = saved(kind, Image.fromarray(whole))
        decoded = decode(data, 120, MAX_PIXELS)
        assert (decoded.width, decoded.height) == (1280, 960)
        assert off(decoded.rgb, whole.reshape(240, 4, 320, 4, 3).mean(axis=(1, 3))) < 1
        assert decode(data, 240, MAX_PIXELS).rgb.shape == (480, 640, 3)
        assert decode(data, 241, MAX_PIXELS).rgb.shape == (960, 1280, 3)

    @settings(max_examples=60, deadline=None)
    @given(
        width=st.integers(8, 700),
        height=st.integers(8, 700),
        short_side=st.integers(1, 400),
        kind=st.sampled_from(["JPEG", "BMP"]),
    )
    def test_the_short_side_never_falls_below_what_is_needed(
        self, width: int, height: int, short_side: int, kind: str
    ) -> None:
        decoded = decode(saved(kind, Image.new("RGB", (width, height))), short_side, MAX_PIXELS)
        assert min(decoded.rgb.shape[:2]) >= min(short_side, width, height)
        assert max(decoded.rgb.shape[:2]) <= max(width, height)


def _every_format() -> dict[str, bytes]:
    animated = {"save_all": True, "append_images": FRAMES[1:]}
    translucent = SMALL.convert("RGBA")
    translucent.putalpha(SMALL.convert("L"))
    return {
        "jpeg": saved("JPEG", SMALL),
        "jpeg progressive": saved("JPEG", SMALL, progressive=True),
        "jpeg restarts": saved("JPEG", SMALL, restart_marker_rows=1),
        "jpeg cmyk": saved("JPEG", SMALL.convert("CMYK")),
        "jpeg grey": saved("JPEG", SMALL.convert("L")),
        "png": saved("PNG", SMALL),
        "png palette": saved("PNG", SMALL.quantize(50), transparency=3),
        "png 16 bits": encoded(".png", np.asarray(SMALL.convert("L")).astype(np.uint16) * 257),
        "gif": saved("GIF", SMALL),
        "webp": saved("WEBP", SMALL),
        "webp lossless": saved("WEBP", SMALL, lossless=True),
        "webp alpha": saved("WEBP", translucent),
        "webp animated": saved("WEBP", SMALL, **animated),
        "avif": saved("AVIF", SMALL),
        "avif alpha": saved("AVIF", translucent),
        "bmp": saved("BMP", SMALL),
        "bmp palette": saved("BMP", SMALL.quantize(50)),
        "tiff": saved("TIFF", SMALL),
        "tiff lzw": saved("TIFF", SMALL, compression="tiff_lzw"),
        "tiff jpeg": saved("TIFF", SMALL, compression="jpeg"),
        "tiff group4": saved("TIFF", SMALL.convert("1"), compression="group4"),
        "tiff strips last": tiff(np.asarray(SMALL), photometric="rgb", compression="zlib", rowsperstrip=16),
    }


EVERY_FORMAT = _every_format()

# Bytes at the end that hold no pixels: of PNG the IEND chunk, two checksums and zlib's own end, of GIF the terminator
# and the trailer, of TIFF where the next page is.
_TAIL = {"png": 23, "png palette": 23, "png 16 bits": 23, "gif": 2, "tiff group4": 4}


class TestCutFiles:
    @pytest.mark.parametrize("name", EVERY_FORMAT)
    def test_a_file_cut_inside_its_pixels_never_gives_a_picture(self, name: str) -> None:
        data = EVERY_FORMAT[name]
        last = len(data) - 1 - _TAIL.get(name, 0)
        cuts = {*range(40, last, max(1, last // 150)), *range(last - 12, last + 1)}
        reasons = {cut: rejection(data[:cut]).reason for cut in cuts}
        allowed = {"truncated", "corrupt"} if name.startswith("tiff") else {"truncated"}
        assert {cut: reason for cut, reason in reasons.items() if reason not in allowed} == {}

    @pytest.mark.parametrize("name", ["png", "gif"])
    def test_a_cut_behind_the_pixels_changes_none(self, name: str) -> None:
        data = EVERY_FORMAT[name]
        assert np.array_equal(in_full(data[: len(data) - _TAIL[name] + 1]), in_full(data))

    @pytest.mark.parametrize("name", EVERY_FORMAT)
    def test_a_cut_anywhere_gives_the_same_pixels_or_a_rejection(self, name: str) -> None:
        data = EVERY_FORMAT[name]
        whole = in_full(data)
        for cut in range(1, len(data), max(1, len(data) // 120)):
            try:
                found = in_full(data[:cut])
            except Rejected:
                continue
            assert np.array_equal(found, whole), cut

    @pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg restarts", "jpeg cmyk", "jpeg grey"])
    def test_a_cut_jpeg_that_was_given_an_end_is_still_cut(self, name: str) -> None:
        data = EVERY_FORMAT[name]
        scan = data.rindex(b"\xff\xda")
        assert rejection(data[: (scan + len(data)) // 2] + b"\xff\xd9").reason == "truncated"

    def test_a_jpeg_without_its_end_marker_counts_as_cut(self) -> None:
        assert rejection(EVERY_FORMAT["jpeg"][:-2]).reason == "truncated"


def trailing_junk(data: bytes) -> bytes:
    return data + b"\xff\xda\xff\xd8junk" * 400


def fill_bytes(data: bytes) -> bytes:
    return data[:-2] + b"\xff\xff\xff" + data[-2:]


def unknown_revision(data: bytes) -> bytes:
    start = data.index(b"JFIF\0")
    return data[: start + 5] + b"\2" + data[start + 6 :]


def stray_before(marker: int, stray: bytes = b"\0\1\2") -> Callable[[bytes], bytes]:
    def harm(data: bytes) -> bytes:
        start = jpeg_part(data, marker)
        return data[:start] + stray + data[start:]

    return harm


def padded(data: bytes) -> bytes:
    return data[:-2] + bytes(100) + data[-2:]


HARMLESS = {
    "junk behind the end": trailing_junk,
    "fill bytes before the end": fill_bytes,
    "unknown JFIF revision": unknown_revision,
    "stray bytes before DQT": stray_before(0xDB),
    "stray bytes before SOF": stray_before(0xC0, b"\xff\0\xff\xff\0abc"),
    "stray bytes before SOS": stray_before(0xDA),
    "padding before the end": padded,
}


class TestHarmlessFlaws:
    @pytest.mark.parametrize("name", HARMLESS)
    def test_a_flaw_outside_the_pixels_does_not_reject(self, name: str) -> None:
        data = saved("JPEG", quality=90)
        assert np.array_equal(in_full(HARMLESS[name](data)), in_full(data))

    def test_all_of_them_at_once(self) -> None:
        data = saved("JPEG", quality=90)
        harmed = data
        for harm in (padded, unknown_revision, stray_before(0xDB), stray_before(0xDA), trailing_junk):
            harmed = harm(harmed)
        assert np.array_equal(in_full(harmed), in_full(data))

    @pytest.mark.parametrize("name", ["unknown JFIF revision", "stray bytes before DQT", "stray bytes before SOS"])
    def test_none_of_them_hides_a_cut(self, name: str) -> None:
        harmed = HARMLESS[name](saved("JPEG", quality=90))
        assert rejection(harmed[: len(harmed) // 2]).reason == "truncated"
        assert rejection(harmed[: len(harmed) // 2] + b"\xff\xd9").reason == "truncated"
        assert rejection(harmed[:-2]).reason == "truncated"

    def test_none_of_them_hides_damage(self) -> None:
        data = saved("JPEG", quality=90, restart_marker_rows=1)
        restart = data.index(b"\xff\xd3", jpeg_part(data, 0xDA))
        swapped = data[:restart] + b"\xff\xd6" + data[restart + 2 :]
        assert rejection(swapped).reason == "corrupt"
        assert rejection(unknown_revision(swapped)).reason == "corrupt"

    def test_an_orientation_behind_stray_bytes_is_found(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = stray_before(0xDB)(saved("JPEG", exif=exif.tobytes()))
        decoded = decode(data, 300, MAX_PIXELS)
        assert (decoded.width, decoded.height) == (HEIGHT, WIDTH)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file of ``kind`` whose header claims to be ``width`` × ``height``."""
    data = bytearray(saved(kind, SMALL, **({"lossless": True} if kind == "WEBP" else {})))
    if kind == "JPEG":
        start = jpeg_part(bytes(data), 0xC0)
        data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        header = struct.pack(">II", width, height) + bytes(data[24:29])
        data[8:33] = png_chunk(b"IHDR", header)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":  # the canvas, in an extended header put before the picture
        canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunk = b"VP8X" + struct.pack("<I", 10) + canvas
        data = bytearray(b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + b"WEBP" + chunk + bytes(data[12:]))
    else:
        # Rows per strip are raised too, or Pillow would already stumble over missing strips.
        for tag, value in ((256, width), (257, height), (278, height)):
            entry = bytes(data).index(struct.pack("<H", tag), 8)
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


class TestBombs:
    @pytest.mark.parametrize("size", [(60_000, 60_000), (9_000, 9_000)])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
    def test_a_header_that_claims_too_much_is_refused_unread(self, kind: str, size: tuple[int, int]) -> None:
        """60,000 squared is above Pillow's own limit, 9,000 squared below; read, both would turn out cut or damaged."""
        assert rejection(claiming(kind, *size)).reason == "too_many_pixels"

    def test_a_webp_canvas_too(self) -> None:
        assert rejection(claiming("WEBP", 16_000, 16_000)).reason == "too_many_pixels"

    @pytest.mark.parametrize("name", EVERY_FORMAT)
    def test_the_limit_is_exact_and_about_the_original(self, name: str) -> None:
        pixels = SMALL.width * SMALL.height
        assert rejection(EVERY_FORMAT[name], max_pixels=pixels - 1, short_side=8).reason == "too_many_pixels"
        assert decode(EVERY_FORMAT[name], 8, pixels).width == SMALL.width

    def test_a_progressive_jpeg_of_countless_scans_is_refused(self) -> None:
        data = saved("JPEG", progressive=True)
        last = data.rindex(b"\xff\xda")
        rejected = rejection(data[:last] + data[last:-2] * 150 + data[-2:])
        assert rejected.reason == "corrupt"
        assert "scans" in rejected.detail

    def test_countless_scans_are_refused_where_pillow_would_decode_too(self) -> None:
        data = flat_jpeg(120, 72, [0x31, 0x11, 0x11])
        scan = data[jpeg_part(data, 0xDA) : -2]
        assert "scans" in rejection(data[:-2] + scan * 150 + data[-2:]).detail

    def test_a_jpeg_of_countless_segments_is_refused(self) -> None:
        data = saved("JPEG")
        rejected = rejection(data[:2] + b"\xff\xfe\0\2" * 10_000 + data[2:])
        assert rejected.reason == "corrupt"
        assert "segments" in rejected.detail

    @pytest.mark.parametrize(("name", "head"), [(b"zTXt", b"note\0\0"), (b"iCCP", b"profile\0\0")])
    def test_compressed_notes_in_png_are_not_unpacked_without_limit(self, name: bytes, head: bytes) -> None:
        bomb = head + zlib.compress(bytes(40_000_000))
        assert rejection(with_png_chunk(saved("PNG", SMALL), name, bomb)).reason == "corrupt"


class TestWhatIsNoPicture:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"\0", "not_an_image"),
            (bytes(5000), "not_an_image"),
            (b"just words", "not_an_image"),
            (b"BM is how this sentence starts, no picture", "not_an_image"),
            ("图片不存在".encode(), "not_an_image"),
            (b"<!DOCTYPE html><html><body><svg></svg></body></html>", "not_an_image"),
            (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "not_an_image"),
            (b"PK\3\4" + bytes(100), "not_an_image"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100), "not_an_image"),
            (b"RIFF\x24\0\0\0WAVEfmt " + bytes(100), "not_an_image"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "unsupported_format"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "unsupported_format"),
            (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "unsupported_format"),
            (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "unsupported_format"),
            (b"8BPS\0\1" + bytes(100), "unsupported_format"),
            (b"%PDF-1.7\n", "unsupported_format"),
            (b'\xef\xbb\xbf <svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
            (b'<?xml version="1.0"?>\n<!-- drawn --><svg width="9"/>', "unsupported_format"),
            (saved("ICO", SMALL), "unsupported_format"),
            (saved("JPEG2000", SMALL), "unsupported_format"),
        ],
    )
    def test_each_has_its_reason(self, data: bytes, reason: str) -> None:
        assert rejection(data).reason == reason

    @pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "SGI"])
    def test_formats_off_the_list_are_not_opened_though_pillow_could(self, kind: str) -> None:
        data = saved(kind, SMALL)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == SMALL.size
        assert rejection(data).reason in {"not_an_image", "unsupported_format"}

    def test_jpeg_of_12_bits_is_unsupported(self) -> None:
        data = bytearray(saved("JPEG"))
        data[jpeg_part(bytes(data), 0xC0) + 4] = 12
        assert rejection(bytes(data)).reason == "unsupported_format"

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
    @pytest.mark.parametrize("size", [(1, 1), (7, 500), (500, 7)])
    def test_too_small_to_show_anything(self, kind: str, size: tuple[int, int]) -> None:
        assert rejection(saved(kind, Image.new("RGB", size))).reason == "too_small"

    def test_eight_pixels_are_enough(self) -> None:
        assert (
            decode(saved("PNG", Image.new("RGB", (8, 8), "red")), 256, MAX_PIXELS).rgb.tolist()
            == [[[255, 0, 0]] * 8] * 8
        )

    def test_a_png_with_a_wrong_checksum_is_corrupt(self) -> None:
        data = bytearray(saved("PNG", SMALL))
        data[len(data) // 2] ^= 1
        assert rejection(bytes(data)).reason == "corrupt"


def decoded_or_reason(data: bytes) -> Decoded | str:
    try:
        return decode(data, 32, 4_000_000)
    except Rejected as rejected:
        return rejected.reason


class TestDamage:
    """Whatever the bytes, there is a picture of the size it says, or a rejection with a reason of the list."""

    def check(self, data: bytes) -> None:
        result = decoded_or_reason(data)
        if isinstance(result, str):
            assert result in images.REASONS.keys() - {"too_large", "unreadable_uri"}
        else:
            assert result.rgb.shape[2] == 3
            assert min(result.width, result.height) >= images.MIN_SIDE
            assert result.width * result.height <= 4_000_000
            assert min(result.rgb.shape[:2]) >= min(32, result.width, result.height)

    @settings(max_examples=400, deadline=None)
    @given(
        name=st.sampled_from(sorted(EVERY_FORMAT)),
        flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
        reach=st.sampled_from([64, 400, 1_000_000]),
    )
    def test_changed_bytes(self, name: str, flips: list[tuple[float, int]], reach: int) -> None:
        data = bytearray(EVERY_FORMAT[name])
        for where, value in flips:
            data[int(where * min(reach, len(data)))] = value
        self.check(bytes(data))

    @settings(max_examples=300, deadline=None)
    @given(
        start=st.sampled_from([data[:size] for data in EVERY_FORMAT.values() for size in (4, 12, 32, 64)] + [b""]),
        rest=st.binary(max_size=400),
    )
    def test_random_bytes_behind_a_true_beginning(self, start: bytes, rest: bytes) -> None:
        self.check(start + rest)


class TestThreads:
    def test_many_at_once_give_what_one_after_another_gives(self) -> None:
        files = [*EVERY_FORMAT.values(), padded(EVERY_FORMAT["jpeg"]), EVERY_FORMAT["jpeg"][:900], b"words"] * 12
        alone = [decoded_or_reason(data) for data in files]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(decoded_or_reason, files))
        for one, other in zip(alone, together, strict=True):
            if isinstance(one, str):
                assert one == other
            else:
                assert isinstance(other, Decoded)
                assert np.array_equal(one.rgb, other.rgb)
                assert (one.width, one.height) == (other.width, other.height)


@cache
def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


class TestThumbnails:
    @pytest.mark.parametrize(
        ("shape", "longest", "size"),
        [
            ((300, 451), 320, (320, 213)),
            ((451, 300), 320, (213, 320)),
            ((300, 451), 100, (100, 67)),
            ((300, 320), 320, (320, 300)),
            ((90, 120), 320, (120, 90)),
            ((8, 4000), 320, (320, 1)),
        ],
    )
    def test_size(self, shape: tuple[int, int], longest: int, size: tuple[int, int]) -> None:
        rgb = np.ascontiguousarray(np.resize(PHOTO, (*shape, 3)))
        picture = opened(images.thumbnail(rgb, longest))
        assert picture.format == "JPEG"
        assert picture.mode == "RGB"
        assert picture.size == size

    def test_pixels(self) -> None:
        whole = np.asarray(PICTURE.resize((1280, 960), Image.Resampling.LANCZOS))
        averaged = whole.reshape(240, 4, 320, 4, 3).mean(axis=(1, 3))
        assert off(np.asarray(opened(images.thumbnail(whole))), averaged) < 5

    def test_takes_views_that_are_not_contiguous(self) -> None:
        flipped = PHOTO[:, ::-1]
        assert off(np.asarray(opened(images.thumbnail(flipped, 1000))), flipped) < 6

    def test_can_be_decoded_again(self) -> None:
        assert in_full(images.thumbnail(PHOTO)).shape == (213, 320, 3)


class TestResize:
    def test_shrinking_averages_areas(self) -> None:
        whole = PHOTO[:300, :450]
        found = images.resize(whole, 150, 100)
        assert np.abs(found - whole.reshape(100, 3, 150, 3, 3).mean(axis=(1, 3))).max() <= 0.5 + 1e-9

    def test_growing_keeps_the_picture(self) -> None:
        grown = images.resize(PHOTO, 3 * WIDTH, 3 * HEIGHT)
        assert off(grown[1::3, 1::3], PHOTO) < 1


class TestReasons:
    def test_each_has_words_in_chinese_and_the_transient_ones_are_among_them(self) -> None:
        assert all(any("一" <= letter <= "鿿" for letter in text) for text in images.REASONS.values())
        assert frozenset({"unreadable_uri"}) == images.TRANSIENT_REASONS
        assert images.REASONS.keys() >= images.TRANSIENT_REASONS

    def test_a_reason_off_the_list_is_a_mistake_of_ours(self) -> None:
        with pytest.raises(ValueError, match="'ugly' is no rejection reason"):
            Rejected("ugly")

    @pytest.mark.parametrize("name", EVERY_FORMAT)
    def test_the_same_bytes_are_rejected_in_the_same_words(self, name: str) -> None:
        """Quarantine rows are compared when a night is run again."""
        for size in (50, 120, len(EVERY_FORMAT[name]) // 2):
            data = EVERY_FORMAT[name][:size]
            first, second = rejection(data), rejection(bytes(bytearray(data)))
            assert str(first) == str(second)
            assert " at 0x" not in first.detail

    def test_a_rejection_survives_the_way_between_processes(self) -> None:
        again = pickle.loads(pickle.dumps(Rejected("corrupt", "PNG: bad checksum")))
        assert (again.reason, again.detail) == ("corrupt", "PNG: bad checksum")
        assert str(again) == "corrupt: PNG: bad checksum"


def test_content_sha256() -> None:
    # FIPS 180-2, appendix B.1
    assert images.content_sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert images.content_sha256(PHOTO.tobytes()) == hashlib.sha256(PHOTO.tobytes()).hexdigest()
