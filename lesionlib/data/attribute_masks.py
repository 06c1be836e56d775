"""The dermoscopic attributes of ISIC 2018 Task 2 as flags, read from the attribute masks."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from lesionlib.data.prompts import ATTRIBUTES
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve, write_csv
from lesionlib.engine.progress import progress

DOWNLOAD = "run python -m lesionlib.data.download"


def is_marked(path) -> int:
    """1 if a mask has a pixel that is not black, else 0; InputError if it is unreadable."""
    try:
        with Image.open(path) as image:
            return int(image.convert("L").getbbox() is not None)
    except (OSError, SyntaxError, ValueError) as error:
        remedy = f"delete the folder {path.parent} and {DOWNLOAD}"
        raise InputError(path, f"the mask cannot be read ({error})", remedy) from error


def attribute_sources(folder) -> tuple[Path, Path]:
    """Where attributes may lie in a download folder: the table of flags, the folder of masks."""
    return tuple(
        resolve(folder) / f"ISIC2018_Task2_Training_{what}"
        for what in ("attributes.csv", "GroundTruth_v3")
    )


def attribute_flags(folder) -> pd.DataFrame:
    """Columns id and the five attributes (0/1) of ISIC 2018 Task 2, from the download folder.

    Read once from the masks and stored as ISIC2018_Task2_Training_attributes.csv, if the folder can
    be written to; it is used as long as it lists the same ids as the masks, or if there are none.
    Raises InputError if there is neither, or if a mask is missing or corrupt.
    """
    table, masks = attribute_sources(folder)
    ids = sorted({p.name.split("_attribute_")[0] for p in masks.glob("*_attribute_*.png")})
    if table.exists():
        flags = pd.read_csv(table)
        if {"id", *ATTRIBUTES} <= set(flags) and (not ids or sorted(flags["id"]) == ids):
            return flags[["id", *ATTRIBUTES]]
    if not ids:
        raise InputError(masks, "no attribute masks", DOWNLOAD)
    paths = [masks / f"{i}_attribute_{name}.png" for i in ids for name in ATTRIBUTES]
    with ThreadPoolExecutor() as pool:
        marked = list(progress(pool.map(is_marked, paths), desc="attributes", total=len(paths)))
    flags = pd.DataFrame(np.reshape(marked, (len(ids), -1)), columns=ATTRIBUTES)
    flags.insert(0, "id", ids)
    with suppress(OSError, InputError):  # a folder that is not ours, or a full disk
        write_csv(table, flags)
    return flags
