"""Image-mask pairs of any quality: what has a rule is mended, the rest is set aside and named."""

import io
import os
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib.data import decoding
from lesionlib.data.decoding import Picture
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import atomic_write, read_json, write_csv, write_json
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import code_digest, digest

FITS = ("squash", "letterbox", "crop")
FEWEST = 20  # pairs that the study needs
SMALLEST, LONGEST = 16, 10  # side in px, long side over short side
PLAIN = 1  # standard deviation of each channel below which an image is a single colour
NOTICEABLE = 0.001  # share of mask pixels between 0 and the maximum that is worth a remark
MIXED = 0.25  # share of mask pixels in the middle of the range above which it is no mask
SPECKS = 0.05  # share of the lesion below which all regions but the largest are removed
NAMES = ("images.npy", "masks.npy", "pixels.csv")


def _lesion(file: Picture) -> np.ndarray:
    """A mask (H, W) of 0 and 1: what exceeds 128 of 255 of the maximum, without specks.

    128 itself is background, as in ISIC's official scoring.
    """
    values = decoding.grey(file)
    top = values.max()
    if top <= 0:
        raise file.error("is empty: no lesion is left")
    odd = 1 - (np.count_nonzero(values == 0) + np.count_nonzero(values == top)) / values.size
    if odd > NOTICEABLE:
        mixed = np.mean((values > top // 10) & (values < top - top // 10))
        if mixed > MIXED:
            raise file.error(f"is not a mask: {mixed:.0%} of it is neither dark nor bright")
        file.note(f"thresholded at half of its maximum ({odd:.1%} of it lies between)")
    half = top * 128 / 255 if values.dtype.kind == "f" else int(top) * 128 // 255
    lesion = (values > half).view(np.uint8)
    if lesion.all():
        raise file.error("is lesion everywhere")
    x, y, width, height = cv2.boundingRect(lesion)
    box = lesion[y : y + height, x : x + width]
    n, labels = cv2.connectedComponents(box, connectivity=8)
    if n > 2:
        areas = np.bincount(labels.ravel())[1:]
        rest = 1 - areas.max() / areas.sum()
        if rest < SPECKS:
            box[:] = labels == 1 + areas.argmax()
        file.note(
            f"specks removed ({rest:.2%} of it)" if rest < SPECKS else f"{n - 1} regions kept"
        )
    return lesion


def _agree(image: Picture, mask: Picture) -> bool:
    """Whether EXIF orientation is applied: yes, unless the sizes only agree without it."""
    upright = image.size(True) == mask.size(True)
    if not upright and image.size(False) != mask.size(False):
        (w, h), (width, height) = mask.size(True), image.size(True)
        raise mask.error(
            f"is {w}x{h} but its image is {width}x{height} pixels",
            "export the mask at the size of the image",
        )
    for file in (image, mask):
        if file.turn > 1:
            how = "applied" if upright else "not applied: the sizes agree only without it"
            file.note(f"EXIF orientation {file.turn} {how}")
    return upright


def _averaged(array: np.ndarray, inner) -> np.ndarray:
    """An array (H, W, …) scaled to `inner` (width, height), areas averaged."""
    return cv2.resize(np.ascontiguousarray(array), inner, interpolation=cv2.INTER_AREA)


def _square(small: np.ndarray, size: int, colour=0) -> np.ndarray:
    """Cut the centre of (h, w, …), or pad it with a colour, to (size, size, …)."""
    y, x = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    if y < 0 or x < 0:
        return small[-y : size - y, -x : size - x]
    ends = y, size - small.shape[0] - y, x, size - small.shape[1] - x
    return cv2.copyMakeBorder(small, *ends, cv2.BORDER_CONSTANT, value=colour)


def _inner(sides, size: int, fit: str) -> list[int]:
    """Width and height to which a picture of `sides` is scaled for a square of `size`."""
    whole = {"squash": sides, "letterbox": [max(sides)] * 2, "crop": [min(sides)] * 2}[fit]
    return [max(1, round(size * side / by)) for side, by in zip(sides, whole, strict=True)]


def _framed(small: np.ndarray, size: int) -> np.ndarray:
    """`_square` of an image, padded with the median colour of its border."""
    edge = np.concatenate([*small[[0, -1]], *small[:, [0, -1]].swapaxes(0, 1)])
    return _square(small, size, np.median(edge, axis=0).round().tolist())


def read_image(path, size: int, fit: str = "squash") -> np.ndarray:
    """An image without a mask as `read_pair` reads it: (size, size, 3) uint8 RGB; InputError."""
    image = decoding.read(path, "image")
    pixels = decoding.turned(decoding.rgb(image, False), image.turn)
    return _framed(_averaged(pixels, _inner(image.size(True), size, fit)), size)


def read_pair(image_path, mask_path, size: int, fit: str = "squash"):
    """One image (size, size, 3) uint8 RGB, its mask (size, size) of 0 and 1, and the repairs.

    Areas are averaged; a mask pixel is lesion where the average exceeds one half. `fit`: squash
    to the square, letterbox (pad with the median of the border) or crop (the central square).
    A JPEG of four times the size is decoded at half its size. Raises InputError that names the
    file, for whatever makes no pair.
    """
    if not mask_path or pd.isna(mask_path):
        remedy = "add STEM.png or STEM_segmentation.png to the masks, or remove the image"
        raise InputError(image_path, "no mask of the same stem", remedy)
    image, mask = decoding.read(image_path, "image"), decoding.read(mask_path, "mask")
    upright = _agree(image, mask)
    sides = image.size(upright)
    if min(sides) < SMALLEST or max(sides) > LONGEST * min(sides):
        raise image.error(f"of {sides[0]}x{sides[1]} pixels is too small or a strip")
    inner = _inner(sides, size, fit)
    # Half of an odd side shifts its end by i / s target pixels: a sixteenth does no harm.
    fits = [s >= 4 * i and (s % 2 == 0 or s >= 16 * i) for s, i in zip(sides, inner, strict=True)]
    lesion, pixels = _lesion(mask), decoding.rgb(image, all(fits))
    if upright:
        lesion, pixels = decoding.turned(lesion, mask.turn), decoding.turned(pixels, image.turn)
    small = _averaged(pixels, inner)
    if cv2.meanStdDev(small)[1].max() < PLAIN:
        raise image.error("is of a single colour")
    small = _framed(small, size)
    # 0 and 2 ** 15: an average of one half is exact, and is no lesion.
    scaled = (_averaged(np.left_shift(lesion, 15, dtype=np.uint16), inner) > 2**14).astype(np.uint8)
    shape = _square(scaled, size)
    if not shape.any() or shape.all():
        left = "background" if shape.any() else "lesion"
        raise mask.error(f"has no {left} left at {size} px", "remove the image or raise image_size")
    lost = 1 - shape.sum() / scaled.sum()
    if lost > SPECKS:
        mask.note(f"{lost:.0%} of the lesion cut off")
    return small, shape, image.notes + mask.notes


def whole_mask(image_path, mask_path, fit: str = "squash") -> np.ndarray:
    """The mask of a pair at its own resolution: uint8 (H, W) of 0 and 1, upright.

    It shows what the square array shows: `fit` letterbox pads it to a square, crop cuts the
    central square out. Raises InputError as `read_pair` does.
    """
    image, mask = decoding.read(image_path, "image"), decoding.read(mask_path, "mask")
    lesion = decoding.turned(_lesion(mask), mask.turn if _agree(image, mask) else 1)
    side = {"squash": 0, "letterbox": max(lesion.shape), "crop": min(lesion.shape)}[fit]
    return np.ascontiguousarray(_square(lesion, side) if side else lesion)


def _in_order(work, items, workers: int):
    """work(item) of every item in order, on threads; few results wait, so memory is bounded."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _state(path):
    """Size and time of a file, None if there is none."""
    try:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except (OSError, ValueError, TypeError):
        return None


def _checksums(folder: Path) -> list[int]:
    """CRC-32 of the arrays and the statuses: any damage shows, at some GB per second."""
    sums, block = [], memoryview(bytearray(2**22))
    for name in NAMES:
        sums.append(0)
        with open(folder / name, "rb") as file:
            while n := file.readinto(block):
                sums[-1] = zlib.crc32(block[:n], sums[-1])
    return sums


def _kept(folder: Path, key: str):
    """The statuses (N, …) of an earlier run whose record and arrays are sound, else None."""
    try:
        record = read_json(folder / "pixels.json", {})
        if record["key"] == key and record["files"] == _checksums(folder):
            return pd.read_csv(folder / "pixels.csv", dtype=str, keep_default_na=False)
    except (InputError, OSError, ValueError, KeyError, TypeError):
        pass  # none, or damaged: read anew
    return None


def _header(shape) -> bytes:
    """The .npy header of a uint8 array; its length does not depend on the first axis."""
    file = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


@contextmanager
def _growing(path, *shape):
    """Yield a function that appends one array of `shape` to `path`, a .npy when all is done."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_header((0, *shape)))
        start = file.tell()
        yield lambda array: file.write(np.ascontiguousarray(array).data)
        n, rest = divmod(file.tell() - start, int(np.prod(shape)))
        header = _header((n, *shape))
        assert len(header) == start and not rest
        file.seek(0)
        file.write(header)


def _require_enough(table, problems, fewest):
    """Raise InputError if fewer pairs are usable; it tells the first problem."""
    usable = len(table) - len(problems)
    if usable < fewest:
        first = f" {problems[0]}" if problems else ""
        raise InputError(
            Path(table["image"].iloc[0]).parent if len(table) else "the catalogue",
            f"only {usable} usable image-mask pairs; {fewest} are needed.{first}",
            "add images, or mend those that were quarantined",
        )


def curate(
    table,
    size: int,
    folder,
    fit="squash",
    bad_inputs="skip",
    workers=None,
    state="",
    fewest: int = FEWEST,
):
    """Read the pairs of a catalogue into folder/images.npy (N, size, size, 3) and masks.npy.

    Returns the table (columns id, image, mask, …) with `status` used or quarantined, `reason`
    (file, problem, remedy) and `repairs`; the arrays (uint8, memory-mappable) hold the used rows
    in order. Later rows of an id are quarantined. bad_inputs='stop' raises the first problem.
    Pairs are decoded on `workers` threads (default: all cores) and written as they come. Nothing
    is read again while files (by size and time), settings and code are the same and the arrays
    are sound (`pixels.json`). Raises InputError if fewer than `fewest` pairs are usable.
    """
    if fit not in FITS:
        raise InputError("settings", f"unknown fit '{fit}'", f"use one of {', '.join(FITS)}")
    folder = Path(folder)
    again = table["id"].duplicated()
    rows = list(zip(again, table["id"], table["image"], table["mask"], strict=True))
    files = [(str(name), str(i), _state(i), str(m), _state(m)) for _, name, i, m in rows]
    decoders = [version(name) for name in ("simplejpeg", "pillow", "opencv-python")]
    key = digest(files, size, fit, state, decoders, code_digest("curation"))
    kept = _kept(folder, key)
    if kept is not None and not (bad_inputs == "stop" and kept["reason"].any()):
        print(f"{folder}: nothing has changed, {len(kept)} pairs are not read again")
        return table.assign(**{name: kept[name].to_numpy() for name in kept.columns[1:]})

    def work(row):
        again, name, *paths = row
        try:
            if again:
                raise InputError(paths[0], f"a second row of the id {name}", "rename the image")
            return read_pair(*paths, size, fit)
        except InputError as error:
            return error

    (folder / "pixels.json").unlink(missing_ok=True)
    results, threads = [], cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pairs are shared out, not the parts of a picture
    try:
        with (
            _growing(folder / NAMES[0], size, size, 3) as add_image,
            _growing(folder / NAMES[1], size, size) as add_mask,
            closing(_in_order(work, rows, workers or os.cpu_count() or 1)) as found,
        ):
            for pair in progress(found, desc="read", total=len(rows)):
                if not isinstance(pair, InputError):
                    add_image(pair[0])
                    add_mask(pair[1])
                    pair = "; ".join(pair[2])
                elif bad_inputs == "stop":
                    raise pair
                results.append(pair)
            problems = [result for result in results if isinstance(result, InputError)]
            _require_enough(table, problems, fewest)
    finally:
        cv2.setNumThreads(threads)
    bad = [isinstance(result, InputError) for result in results]
    table = table.assign(
        status=["quarantined" if b else "used" for b in bad],
        reason=[str(r) if b else "" for b, r in zip(bad, results, strict=True)],
        repairs=["" if b else r for b, r in zip(bad, results, strict=True)],
    )
    write_csv(folder / NAMES[2], table[["id", "status", "reason", "repairs"]])
    write_json(folder / "pixels.json", {"key": key, "files": _checksums(folder)})
    return table
