"""Reads image-mask pairs of any quality; repairs known defects and quarantines other pairs."""

import io
import os
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib.data import decoding, plausibility
from lesionlib.data.decoding import Picture
from lesionlib.data.plausibility import BRIGHT, MaskRule
from lesionlib.engine.artefacts import Artefact
from lesionlib.engine.errors import InputError, say
from lesionlib.engine.files import atomic_write, write_csv
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, recorded

FITS = ("squash", "letterbox", "crop")
FEWEST = 20  # usable pairs that the study needs
SMALLEST, LONGEST = 16, 10  # shortest side in px; largest ratio of long to short side
PLAIN = 1  # standard deviation per channel below which an image is of a single colour
NOTICEABLE = 0.001  # share of mask pixels between 0 and the maximum above which it is noted
MIXED = 0.25  # largest share of mask pixels in the middle 80 % of the range
SPECKS = 0.05  # share of the lesion below which all regions but the largest are removed
NAMES = ("images.npy", "masks.npy", "pixels.csv")


def _marked(file: Picture, rule: MaskRule) -> tuple[np.ndarray, int]:
    """Where a mask (H, W) is marked, as 0 and 1, and its largest value.

    Marked are pixels above 128/255 of the maximum, or of the value of the rule. 128 itself is
    background, as in ISIC's official scoring.
    """
    values = decoding.grey(file)
    top = values.max()
    if rule.value >= 0:
        return (values == rule.value).view(np.uint8), int(top)
    if top <= 0:
        raise file.error("is empty: no lesion is left")
    odd = 1 - (np.count_nonzero(values == 0) + np.count_nonzero(values == top)) / values.size
    if odd > NOTICEABLE or file.view.mode not in ("1", "L"):
        plausibility.require_two_values(file, values)
    if odd > NOTICEABLE:
        mixed = np.mean((values > top // 10) & (values < top - top // 10))
        if mixed > MIXED:
            raise file.error(f"is not a mask: {mixed:.0%} of it is neither dark nor bright")
        file.note(f"thresholded at half of its maximum ({odd:.1%} of it lies between)")
    half = top * 128 / 255 if values.dtype.kind == "f" else int(top) * 128 // 255
    return (values > half).view(np.uint8), int(top)


def _lesion(file: Picture, rule: MaskRule = BRIGHT) -> tuple[np.ndarray, int]:
    """A mask (H, W) of 0 and 1 without specks, and its largest value."""
    lesion, top = _marked(file, rule)
    if rule.invert:
        lesion = 1 - lesion
    if not lesion.any():
        raise file.error("is empty: no lesion is left")
    if lesion.all():
        raise file.error("is lesion everywhere")
    if (share := plausibility.encloses(lesion)) < plausibility.OUTLINE and plausibility.border(
        lesion
    ) < 0.5:
        problem = f"is an outline, no area: the lesion is {share:.0%} of what it encloses"
        raise file.error(problem, "fill the outline")
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
    return lesion, top


def _use_orientation(image: Picture, mask: Picture) -> bool:
    """Whether to apply the EXIF orientation: True unless the sizes agree only without it."""
    upright = image.size(True) == mask.size(True)
    if not upright and image.size(False) != mask.size(False):
        (w, h), (width, height) = mask.size(True), image.size(True)
        raise mask.error(
            f"is {w}x{h} but its image is {width}x{height} pixels",
            "export the mask at the size of the image",
        )
    for file in (image, mask):
        if file.turn > 1:
            outcome = "applied" if upright else "not applied: the sizes agree only without it"
            file.note(f"EXIF orientation {file.turn} {outcome}")
    return upright


def _averaged(array: np.ndarray, inner) -> np.ndarray:
    """An array (H, W, …) resized to `inner` (width, height) by area averaging."""
    return cv2.resize(np.ascontiguousarray(array), inner, interpolation=cv2.INTER_AREA)


def _square(small: np.ndarray, size: int, colour=0) -> np.ndarray:
    """Crop (h, w, …) centrally, or pad it with a colour, to (size, size, …)."""
    y, x = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    if y < 0 or x < 0:
        return small[-y : size - y, -x : size - x]
    ends = y, size - small.shape[0] - y, x, size - small.shape[1] - x
    return cv2.copyMakeBorder(small, *ends, cv2.BORDER_CONSTANT, value=colour)


def _inner(sides, size: int, fit: str) -> list[int]:
    """Width and height to which a picture of `sides` (width, height) is resized for the square."""
    frame = {"squash": sides, "letterbox": [max(sides)] * 2, "crop": [min(sides)] * 2}[fit]
    return [max(1, round(size * side / full)) for side, full in zip(sides, frame, strict=True)]


def _framed(small: np.ndarray, size: int) -> np.ndarray:
    """`_square` of an image, padded with the median colour of its border."""
    edge = np.concatenate([*small[[0, -1]], *small[:, [0, -1]].swapaxes(0, 1)])
    return _square(small, size, np.median(edge, axis=0).round().tolist())


def read_image(path, size: int, fit: str = "squash") -> np.ndarray:
    """An image without a mask, (size, size, 3) uint8 RGB, read like those of `read_pair`."""
    image = decoding.read(path, "image")
    pixels = decoding.turned(decoding.rgb(image, False), image.turn)
    return _framed(_averaged(pixels, _inner(image.size(True), size, fit)), size)


def read_pair(image_path, mask_path, size: int, fit: str = "squash"):
    """One image (size, size, 3) uint8 RGB, its mask (size, size) of 0 and 1, and the repairs.

    Both are resized by area averaging; a mask pixel is lesion if its average exceeds one half.
    `fit`: squash to the square, letterbox (pad with the median of the border) or crop (the central
    square). A JPEG at least four times as large is decoded at half its size. Raises InputError,
    which names the file, for anything that is not a usable pair.
    """
    return read_facts(image_path, mask_path, size, fit)[:3]


def read_facts(image_path, mask_path, size: int, fit: str = "squash", rule=BRIGHT):
    """As `read_pair`, and facts about the mask: its largest value, the lesion's share of its edge.

    `rule` says which pixels of the mask are lesion.
    """
    if not mask_path or pd.isna(mask_path):
        remedy = "add STEM.png or STEM_segmentation.png to the masks, or remove the image"
        raise InputError(image_path, "no mask of the same stem", remedy)
    image, mask = decoding.read(image_path, "image"), decoding.read(mask_path, "mask")
    if image.data == mask.data:
        raise mask.error("is the image itself", "give the folder of the masks (--masks DIR)")
    upright = _use_orientation(image, mask)
    sides = image.size(upright)
    if min(sides) < SMALLEST or max(sides) > LONGEST * min(sides):
        raise image.error(f"of {sides[0]}x{sides[1]} pixels is too small or a strip")
    inner = _inner(sides, size, fit)
    # Halving an odd side shifts its end by i / s target pixels; up to 1/16 is harmless.
    halve = [s >= 4 * i and (s % 2 == 0 or s >= 16 * i) for s, i in zip(sides, inner, strict=True)]
    (lesion, top), pixels = _lesion(mask, rule), decoding.rgb(image, all(halve))
    facts = {"top": top, "border": round(plausibility.border(lesion), 4)}
    if upright:
        lesion, pixels = decoding.turned(lesion, mask.turn), decoding.turned(pixels, image.turn)
    small = _averaged(pixels, inner)
    if cv2.meanStdDev(small)[1].max() < PLAIN:
        raise image.error("is of a single colour")
    small = _framed(small, size)
    # Values 0 and 2 ** 15: an average of exactly one half is represented, and is background.
    scaled = (_averaged(np.left_shift(lesion, 15, dtype=np.uint16), inner) > 2**14).astype(np.uint8)
    square = _square(scaled, size)
    if not square.any() or square.all():
        left = "background" if square.any() else "lesion"
        raise mask.error(f"has no {left} left at {size} px", "remove the image or raise image_size")
    lost = 1 - square.sum() / scaled.sum()
    if lost > SPECKS:
        mask.note(f"{lost:.0%} of the lesion cut off")
    return small, square, image.notes + mask.notes, facts


def whole_mask(image_path, mask_path, fit: str = "squash", rule=BRIGHT) -> np.ndarray:
    """The mask of a pair at its own resolution: uint8 (H, W) of 0 and 1, upright.

    It covers the same area as the square array: letterbox pads it to a square, crop takes the
    central square. Raises InputError as `read_pair` does.
    """
    image, mask = decoding.read(image_path, "image"), decoding.read(mask_path, "mask")
    lesion = decoding.turned(
        _lesion(mask, rule)[0], mask.turn if _use_orientation(image, mask) else 1
    )
    side = {"squash": 0, "letterbox": max(lesion.shape), "crop": min(lesion.shape)}[fit]
    return np.ascontiguousarray(_square(lesion, side) if side else lesion)


def in_order(work, items, workers: int):
    """Yield work(item) of all items in order, computed on threads with bounded memory."""
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


def _file_state(path):
    """Size and modification time of a file, or None if it does not exist."""
    try:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except (OSError, ValueError, TypeError):
        return None


def _checksums(folder: Path) -> list[int]:
    """CRC-32 of the arrays and the statuses: fast detection of damage."""
    sums, block = [], memoryview(bytearray(2**22))
    for name in NAMES:
        sums.append(0)
        with open(folder / name, "rb") as file:
            while n := file.readinto(block):
                sums[-1] = zlib.crc32(block[:n], sums[-1])
    return sums


def _current_statuses(artefact: Artefact):
    """The statuses (N, …) of an earlier call if current and the arrays intact, else None."""
    path = artefact.path
    try:
        if artefact.is_current() and recorded(path)["checksums"] == _checksums(path.parent):
            return pd.read_csv(path, dtype={"id": str}, keep_default_na=False)
    except OSError:
        pass  # an array is missing: read again
    return None


def _header(shape) -> bytes:
    """The .npy header of a uint8 array; its length does not depend on the length of axis 0."""
    file = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


@contextmanager
def _npy_appender(path, *shape):
    """Yield a function that appends an array of `shape` to the .npy file `path`."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_header((0, *shape)))
        start = file.tell()
        yield lambda array: file.write(np.ascontiguousarray(array).data)
        n, rest = divmod(file.tell() - start, int(np.prod(shape)))
        header = _header((n, *shape))
        assert len(header) == start and not rest
        file.seek(0)
        file.write(header)


def quarantine_notes(reasons) -> list[str]:
    """A WARNING for each kind of problem among the reasons of quarantine, with an example."""
    reasons = pd.Series(list(reasons), dtype=str)
    problems = reasons.str.extract(r": (.*)\. Remedy")[0].str.replace(r"\d+", "N", regex=True)
    kinds = reasons.groupby(problems).agg(["size", "first"])
    return [
        f"WARNING: {count} quarantined ({problem}), for example {example}"
        for problem, (count, example) in kinds.iterrows()
    ]


def _require_enough(rows, results, fewest: int):
    """Raise InputError, with the first problem, if fewer than `fewest` pairs are usable."""
    problems = [result for result in results if isinstance(result, InputError)]
    usable = len(rows) - len(problems)
    if usable < fewest:
        first = f" {problems[0]}" if problems else ""
        raise InputError(
            Path(rows[0][2]).parent if rows else "the catalogue",
            f"only {usable} usable image-mask pairs; {fewest} are needed.{first}",
            "add images, or repair those that were quarantined",
        )


def read_or_error(row, size: int, fit: str, rule: MaskRule):
    """`read_facts` of a row (whether the id is repeated, id, image, mask), or its InputError."""
    repeated, name, *paths = row
    try:
        if repeated:
            raise InputError(paths[0], f"a second row of the id {name}", "rename the image")
        return read_facts(*paths, size, fit, rule)
    except InputError as error:
        return error


def _read_all(rows, read, folder: Path, size: int, bad_inputs: str, workers, fewest: int) -> list:
    """Write the arrays that `read` returns for the rows; (repairs, facts) or InputError of each.

    No array is written if `_require_enough`, or bad_inputs='stop', raises an InputError.
    """
    results, threads = [], cv2.getNumThreads()
    cv2.setNumThreads(1)  # parallel over pairs, not within a picture
    try:
        with (
            _npy_appender(folder / NAMES[0], size, size, 3) as add_image,
            _npy_appender(folder / NAMES[1], size, size) as add_mask,
            closing(in_order(read, rows, workers or os.cpu_count() or 1)) as found,
        ):
            for pair in progress(found, desc="read", total=len(rows)):
                if not isinstance(pair, InputError):
                    add_image(pair[0])
                    add_mask(pair[1])
                    pair = "; ".join(pair[2]), pair[3]
                elif bad_inputs == "stop":
                    raise pair
                results.append(pair)
                if isinstance(pair, plausibility.LabelMapError):
                    plausibility.require_masks(results, len(rows))
            _require_enough(rows, results, fewest)
    finally:
        cv2.setNumThreads(threads)
    return results


def _status_table(ids, results) -> pd.DataFrame:
    """Columns id, status, reason, repairs, top, border of the results of `_read_all`."""
    rows = [
        ("quarantined", str(r), "", -1, 0.0)
        if isinstance(r, InputError)
        else ("used", "", r[0], r[1]["top"], r[1]["border"])
        for r in results
    ]
    found = pd.DataFrame(rows, columns=["status", "reason", "repairs", "top", "border"])
    found.insert(0, "id", list(ids))
    return found


def curate(
    table,
    size: int,
    folder,
    fit="squash",
    bad_inputs="skip",
    workers=None,
    rule=BRIGHT,
    fewest: int = FEWEST,
):
    """Read the pairs of a catalogue into folder/images.npy (N, size, size, 3) and masks.npy.

    Returns the table (columns id, image, mask, …) with `status` used or quarantined, `reason`
    (file, problem, remedy) and `repairs`; the arrays (uint8, memory-mappable) hold the used rows
    in order. Repeated ids are quarantined. bad_inputs='stop' raises the first problem instead.
    Pairs are decoded on `workers` threads (default: all cores) and written at once. Nothing is
    read again while files (by size and time), settings and code are unchanged and the arrays are
    intact (`engine.artefacts`). Prints WARNINGS on the masks (`plausibility.judge`). Raises
    InputError if fewer than `fewest` pairs are usable, or if masks are label maps.
    """
    if fit not in FITS:
        raise InputError("settings", f"unknown fit '{fit}'", f"use one of {', '.join(FITS)}")
    folder, repeated = Path(folder), table["id"].duplicated()
    rows = list(zip(repeated, table["id"], table["image"], table["mask"], strict=True))
    files = [(str(name), str(i), _file_state(i), str(m), _file_state(m)) for _, name, i, m in rows]
    decoders = [version(name) for name in ("simplejpeg", "pillow", "opencv-python")]
    settings = {"size": size, "fit": fit, "rule": rule, "decoders": decoders}
    code, inputs = ("lesionlib.data.curation:read_facts",), {"files": digest(files)}
    artefact = Artefact(folder / NAMES[2], code, settings, inputs)
    found = _current_statuses(artefact)
    if found is not None and not (bad_inputs == "stop" and found["reason"].ne("").any()):
        print(f"{folder}: nothing has changed; the {len(found)} pairs are not read again")
    else:
        Path(f"{artefact.path}.json").unlink(missing_ok=True)
        read = partial(read_or_error, size=size, fit=fit, rule=rule)
        results = _read_all(rows, read, folder, size, bad_inputs, workers, fewest)
        found = _status_table(table["id"], results)
        write_csv(artefact.path, found)
        artefact.record(checksums=_checksums(folder))
    say(plausibility.judge(found[found["status"] == "used"], rule))
    return table.assign(
        **{name: found[name].to_numpy() for name in ("status", "reason", "repairs")}
    )
