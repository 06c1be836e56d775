"""Which image is in which part: splits, groups of pictures that belong together, and the audit.

The paper splits uniformly at random (Sec. 3). ISIC 2018 holds lesions photographed twice and
pictures that are there under two ids, often cropped and coloured differently, so a random split
leaks. The split `grouped` keeps such pictures together.
"""

import cv2
import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lesionlib.catalogue import read_table
from lesionlib.errors import InputError
from lesionlib.files import resolve
from lesionlib.progress import progress

PARTS = ("G", "S-train", "S-val", "S-test")
PAIRS = ["a", "b", "same"]  # columns of a list of near-duplicates
HASH_BITS = 16  # candidates differ in at most so many of the 64 bits of their perceptual hashes
LIKENESS = 0.89  # and correlate at least so much at SMALL x SMALL pixels
SAME = 0.86  # near-duplicates correlate at least so much in detail once they are aligned
SMALL, SIDE = 32, 64  # pixels per side for candidates and for the confirmation
DETAIL = 2.0  # pixels at SIDE: standard deviation of the blur that is taken off


def orientations(picture: np.ndarray) -> list[np.ndarray]:
    """The picture (S, S, …) under the eight flips and quarter turns, itself first."""
    turned = [np.rot90(picture, k) for k in range(4)]
    return [np.ascontiguousarray(t) for t in turned + [t[:, ::-1] for t in turned]]


def _bits(picture) -> np.ndarray:
    """The perceptual hash (DCT, 64 bits) as -1 and 1: products of two count agreeing bits."""
    return np.where(imagehash.phash(Image.fromarray(picture)).hash.ravel(), 1, -1)


def _unit(picture) -> np.ndarray:
    """Pixels less each channel's mean, scaled to length 1: products of two are correlations."""
    values = picture - picture.mean(axis=(0, 1), dtype=np.float32)
    return (values / max(np.linalg.norm(values), 1e-6)).ravel()


def _shrunk(picture, side) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


def _candidates(images) -> list[tuple[int, int, int]]:
    """Pairs (i, j) and the orientation of j in which both resemble each other; i < j."""
    small = [_shrunk(image, SMALL) for image in progress(images, desc="perceptual hashes")]
    bits = np.stack([_bits(picture) for picture in small]).astype(np.float32)
    vectors = np.stack([_unit(picture) for picture in small])
    best = np.full((len(small), len(small)), -1, np.float32)
    which = np.zeros(best.shape, np.uint8)
    for k in range(8):
        turned = [orientations(picture)[k] for picture in small]
        distance = (64 - bits @ np.stack([_bits(t) for t in turned]).astype(np.float32).T) / 2
        likeness = vectors @ np.stack([_unit(t) for t in turned]).T
        likeness[distance > HASH_BITS] = -1
        which[likeness > best] = k
        best = np.maximum(best, likeness)
    return [(i, j, which[i, j]) for i, j in np.argwhere(np.triu(best >= LIKENESS, 1))]


def _grey(picture) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _detail(grey) -> np.ndarray:
    return grey - cv2.GaussianBlur(grey, (0, 0), DETAIL)


def detail_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the fine detail of two pictures (S, S, 3) uint8 once they are aligned.

    An affine registration (ECC; Evangelidis & Psarakis 2008) allows for another crop; the
    corners, where instruments leave dark frames, do not count. The unregistered value is
    returned where that is larger.
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
    """Pairs of images (N, S, S, 3) uint8 that show the same picture: rows a < b and `same`.

    Candidates agree in perceptual hash and in coarse pixels, in any of eight orientations; they
    are confirmed by `detail_correlation` of at least SAME. Robust to flips, quarter turns,
    compression, resizing, colour correction and small crops.
    """
    pairs = [
        (i, j, detail_correlation(images[i], orientations(images[j])[k]))
        for i, j, k in progress(_candidates(images), desc="compare pixels")
    ]
    return pd.DataFrame([p for p in pairs if p[2] >= SAME], columns=PAIRS)


def groups(table: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """A number per row (n,): equal for rows of one lesion_id or joined by near-duplicates."""
    n = len(table)
    lesions = table["lesion_id"].fillna("")
    first = {}
    links = [(first.setdefault(name, row), row) for row, name in enumerate(lesions) if name]
    links += list(pairs[["a", "b"]].itertuples(index=False, name=None))
    rows, columns = np.array(links, int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def sizes(n: int, generator_share: float) -> dict[str, int]:
    """Images per part: the generators' share in G, the rest as 7:1:2 (paper, Sec. 3)."""
    generator = round(n * generator_share)
    rest = n - generator
    val, test = max(1, round(0.1 * rest)), max(1, round(0.2 * rest))
    return dict(zip(PARTS, (generator, rest - val - test, val, test), strict=True))


def uniform(n: int, generator_share: float, seed: int) -> np.ndarray:
    """The paper's split: uniformly random part names (n,), whatever belongs together."""
    wanted = sizes(n, generator_share)
    names = np.repeat(list(wanted), list(wanted.values()))
    return names[np.random.default_rng([seed, 2018]).permutation(n)]


def grouped(group: np.ndarray, generator_share: float, seed: int) -> np.ndarray:
    """Part names (n,) at random, with rows of one group (n,) in one part, and exact sizes.

    Groups come in random order, the larger first; each takes a part with room for it, with
    chances as the places left. Raises InputError if groups are too large for the sizes.
    """
    rng = np.random.default_rng([seed, 2018])
    left = sizes(len(group), generator_share)
    names = np.empty(len(group), dtype=object)
    members = pd.Series(range(len(group))).groupby(group).apply(list)
    order = sorted(rng.permutation(len(members)), key=lambda g: -len(members.iloc[g]))
    for rows in (members.iloc[g] for g in order):
        room = np.array([k if k >= len(rows) else 0 for k in left.values()], float)
        if not room.any():
            raise InputError(
                "split 'grouped'",
                f"a group of {len(rows)} images that belong together fits no part any more",
                "correct the column lesion_id, or set split to paper",
            )
        part = rng.choice(PARTS, p=room / room.sum())
        names[rows], left[part] = part, left[part] - len(rows)
    return names.astype(str)


def from_file(path, ids) -> np.ndarray:
    """Part names of `ids` from a CSV with columns id and split; raises InputError if one lacks."""
    path = resolve(path)
    table = read_table(path, "split")
    if not {"id", "split"} <= set(table):
        raise InputError(path, "no columns 'id' and 'split'", "add them")
    known = table.drop_duplicates("id").set_index("id")["split"]
    wrong = sorted(set(known) - set(PARTS))
    if wrong:
        raise InputError(path, f"unknown part '{wrong[0]}'", f"use one of {', '.join(PARTS)}")
    missing = [name for name in ids if name not in known]
    if missing:
        raise InputError(
            path,
            f"it has no part for {len(missing)} images, {missing[0]} among them",
            "add them, or set split to grouped",
        )
    names = known.loc[list(ids)].to_numpy().astype(str)
    empty = sorted(set(PARTS) - set(names))
    if empty:
        raise InputError(path, f"no image is in {empty[0]}", "put some there")
    return names


def make(how: str, table: pd.DataFrame, group: np.ndarray, generator_share: float, seed: int):
    """Part names (n,) by `how`: grouped, paper, or the path of a CSV with id and split."""
    if how == "paper":
        return uniform(len(table), generator_share, seed)
    if how == "grouped":
        return grouped(group, generator_share, seed)
    return from_file(how, table["id"])


def audit(names: np.ndarray, table: pd.DataFrame, pairs: pd.DataFrame, group) -> pd.DataFrame:
    """How much crosses each border between two parts: lesions, near-duplicates, groups."""
    lesion = table["lesion_id"].fillna("").to_numpy()
    found = pairs.assign(one=names[pairs["a"].astype(int)], two=names[pairs["b"].astype(int)])

    def shared(labels, one, two):
        return len((set(labels[names == one]) & set(labels[names == two])) - {""})

    rows = []
    for i, one in enumerate(PARTS):
        for two in PARTS[i + 1 :]:
            across = found[["one", "two"]].isin([one, two]).all(axis=1)
            across &= found["one"] != found["two"]
            counts = shared(lesion, one, two), int(across.sum()), shared(group, one, two)
            rows.append((f"{one} / {two}", *counts))
    return pd.DataFrame(rows, columns=["border", "lesions", "near-duplicate pairs", "groups"])


def check(how: str, crossing: pd.DataFrame):
    """Raise InputError if a split that promises to keep groups together does not."""
    broken = crossing[crossing["groups"] > 0]
    if how != "paper" and len(broken):
        raise InputError(
            f"split '{how}'",
            f"{broken['groups'].sum()} groups of the same lesion or picture lie on both sides of "
            + ", ".join(broken["border"]),
            "put each group into one part (tables/near_duplicates.csv lists pictures), or set "
            "split to paper",
        )
