"""Reading image-mask pairs: our curation against a plain loop of OpenCV, and a second run.

`python benchmarks/curation.py` prints the rates; with `memory` it curates 200 pairs of 6 megapixels
at 512 px and prints the highest memory of the process.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from lesionlib.data import curation

os.environ["LESIONLIB_QUIET"] = "1"


def write_pairs(folder, n: int, width: int, height: int) -> pd.DataFrame:
    """n JPEGs (quality 90) with PNG masks, of textured blobs; returns their catalogue."""
    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = np.arctan2(y - height / 2, x - width / 2)
    grain = cv2.GaussianBlur(rng.normal(0, 12, (height, width, 3)).astype(np.float32), (0, 0), 1)
    for i in range(n):
        radius = rng.uniform(0.2, 0.4) * height * (1 + 0.1 * np.sin(7 * angle + i))
        lesion = np.hypot(y - height / 2, x - width / 2) < radius
        coarse = rng.uniform(110, 220, (9, 12, 3)).astype(np.float32)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + grain
        image[lesion] *= 0.6
        paths = str(Path(folder) / f"{i:04d}.jpg"), str(Path(folder) / f"{i:04d}.png")
        cv2.imwrite(paths[0], image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(paths[1], lesion.astype(np.uint8) * 255)
        rows.append((f"{i:04d}", *paths))
    return pd.DataFrame(rows, columns=["id", "image", "mask"])


def plain_loop(table, size: int):
    """What one writes with OpenCV: read both, average the areas, threshold."""
    images, masks = [], []
    for image_path, mask_path in zip(table["image"], table["mask"], strict=True):
        image, mask = cv2.imread(image_path), cv2.imread(mask_path, cv2.IMREAD_GRAYSCALE)
        images.append(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)[..., ::-1])
        masks.append(cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) > 127)
    return np.stack(images), np.stack(masks)


def seconds(work, *given) -> float:
    """Wall time of a call, in seconds."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work(*given)
    return time.perf_counter() - start


def rows(n: int = 48, repeats: int = 4) -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit), the best of some alternating repeats."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        table, out = write_pairs(folder, n, 2000, 1500), Path(folder) / "out"
        for size in (256, 512):
            times = {"first": [], "second": [], "plain": []}
            for _ in range(repeats):
                shutil.rmtree(out, ignore_errors=True)
                times["plain"].append(seconds(plain_loop, table, size))
                for run in ("first", "second"):
                    times[run].append(seconds(curation.curate, table, size, out))
            best = {name: min(values) for name, values in times.items()}
            name = f"curation of 2000x1500 at {size} px"
            found.append((name, n / best["first"], n / best["plain"], "pairs/s"))
            found.append((f"second {name}", best["second"], best["first"], "s"))
    return found


def memory(n: int = 200, size: int = 512) -> float:
    """Highest memory of this process in MB after curating n pairs of 6 megapixels."""
    context = multiprocessing.get_context("spawn")  # what writing needs does not count
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context) as pool:
        table = pool.submit(write_pairs, folder, 24, 3000, 2000).result()
        many = pd.concat([table] * -(-n // len(table)), ignore_index=True).head(n)
        many["id"] = [f"{i:04d}" for i in range(n)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took = seconds(curation.curate, many, size, Path(folder) / "out")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{n} pairs of 3000x2000 at {size} px: {took:.1f} s, {after:.0f} MB (before {before:.0f})"
    )
    return after


if __name__ == "__main__":
    if "memory" in sys.argv:
        memory()
    else:
        for name, ours, reference, unit in rows():
            print(f"{name:45s} {ours:9.3f} {reference:9.3f} {unit}")
