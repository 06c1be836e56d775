"""Progress bars that are seen in a terminal and in JupyterLab and leave no trace in a report."""

import os

from tqdm.auto import tqdm


def progress(iterable=None, desc=None, total=None, initial=0):
    """A tqdm bar; `LESIONLIB_QUIET=1` (set for headless runs) turns it off entirely."""
    quiet = bool(os.environ.get("LESIONLIB_QUIET"))
    return tqdm(iterable, desc=desc, total=total, initial=initial, leave=False, disable=quiet)
