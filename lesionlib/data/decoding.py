"""Reads picture files of any quality: known defects are repaired and noted, others InputErrors.

JPEG has no checksum. Damage is detected if libjpeg warns, or if brightness jumps along a row of
blocks; other damage, mostly a single block or a slight tint, remains undetected.
"""

import io
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from lesionlib.engine.errors import InputError

ENDINGS = {  # formats, recognised by content, and their usual endings
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "PNG": (".png",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
TYPES = {ending for endings in ENDINGS.values() for ending in endings}
LARGEST = 89_000_000  # pixels
FLAT = 4  # grey levels: standard deviation of a row below which it is uniform


@dataclass
class Picture:
    """A picture file: bytes, Pillow's view of it (decoded unless JPEG), orientation, repairs."""

    path: str
    what: str  # image or mask
    data: bytes
    view: Image.Image
    notes: list
    turn: int = 1  # EXIF orientation

    def size(self, upright: bool) -> tuple[int, int]:
        """Width and height, as stored or upright."""
        return self.view.size[::-1] if upright and self.turn > 4 else self.view.size

    def note(self, text: str):
        """Note a repair."""
        self.notes.append(f"{self.what}: {text}")

    def error(self, problem: str, remedy: str = "replace the file or remove the image"):
        """An InputError that names this file."""
        return InputError(self.path, f"the {self.what} {problem}", remedy)


@contextmanager
def _decoder_errors(path, what):
    """Turn any error that a decoder raises on damaged data into an InputError naming the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        problem = "is corrupt or truncated, or no image"
        if isinstance(error, (PermissionError, Image.DecompressionBombError)):
            problem = "cannot be read"
        remedy = "replace the file; if it opens elsewhere, save it anew"
        raise InputError(path, f"the {what} {problem} ({error})", remedy) from error


def read(path, what: str) -> Picture:
    """Read a file, its header and, unless JPEG, its pixels; raises InputError."""
    with _decoder_errors(path, what):
        if not Path(path).is_file():
            raise InputError(path, f"the {what} does not exist or is no file", "add the file")
        data = Path(path).read_bytes()
        if not data:
            raise InputError(path, f"the {what} is an empty file", "replace the file")
        try:
            picture = Image.open(io.BytesIO(data), formats=list(ENDINGS))
        except UnidentifiedImageError:
            raise ValueError(f"its beginning is none of {', '.join(ENDINGS)}") from None
        file = Picture(str(path), what, data, picture, [])
        format_name = picture.format.replace("MPO", "JPEG")
        if picture.width * picture.height > LARGEST:
            raise file.error(f"is too large ({picture.width}x{picture.height})", "make it smaller")
        if Path(path).suffix.lower() not in ENDINGS[format_name]:
            file.note(f"read as {format_name}, whatever its name says")
        if getattr(picture, "n_frames", 1) > 1:
            file.note(f"the first of {picture.n_frames} pictures is used")
        if (format_name == "PNG" and data[24] == 16) or (
            format_name == "TIFF" and 16 in picture.tag_v2.get(258, ())
        ):
            file.note("16 bits per channel")
        if format_name == "PNG":
            _check_png(data)
        file.turn = _orientation(picture)
        if format_name != "JPEG":
            picture.load()
        if format_name == "TIFF" and file.turn > 1:  # Pillow has applied it
            file.note(f"EXIF orientation {file.turn} applied")
            file.turn = 1
    return file


def _orientation(picture) -> int:
    """The EXIF orientation, 1 (upright) if there is none or it cannot be read."""
    try:
        turn = picture.getexif().get(0x0112, 1)
    except Exception:  # corrupt EXIF data do not affect the pixels
        return 1
    return turn if turn in range(1, 9) else 1


def turned(array: np.ndarray, turn: int) -> np.ndarray:
    """An array (H, W, …) turned upright according to its EXIF orientation."""
    array = array.swapaxes(0, 1) if turn > 4 else array
    array = array[::-1] if turn in (3, 4, 7, 8) else array
    return array[:, ::-1] if turn in (2, 3, 6, 7) else array


def _check_png(data: bytes):
    """Raise ValueError if a chunk of a PNG fails its checksum or the end is missing."""
    start, view, chunk_type = 8, memoryview(data), b""
    while chunk_type != b"IEND":
        length, chunk_type = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if zlib.crc32(view[start + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"wrong checksum at byte {start}")
        start = end + 4


def _jpeg(file: Picture, half=False) -> np.ndarray:
    """Pixels (H, W, 1 or 3) of a JPEG, at half size if `half`; libjpeg warnings are errors."""
    width, height = file.view.size
    least = {"min_width": -(-width // 2), "min_height": -(-height // 2)} if half else {}
    with _decoder_errors(file.path, file.what):
        grey = file.view.mode == "L"
        pixels = simplejpeg.decode_jpeg(file.data, "GRAY" if grey else "RGB", **least)
    row = _seam(pixels, 4 if half else 8)
    if row:
        raise file.error(
            f"jumps along row {row * (1 + half)}: damaged JPEG data",
            "look at it and replace the file; if it is sound, save it as PNG",
        )
    return pixels


def _seam(pixels: np.ndarray, block: int) -> int:
    """The row at which a damaged JPEG (H, W, C) jumps, or 0.

    A flipped bit that keeps the decoder in step shifts a channel of all later blocks. A jump is
    reported if, over 60 % of the left or right half, the rows on the two sides of a block edge
    differ in the same direction by more than 6 levels and by more than twice the differences within
    the blocks. The edge of a uniform bar (standard deviation below FLAT) or of a dark frame (below
    64) is accepted.
    """
    sample = pixels[:, :: max(1, pixels.shape[1] // 128)]  # a sample of the columns suffices
    rows = [
        sample[block + i : len(sample) + i - 1 : block].astype(np.int16) for i in (-2, -1, 0, 1)
    ]
    before, above, below, after = rows
    jump = below - above
    texture = np.maximum(np.abs(above - before), np.abs(after - below))
    jump[np.abs(jump) <= np.maximum(6, 2 * texture)] = 0
    signs = np.sign(jump)
    middle = signs.shape[1] // 2
    for part in (slice(0, middle), slice(middle, None)):
        share = np.abs(signs[:, part].mean(1)).max(-1)
        for i in np.flatnonzero(share > 0.6):
            sides = above[i, part], below[i, part]
            if all(side.std(0).max() >= FLAT and side.mean(0).max() >= 64 for side in sides):
                return block * (int(i) + 1)
    return 0


def rgb(file: Picture, half: bool) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an image of any mode; a JPEG at half size if `half`."""
    picture, mode = file.view, file.view.mode
    if mode != "RGB":
        file.note(f"mode {mode} converted to RGB")
    if mode in ("I", "F"):
        raise file.error("has 32 bits per pixel", "save it with 8 bits per channel")
    if picture.format in ("JPEG", "MPO"):
        pixels = _jpeg(file, half)
    elif mode.startswith("I;16"):
        pixels = np.round(np.asarray(picture)[..., None] / 257).astype(np.uint8)
    else:
        with _decoder_errors(file.path, file.what):
            pixels = np.asarray(picture.convert("RGBA" if "P" in mode else "RGB").convert("RGB"))
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2)


def grey(file: Picture) -> np.ndarray:
    """A mask's values (H, W): grey, else the brightest channel, or alpha if only that varies."""
    picture, mode = file.view, file.view.mode
    if mode not in ("1", "L"):
        file.note(f"mode {mode} converted to grey")
    if picture.format in ("JPEG", "MPO"):
        return _jpeg(file).max(2)
    if mode in ("1", "L", "I", "F") or mode.startswith("I;16"):
        values = np.asarray(picture, np.uint8 if mode == "1" else None)
        return np.nan_to_num(values) if mode == "F" else values
    with _decoder_errors(file.path, file.what):
        pixels = np.asarray(picture.convert("RGBA"))
    colour, alpha = pixels[..., :3].max(2), pixels[..., 3]
    if colour.min() == colour.max() and alpha.min() < alpha.max():
        return alpha
    return np.minimum(colour, alpha) if alpha.any() else colour


def colours(file: Picture) -> np.ndarray | None:
    """The colours (H, W) of a mask as numbers 0xRRGGBB; None if it is grey or a JPEG."""
    if file.view.mode in ("1", "L", "I", "F", "LA") or file.view.mode.startswith("I;16"):
        return None
    if file.view.format in ("JPEG", "MPO"):
        return None
    with _decoder_errors(file.path, file.what):
        pixels = np.asarray(
            file.view.convert("RGBA" if "P" in file.view.mode else "RGB").convert("RGB")
        )
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    if (red == green).all() and (green == blue).all():
        return None
    return red << 16 | green << 8 | blue
