"""Near-duplicates: pictures that occur twice, and the groups that they form.

`near_duplicates` compares a set with itself, `groups` joins its result with the lesion ids, and
`copies` searches generated (or other) images for real ones.
"""

import cv2
import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lesionlib.data.tables import GROUPS
from lesionlib.engine.progress import progress

PAIRS = ["a", "b", "same"]  # columns of a table of near-duplicates: two row numbers, correlation
HASH_BITS = 16  # most bits, of 64, in which the perceptual hashes of candidates differ
SIMILAR = 0.89  # least correlation of candidates at SMALL x SMALL pixels
SAME = 0.86  # least correlation of detail, after alignment, of near-duplicates
SMALL, SIDE = 32, 64  # pixels per side for candidates and for the confirmation
DETAIL = 2.0  # pixels at SIDE: standard deviation of the blur that is subtracted


def orientations(picture: np.ndarray) -> list[np.ndarray]:
    """The picture (S, S, …) under the eight flips and quarter turns, the identity first."""
    turned = [np.rot90(picture, k) for k in range(4)]
    return [np.ascontiguousarray(t) for t in turned + [t[:, ::-1] for t in turned]]


def _bits(picture) -> np.ndarray:
    """The perceptual hash (DCT, 64 bits) as -1 and 1: a product counts equal minus unequal bits."""
    return np.where(imagehash.phash(Image.fromarray(picture)).hash.ravel(), 1, -1)


def _unit(picture) -> np.ndarray:
    """Pixels minus each channel's mean, scaled to length 1: products are correlations."""
    values = picture - picture.mean(axis=(0, 1), dtype=np.float32)
    return (values / max(np.linalg.norm(values), 1e-6)).ravel()


def _shrunk(picture, side) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


def _candidates(images) -> list[tuple[int, int, int]]:
    """Pairs i < j that resemble each other, with the orientation of j in which they do."""
    small = [_shrunk(image, SMALL) for image in progress(images, desc="perceptual hashes")]
    bits = np.stack([_bits(picture) for picture in small]).astype(np.float32)
    vectors = np.stack([_unit(picture) for picture in small])
    best = np.full((len(small), len(small)), -1, np.float32)
    which = np.zeros(best.shape, np.uint8)
    for k in range(8):
        turned = [orientations(picture)[k] for picture in small]
        distance = (64 - bits @ np.stack([_bits(t) for t in turned]).astype(np.float32).T) / 2
        similarity = vectors @ np.stack([_unit(t) for t in turned]).T
        similarity[distance > HASH_BITS] = -1
        which[similarity > best] = k
        best = np.maximum(best, similarity)
    return [(i, j, which[i, j]) for i, j in np.argwhere(np.triu(best >= SIMILAR, 1))]


def _grey(picture) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _detail(grey) -> np.ndarray:
    return grey - cv2.GaussianBlur(grey, (0, 0), DETAIL)


def detail_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the fine detail of two pictures (S, S, 3) uint8 once they are aligned.

    An affine registration (ECC; Evangelidis & Psarakis 2008) compensates for a different crop; the
    corners, where instruments leave dark frames, are excluded. If the value without registration
    is larger, that is returned.
    """
    fixed, moving = _grey(_shrunk(one, SIDE)), _grey(_shrunk(other, SIDE))
    rows, columns = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    disc = np.hypot(rows, columns) < 0.4 * SIDE
    found = [(moving, disc)]
    try:
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
        start = np.eye(2, 3, dtype=np.float32)
        _, warp = cv2.findTransformECC(fixed, moving, start, cv2.MOTION_AFFINE, criteria, None, 5)
        inverse = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        aligned = cv2.warpAffine(
            moving, warp, (SIDE, SIDE), flags=inverse, borderMode=cv2.BORDER_REPLICATE
        )
        inside = cv2.warpAffine(np.ones_like(fixed), warp, (SIDE, SIDE), flags=inverse) > 0.99
        if (disc & inside).sum() > 0.5 * disc.sum():
            found.append((aligned, disc & inside))
    except cv2.error:  # the registration did not converge: not the same picture, or flat
        pass
    values = [np.corrcoef(_detail(fixed)[m], _detail(p)[m])[0, 1] for p, m in found]
    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def near_duplicates(images: np.ndarray) -> pd.DataFrame:
    """Pairs of images (N, S, S, 3) uint8 that show the same picture: columns a < b, same.

    Candidates agree in perceptual hash and in coarse pixels in one of eight orientations; they are
    confirmed by a `detail_correlation` of at least SAME. Robust to flips, quarter turns,
    compression, resizing, colour correction and small crops.
    """
    pairs = [
        (i, j, detail_correlation(images[i], orientations(images[j])[k]))
        for i, j, k in progress(_candidates(images), desc="compare pixels")
    ]
    return pd.DataFrame([p for p in pairs if p[2] >= SAME], columns=PAIRS)


def groups(table: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """A group number per row (n,): equal for one lesion, one patient, or near-duplicates.

    `table` has a column lesion_id and may have patient_id (cells may be empty); `pairs` is from
    `near_duplicates`.
    """
    n, links = len(table), list(pairs[["a", "b"]].itertuples(index=False, name=None))
    for column in table.columns.intersection(GROUPS):
        first, names = {}, table[column].fillna("")
        links += [(first.setdefault(name, row), row) for row, name in enumerate(names) if name]
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def copies(real: np.ndarray, made: np.ndarray) -> pd.DataFrame:
    """Generated images (m, S, S, 3) that show the same picture as a real one (n, S, S, 3).

    Columns made and real (row numbers) and same (correlation of detail). Found by
    `near_duplicates`, despite flips, quarter turns, recompression, recolouring and small crops.
    """
    pairs = near_duplicates(np.concatenate([real, made]))
    across = pairs[(pairs["a"] < len(real)) & (pairs["b"] >= len(real))]
    found = {"made": across["b"] - len(real), "real": across["a"], "same": across["same"]}
    return pd.DataFrame(found).reset_index(drop=True)
