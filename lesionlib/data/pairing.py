"""Which mask belongs to which image: by their names, whatever is written around what they share.

Names are compared in Unicode's normal form C. `pair` uses equal names first, then the usual
additions (`_segmentation`, `_lesion`, `_mask`), then any other prefix or suffix that pairs at least
half of what is left, and says which.
"""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lesionlib.data.decoding import TYPES
from lesionlib.engine.errors import InputError

SUFFIXES = ("_segmentation", "_lesion", "_mask", "_seg", "_gt", "-mask", "-segmentation")
SYSTEM = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}
DOCUMENTS = {".txt", ".csv", ".md", ".pdf", ".json", ".xlsx", ".tab", ".html", ".zip"}
PROBES = 20  # masks whose names are compared with all images to find an affix


@dataclass
class Files:
    """The picture files of a folder by name (its stem), and files that are not used.

    `unused` has (name, file, reason); `beside` counts what belongs there without being a picture:
    documents, superpixels, files of the operating system.
    """

    folder: Path
    found: dict[str, Path]
    unused: list[tuple] = field(default_factory=list)
    beside: Counter = field(default_factory=Counter)


def normal(text: str) -> str:
    """Text in Unicode's normal form C: two spellings of an accented letter become one."""
    return unicodedata.normalize("NFC", text)


def _kind(path: Path) -> str:
    """'' for a picture to use, else what the file is: beside it, or an unknown ending."""
    if path.name.startswith("._") or path.name.lower() in SYSTEM or path.name.startswith("."):
        return "file of the operating system"
    if "_superpixels" in path.stem:
        return "superpixels"
    if path.suffix.lower() in TYPES:
        return ""
    return "document" if path.suffix.lower() in DOCUMENTS else "other"


def _walk(folder: Path) -> list[Path]:
    """All files below a folder in order; if pictures lie in the folder itself, only those there."""
    own = sorted(path for path in folder.iterdir() if not path.is_dir())
    if any(_kind(path) == "" for path in own):
        return own
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name.lower() not in SYSTEM)
        found += [Path(root, name) for name in sorted(names)]
    return found


def list_files(folders, option: str) -> Files:
    """The pictures of one folder, or of several, by name; every other file is accounted for.

    Subfolders are searched if there is no picture in a folder itself. Raises InputError if there is
    no such folder or no picture in it.
    """
    folders = [Path(one) for one in (folders if isinstance(folders, list) else [folders])]
    result = Files(folders[0], {})
    for folder in folders:
        if not folder.is_dir():
            problem = "the folder does not exist"
            raise InputError(folder, problem, f"correct the path ({option} DIR)")
        for path in _walk(folder):
            name, kind = normal(path.stem), _kind(path)
            if kind == "other":
                reason = f"not used: '{path.suffix}' is no picture that can be read"
                result.unused.append((name, str(path), reason))
            elif kind:
                result.beside[kind] += 1
            elif name in result.found:
                reason = f"a second file of this id; {result.found[name].name} is used"
                result.unused.append((name, str(path), reason))
            else:
                result.found[name] = path
    if not result.found:
        raise InputError(
            folders[0],
            f"no image files ({', '.join(sorted(end[1:] for end in TYPES))})",
            f"give the folder that holds them ({option} DIR)",
        )
    return result


def _parted(affix: str, core: str, before: bool) -> bool:
    """Whether an affix is set off from what it is added to: by a sign, or letters beside digits."""
    if not affix:
        return True
    one, other = (affix[-1], core[:1]) if before else (affix[0], core[-1:])
    return not one.isalnum() or not other.isalnum() or one.isdigit() != other.isdigit()


def _affixes(image: str, mask: str):
    """The ways in which two names differ by what stands around one part that they share.

    Yields ((before, after) of the image, (before, after) of the mask).
    """
    start = len(os.path.commonprefix([image, mask]))
    end = len(os.path.commonprefix([image[::-1], mask[::-1]]))
    for longer, shorter, swap in ((mask, image, False), (image, mask, True)):
        if shorter in longer:
            around = tuple(longer.split(shorter, 1))
            yield (around, ("", "")) if swap else (("", ""), around)
    if end and start < min(len(image), len(mask)):
        yield (image[:-end], ""), (mask[:-end], "")
    if start:
        yield ("", image[start:]), ("", mask[start:])


def _core(name: str, affix) -> str:
    """The part of a name between two affixes, '' if it does not have them."""
    before, after = affix
    core = name[len(before) : len(name) - len(after)]
    fits = name.startswith(before) and name.endswith(after) and len(name) > len(before + after)
    parted = fits and _parted(before, core, True) and _parted(after, core, False)
    return core if parted else ""


def _by_affix(images, masks, around) -> dict[str, str]:
    """The masks by image that have the same core, where it is the core of one image and mask."""
    of_image, of_mask = around
    cores = Counter(_core(name, of_image) for name in images)
    counts = Counter(_core(name, of_mask) for name in masks)
    by_core = {core: name for name in masks if (core := _core(name, of_mask))}
    return {
        name: by_core[core]
        for name in images
        if (core := _core(name, of_image)) in by_core and cores[core] == counts[core] == 1
    }


def _discovered(images, masks) -> tuple[tuple, dict[str, str]]:
    """The affixes that pair most of these names, and the pairs; ((), {}) if fewer than half.

    Raises InputError if two ways pair equally many names differently.
    """
    probes = list(masks)[:: max(1, len(masks) // PROBES)][:PROBES]
    votes = Counter(way for mask in probes for image in images for way in _affixes(image, mask))
    tried = [(way, _by_affix(images, masks, way)) for way, _ in votes.most_common(30)]
    tried.sort(key=lambda one: (-len(one[1]), sum(map(len, one[0][0] + one[0][1]))))
    if not tried or len(tried[0][1]) < max(2, min(len(images), len(masks)) / 2):
        return (), {}
    way, pairs = tried[0]
    for other, others in tried[1:]:
        if len(others) == len(pairs) and others != pairs:
            image = next(name for name in pairs if others.get(name) != pairs[name])
            raise InputError(
                "masks",
                f"'{pairs[image]}' and '{others.get(image)}' could both be the mask of '{image}' "
                f"({_said(way)}, or {_said(other)})",
                "give a folder with one mask for each image (--masks DIR)",
            )
    return way, pairs


def _said(way) -> str:
    """A pair of affixes in words."""
    parts = zip(("image", "mask"), way, strict=True)
    shown = [f"'{a[0]}NAME{a[1]}' for the {what}" for what, a in parts if any(a)]
    return " and ".join(shown)


def _equal(images, masks) -> dict[str, str]:
    """Masks by image of the same name; also of the same name in other capitals, if that is one."""
    pairs = {name: name for name in images if name in masks}
    left = [name for name in images if name not in pairs]
    folded = Counter(name.casefold() for name in images), Counter(map(str.casefold, masks))
    by_fold = {name.casefold(): name for name in masks}
    return pairs | {
        name: by_fold[key]
        for name in left
        if folded[0][key := name.casefold()] == folded[1][key] == 1
    }


def pair(images, masks) -> tuple[dict[str, str], list[str]]:
    """The name of the mask by the name of its image, and sentences that say how they were found.

    `images` and `masks` are names; what has no partner is left out of the result.
    """
    images, masks = list(images), dict.fromkeys(masks)
    pairs, said = _equal(images, masks), []
    for suffix in SUFFIXES:
        left = [name for name in images if name not in pairs]
        taken = set(pairs.values())
        lower = {name.casefold(): name for name in masks if name not in taken}
        more = {n: lower[n.casefold() + suffix] for n in left if n.casefold() + suffix in lower}
        pairs |= more
        if more:
            said.append(f"{len(more)} masks are called like their image with '{suffix}'")
    while True:
        left, taken = [name for name in images if name not in pairs], set(pairs.values())
        rest = [name for name in masks if name not in taken]
        way, more = _discovered(left, rest) if left and rest else ((), {})
        if not more:
            return pairs, said
        pairs |= more
        said.append(f"{len(more)} masks are paired by their names: {_said(way)}")


def divide(names, folder) -> tuple[list[str], list[str], str]:
    """Names of images and of masks that lie in one folder, and the suffix that tells them apart.

    A mask is called like an image with a suffix. Raises InputError if there is no such suffix for
    at least a third of the names.
    """
    names = list(names)
    lower = {name.casefold() for name in names}
    counts = Counter()
    for name in map(str.casefold, names):
        for cut in range(1, len(name)):
            if name[:cut] in lower and _parted(name[cut:], name[:cut], False):
                counts[name[cut:]] += 1
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0] not in SUFFIXES))
    if not ranked or 3 * ranked[0][1] < len(names):
        raise InputError(
            folder,
            "it was given for images and masks, and no suffix tells them apart",
            "put the masks into a folder of their own, or call them NAME_segmentation",
        )
    suffix = ranked[0][0]
    masks = [
        n for n in names if n.casefold().endswith(suffix) and n.casefold()[: -len(suffix)] in lower
    ]
    return [name for name in names if name not in set(masks)], masks, suffix
