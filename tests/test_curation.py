"""Curation: each rule by hand, then a few hundred broken inputs of known kinds."""

import io
import json
import os
import shutil
import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from lesionlib.data import curation, decoding
from lesionlib.data.plausibility import MaskRule
from lesionlib.engine.errors import InputError

SIZE, WIDTH, HEIGHT = 24, 96, 72  # blocks of 4 x 3 pixels
WHITE = MaskRule(255)  # only white pixels are lesion
SILENT = 5  # grey levels: mean change that a flipped byte may make unnoticed, mostly


def scene(seed: int):
    """A picture (72, 96, 3) of skin with a dark ellipse, and its mask of 0 and 255."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(150, 220, (4, 5, 3)).astype(np.float32)
    image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    lesion = ((y - 36) / rng.uniform(12, 24)) ** 2 + ((x - 48) / rng.uniform(14, 30)) ** 2 < 1
    image[lesion] *= 0.6
    image = (image + rng.normal(0, 3, image.shape)).clip(0, 255)
    return image.astype(np.uint8), lesion.astype(np.uint8) * 255


def blocks(image, mask):
    """The clean result at 24 px, averaged with NumPy."""
    small = image.reshape(SIZE, 3, SIZE, 4, -1).mean((1, 3))
    share = (mask > 127).reshape(SIZE, 3, SIZE, 4).mean((1, 3))
    return small, (share > 0.5).astype(np.uint8)


def save(path, array, **options):
    """Write an array with Pillow; returns the path as text."""
    Image.fromarray(array).save(path, **options)
    return str(path)


def save_jpeg(path, array, **options):
    """Write a JPEG of high quality."""
    return save(path, array, format="JPEG", quality=95, subsampling=0, **options)


@pytest.fixture
def pair(tmp_path):
    """Paths of a clean JPEG and its mask, with the arrays."""
    image, mask = scene(0)
    return save_jpeg(tmp_path / "a.jpg", image), save(tmp_path / "a.png", mask), image, mask


@pytest.fixture
def table(tmp_path):
    """The catalogue of 24 clean pairs."""
    rows = []
    for i in range(24):
        image, mask = scene(i)
        paths = save_jpeg(tmp_path / f"a{i:02d}.jpg", image), save(tmp_path / f"a{i:02d}.png", mask)
        rows.append((f"a{i:02d}", *paths, "nevus"))
    return pd.DataFrame(rows, columns=["id", "image", "mask", "diagnosis"])


def test_a_clean_pair_is_averaged_and_needs_no_repair(pair):
    image, mask, repairs = curation.read_pair(*pair[:2], SIZE)
    expected, shape = blocks(*pair[2:])
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == mask.dtype == np.uint8
    assert np.abs(image - expected).mean() < 1 and (mask == shape).all() and repairs == []


def test_mask_areas_by_hand(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    paths = save(tmp_path / "i.png", image), save(tmp_path / "m.png", mask)
    # Blocks of 2 x 3 pixels: rows 3-6 are lesion throughout, rows 2 and 7 by exactly one half (not
    # lesion); of column 2 one third, of column 6 two thirds.
    expected = np.zeros((10, 10), np.uint8)
    expected[3:7, 3:7] = 1
    found, shape, _ = curation.read_pair(*paths, 10)
    assert (shape == expected).all()
    assert np.abs(found - image.reshape(10, 2, 10, 3, 3).mean((1, 3))).max() <= 0.5


def test_letterbox_pads_and_crop_cuts(tmp_path):
    image = np.full((40, 80, 3), 100, np.uint8)
    image[:, 40:] = 200
    image[0], image[-1] = (7, 8, 9), (7, 8, 9)
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 10:50] = 255
    paths = save(tmp_path / "i.png", image), save(tmp_path / "m.png", mask)
    wide, shape, _ = curation.read_pair(*paths, 80, "letterbox")
    assert (wide[20:60] == image).all() and (shape[20:60] == mask // 255).all()
    assert (wide[:20] == (7, 8, 9)).all() and (wide[60:] == (7, 8, 9)).all()
    assert not shape[:20].any() and not shape[60:].any()
    square, shape, repairs = curation.read_pair(*paths, 40, "crop")
    assert (square == image[:, 20:60]).all() and (shape == mask[:, 20:60] // 255).all()
    assert repairs == ["mask: 25% of the lesion cut off"]
    whole = {fit: curation.whole_mask(*paths, fit) for fit in curation.FITS}
    assert {fit: found.shape for fit, found in whole.items()} == {
        "squash": (40, 80),
        "letterbox": (80, 80),
        "crop": (40, 40),
    }
    assert (whole["squash"] == mask // 255).all() and (whole["crop"] == shape).all()
    assert (whole["letterbox"][20:60] == mask // 255).all()
    assert (curation.read_image(paths[0], 80, "letterbox") == wide).all()
    mask[:, 20:] = 0
    save(tmp_path / "m.png", mask)
    with pytest.raises(InputError, match="no lesion left at 40 px"):
        curation.read_pair(*paths, 40, "crop")


@pytest.mark.parametrize("width, height, size", [(640, 480, 96), (1281, 1601, 48), (600, 400, 70)])
def test_half_scale_decoding_equals_the_full_one(tmp_path, monkeypatch, width, height, size):
    image, mask = (cv2.resize(a, (width, height), interpolation=cv2.INTER_CUBIC) for a in scene(3))
    grain = np.random.default_rng(0).normal(0, 5, image.shape)
    save_jpeg(tmp_path / "i.jpg", (image + grain).clip(0, 255).astype(np.uint8))
    paths = str(tmp_path / "i.jpg"), save(tmp_path / "m.png", (mask > 127).astype(np.uint8) * 255)
    shapes, decode = [], decoding._jpeg
    monkeypatch.setattr(decoding, "_jpeg", lambda f, half: shapes.append(half) or decode(f, half))
    halved = curation.read_pair(*paths, size)[0].astype(int)
    monkeypatch.setattr(decoding, "_jpeg", lambda f, half: decode(f, False))
    full = curation.read_pair(*paths, size)[0].astype(int)
    assert shapes == [True] and np.abs(halved - full).max() <= 3
    assert np.abs(halved - full).mean() < 0.5


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_that_of_pillow(turn):
    image, exif = scene(1)[0], Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert (decoding.turned(image, turn) == expected).all()


def test_orientation_is_ignored_where_only_that_fits_the_mask(pair, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_jpeg(tmp_path / "a.jpg", pair[2], exif=exif)
    image, _, repairs = curation.read_pair(*pair[:2], SIZE)
    assert np.abs(image - blocks(*pair[2:])[0]).mean() < 1
    assert repairs == ["image: EXIF orientation 6 not applied: the sizes agree only without it"]


@pytest.mark.parametrize("share, said", [(0.04, "specks removed"), (0.06, "2 regions kept")])
def test_small_regions_are_specks(pair, tmp_path, share, said):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:50, 10:60] = 255  # 2000 pixels
    mask[60:64, 50 : 50 + round(2000 * share / (1 - share) / 4)] = 255
    _, shape, repairs = curation.read_pair(pair[0], save(tmp_path / "m.png", mask), SIZE)
    assert said in repairs[0] and shape[20:].any() == ("kept" in said)


def test_seam_of_damaged_blocks_but_not_of_bars():
    image = cv2.resize(scene(2)[0], (256, 192), interpolation=cv2.INTER_CUBIC)
    assert decoding._seam(image, 8) == 0
    shifted = image.astype(int)
    shifted[64:, :, 2] -= 20  # the blue of all blocks from the middle of row 56 on
    shifted[56:64, 100:, 2] -= 20
    assert decoding._seam(shifted.clip(0, 255).astype(np.uint8), 8) in (56, 64)
    shifted = image.copy()
    shifted[:24], shifted[-16:] = 0, 180
    assert decoding._seam(shifted, 8) == 0


def test_curate_writes_arrays_in_order(table, tmp_path, monkeypatch):
    (tmp_path / "a03.jpg").write_text("hello")
    table.loc[5, "mask"] = ""
    again = pd.concat([table, table.iloc[[7]]], ignore_index=True)
    found = curation.curate(again, SIZE, tmp_path / "out", workers=3)
    assert found["status"].value_counts().to_dict() == {"used": 22, "quarantined": 3}
    assert list(found.index[found["status"] == "quarantined"]) == [3, 5, 24]
    assert "a03.jpg" in found["reason"][3] and "no mask of the same stem" in found["reason"][5]
    assert (
        "second row of the id a07" in found["reason"][24] and (found["diagnosis"] == "nevus").all()
    )
    images = np.load(tmp_path / "out" / "images.npy", mmap_mode="r")
    masks = np.load(tmp_path / "out" / "masks.npy", mmap_mode="r")
    assert images.shape == (22, SIZE, SIZE, 3) and masks.shape == (22, SIZE, SIZE)
    for row, i in enumerate(found.index[found["status"] == "used"]):
        image, mask, _ = curation.read_pair(*table.loc[i, ["image", "mask"]], SIZE)
        assert (images[row] == image).all() and (masks[row] == mask).all()
    one = curation.curate(again, SIZE, tmp_path / "one", workers=1)
    pd.testing.assert_frame_equal(one, found)
    for name in curation.NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_second_run_reads_nothing_until_something_changes(table, tmp_path, monkeypatch, capsys):
    out, count, read = tmp_path / "out", Counter(), curation.read_facts
    monkeypatch.setattr(curation, "read_facts", lambda *a: count.update("n") or read(*a))

    def reads(size=SIZE, **changed):
        count.clear()
        result = curation.curate(table, size, out, **changed)
        pd.testing.assert_frame_equal(result, first)
        assert np.load(out / "images.npy").shape == (24, size, size, 3)
        return count["n"]

    first = curation.curate(table, SIZE, out)
    before = (out / "images.npy").read_bytes()
    assert reads() == 0 and "24 pairs are not read again" in capsys.readouterr().out
    (out / "images.npy").write_bytes(before[:-50] + b"x" + before[-49:])
    assert reads() == 24 and (out / "images.npy").read_bytes() == before
    (out / "masks.npy").unlink()
    assert reads() == 24
    (out / "pixels.csv.json").write_text("{")
    assert reads() == 24
    assert reads(12) == 24 and reads(12, fit="crop") == 24 and reads(12, rule=WHITE) == 24
    os.utime(table["mask"][4], ns=(1, 1))
    assert reads(12, rule=WHITE) == 24 and reads(12, rule=WHITE, bad_inputs="stop") == 0


def test_the_first_problem_of_the_table_stops_the_run(table, tmp_path):
    for name in ("a09.jpg", "a04.png"):
        (tmp_path / name).write_bytes(b"")
    for again in range(2):
        with pytest.raises(InputError, match="a04.png"):
            curation.curate(table, SIZE, tmp_path / "out", bad_inputs="stop", workers=4)
        if not again:
            assert list((tmp_path / "out").iterdir()) == []
            curation.curate(table, SIZE, tmp_path / "out")


def test_too_few_pairs_and_unknown_fit_leave_nothing(table, tmp_path):
    with pytest.raises(InputError, match="only 5 usable"):
        curation.curate(table.head(5), SIZE, tmp_path / "out")
    with pytest.raises(InputError, match="unknown fit 'stretch'"):
        curation.curate(table, SIZE, tmp_path / "out", fit="stretch")
    assert list((tmp_path / "out").iterdir()) == []


def test_few_results_wait():
    started = []
    results = curation.in_order(lambda i: started.append(i) or i, range(100), 2)
    assert next(results) == 0 and len(started) <= 5 and list(results) == list(range(1, 100))
    assert len(curation._header((0, 9, 9, 3))) == len(curation._header((10**9, 9, 9, 3)))


# ---- broken inputs: each function breaks the pair (image and mask path, arrays) in one way and
# returns the pair to read; kinds are grouped by what must happen.


def cut(path, rng):
    """Truncate a file at a random place."""
    data = open(path, "rb").read()
    open(path, "wb").write(data[: rng.integers(1, len(data) - 1)])


def flip(path, rng, start, stop):
    """Change one byte between two places."""
    data = bytearray(open(path, "rb").read())
    data[rng.integers(start, stop)] ^= rng.integers(1, 256)
    open(path, "wb").write(data)


def scan(path):
    """Where the entropy-coded data of a JPEG begin and end."""
    data = open(path, "rb").read()
    return data.index(b"\xff\xda") + 14, len(data) - 2


def truncated_jpeg(i, m, image, mask, rng):
    cut(i, rng)


def truncated_mask(i, m, image, mask, rng):
    cut(m, rng)


def truncated_other(i, m, image, mask, rng):
    save(i, image, format=rng.choice(["TIFF", "BMP", "PNG", "GIF", "WEBP"]))
    cut(i, rng)


def flipped_png(i, m, image, mask, rng):
    path = [i, m][rng.integers(2)]
    save(i, image, format="PNG")
    flip(path, rng, 0, os.path.getsize(path))


def lost_sector(i, m, image, mask, rng):
    data, (start, stop) = bytearray(open(i, "rb").read()), scan(i)
    at = rng.integers(start, stop - 512)
    data[at : at + 512] = bytes(512)
    open(i, "wb").write(data)


def no_bytes(i, m, image, mask, rng):
    open([i, m][rng.integers(2)], "wb").close()


def text(i, m, image, mask, rng):
    open([i, m][rng.integers(2)], "w").write("<html>404</html>" * rng.integers(1, 99))


def noise(i, m, image, mask, rng):
    start = rng.choice([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"GIF89a"])
    open([i, m][rng.integers(2)], "wb").write(start + rng.bytes(rng.integers(1, 3000)))


def folder(i, m, image, mask, rng):
    path = [i, m][rng.integers(2)]
    os.unlink(path)
    os.mkdir(path)


def dangling(i, m, image, mask, rng):
    path = [i, m][rng.integers(2)]
    os.unlink(path)
    os.symlink(path + ".gone", path)


def missing(i, m, image, mask, rng):
    os.unlink([i, m][rng.integers(2)])


def no_mask(i, m, image, mask, rng):
    return i, ["", float("nan")][rng.integers(2)]


def forbidden(i, m, image, mask, rng):
    os.chmod([i, m][rng.integers(2)], 0)


def other_size(i, m, image, mask, rng):
    save(m, np.roll(mask, 5, 0)[rng.integers(1, 9) :, rng.integers(0, 9) :])


def empty_mask(i, m, image, mask, rng):
    save(m, mask * 0)


def full_mask(i, m, image, mask, rng):
    save(m, mask * 0 + rng.integers(1, 256).astype(np.uint8))


def vanishing_lesion(i, m, image, mask, rng):
    mask = mask * 0
    mask[rng.integers(HEIGHT), rng.integers(WIDTH)] = 255
    save(m, mask)


def photograph_as_mask(i, m, image, mask, rng):
    save(m, image if rng.integers(2) else image[..., 0])


def single_colour(i, m, image, mask, rng):
    save_jpeg(i, image * 0 + rng.integers(0, 256, 3).astype(np.uint8))


def tiny(i, m, image, mask, rng):
    height, width = rng.integers(2, 16), rng.integers(12, WIDTH)
    save(i, image[30 : 30 + height, :width], format="PNG")
    save(m, mask[30 : 30 + height, :width])


def strip(i, m, image, mask, rng):
    times = int(rng.integers(2, 9))
    save(i, np.tile(image[30:47], (1, times, 1)), format="PNG")
    save(m, np.tile(mask[30:47], (1, times)))


def bomb(i, m, image, mask, rng):
    data, sides = open(m, "rb").read(), rng.integers(9500, [12_000, 2**31 - 1][rng.integers(2)], 2)
    head = b"IHDR" + struct.pack(">II", *sides) + data[24:29]
    open(m, "wb").write(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])
    shutil.copy(m, i)


QUARANTINED = [
    truncated_jpeg, truncated_mask, truncated_other, flipped_png, no_bytes, text, noise, folder,
    dangling, missing, no_mask, other_size, empty_mask, full_mask, vanishing_lesion,
    photograph_as_mask, single_colour, tiny, strip, bomb,
]  # fmt: skip


def swapped_ending(i, m, image, mask, rng):
    save(i, image, format=rng.choice(["PNG", "TIFF", "BMP", "WEBP"]), lossless=True)


def image_mode(i, m, image, mask, rng):
    mode = rng.choice(["RGBA", "CMYK"])
    alpha = Image.fromarray(image).convert(mode)
    alpha.save(i, "PNG" if mode == "RGBA" else rng.choice(["TIFF", "JPEG"]), quality=98)


def deep_rgb(i, m, image, mask, rng):
    deep = image[..., ::-1].astype(np.uint16) * 257
    code = cv2.imencode(rng.choice([".png", ".tif"]), deep)[1]
    open(i, "wb").write(code.tobytes())


def turned_jpeg(i, m, image, mask, rng):
    turn, exif = int(rng.integers(2, 9)), Image.Exif()
    exif[0x0112] = turn
    stored = decoding.turned(image, {6: 8, 8: 6}.get(turn, turn))
    Image.fromarray(np.ascontiguousarray(stored)).save(
        i, rng.choice(["JPEG", "PNG", "TIFF"]), exif=exif, quality=95
    )


def further_pictures(i, m, image, mask, rng):
    first, second = Image.fromarray(image), Image.fromarray(image[::-1])
    first.save(i, "TIFF", save_all=True, append_images=[second] * rng.integers(1, 4))


def soft_mask(i, m, image, mask, rng):
    save(m, cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 1.5)))


def jpeg_mask(i, m, image, mask, rng):
    save(m, mask, format="JPEG", quality=int(rng.integers(50, 96)))


def mask_mode(i, m, image, mask, rng):
    colour = mask[..., None] * (rng.integers(0, 2, 3) | [0, 0, 1]).astype(np.uint8)
    clear = np.dstack([mask * 0, mask * 0, mask * 0, mask])
    deep = (mask > 0).astype(np.uint16) * rng.integers(1, 65536).astype(np.uint16)
    drawn = np.dstack([mask * 0 + 255, mask * 0 + 255, mask * 0 + 255, mask])
    save(m, [colour, clear, deep, drawn, np.dstack([mask, mask])][rng.integers(5)])


def palette_mask(i, m, image, mask, rng):
    indexed = Image.fromarray(mask // 255, mode="P")
    indexed.putpalette([0, 0, 0, int(rng.integers(1, 256)), 0, 0])
    indexed.save(m)


def specks(i, m, image, mask, rng):
    mask[1, :: rng.integers(9, 40)] = 255
    save(m, mask)


MENDED = [
    swapped_ending, image_mode, deep_rgb, turned_jpeg, further_pictures, soft_mask, jpeg_mask,
    mask_mode, palette_mask, specks,
]  # fmt: skip


def grey(i, m, image, mask, rng):
    image[:] = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    one = image[..., 0]
    if rng.integers(2):
        save(i, one.astype(np.uint16) * 257, format=rng.choice(["PNG", "TIFF"]))
    else:
        save(i, one if rng.integers(2) else np.dstack([one, one]), format="PNG")


def few_colours(i, m, image, mask, rng):
    indexed = Image.fromarray(image).quantize(int(rng.integers(8, 200)))
    image[:] = np.asarray(indexed.convert("RGB"))
    indexed.save(i, rng.choice(["PNG", "GIF"]))


def one_bit(i, m, image, mask, rng):
    bits = Image.fromarray(image).convert("1")
    image[:] = np.asarray(bits.convert("RGB"))
    bits.save(i, "PNG")


def two_regions(i, m, image, mask, rng):
    mask[:] = 0
    mask[9:30, 9:30], mask[40:60, 40 : rng.integers(50, 90)] = 255, 255
    save(m, mask)


MENDED += [grey, few_colours, one_bit, two_regions]  # these also change what is expected


def flipped_scan(i, m, image, mask, rng):
    flip(i, rng, *scan(i))


def flipped_header(i, m, image, mask, rng):
    flip(i, rng, 0, scan(i)[0])


PERHAPS = [flipped_scan, flipped_header, lost_sector]  # JPEG has no checksum
EACH = 8


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_broken_inputs_are_mended_or_named_and_never_pass_unnoticed(tmp_path):
    kinds = QUARANTINED + MENDED + PERHAPS + ([forbidden] if os.geteuid() else [])
    rows, clean = [], []
    for number, kind in enumerate(kinds):
        for i in range(EACH):
            rng = np.random.default_rng([number, i])
            name = f"{kind.__name__}-{i}"
            image, mask = scene(1000 * number + i)
            paths = str(tmp_path / f"{name}.jpg"), str(tmp_path / f"{name}.png")
            save_jpeg(paths[0], image)
            save(paths[1], mask)
            paths = kind(*paths, image, mask, rng) or paths
            rows.append((name, *paths))
            clean.append((image, mask))
    table = pd.DataFrame(rows, columns=["id", "image", "mask"])
    found = curation.curate(table, SIZE, tmp_path / "out", workers=2)
    images = iter(np.load(tmp_path / "out" / "images.npy"))
    masks = iter(np.load(tmp_path / "out" / "masks.npy"))
    count, silent = Counter(found["status"]), 0
    assert len(found) >= 200 and len(kinds) >= 15
    assert count["used"] + count["quarantined"] == len(found)
    for row, (image, mask) in zip(found.itertuples(), clean, strict=True):
        kind = globals()[row.id.split("-")[0]]
        if row.status == "quarantined":
            assert kind not in MENDED, row
            assert row.image in row.reason or row.mask in row.reason
            assert "Remedy" in row.reason and row.repairs == ""
            continue
        assert kind not in QUARANTINED + [forbidden] and row.reason == "", row
        expected, shape = blocks(image, mask)
        error = np.abs(next(images) - expected).mean()
        wrong = (next(masks) != shape).mean()
        if kind in PERHAPS:
            silent += error > SILENT
            continue
        assert row.repairs and error < 2 and wrong <= 0.01, (row, error, wrong)
    assert silent <= 0.1 * len(PERHAPS) * EACH
    assert json.loads((tmp_path / "out" / "pixels.csv.json").read_text())["key"]
