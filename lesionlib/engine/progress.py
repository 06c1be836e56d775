"""Progress bars that are seen in a terminal and in JupyterLab and leave no trace in a report."""

import os
import sys

from tqdm.auto import tqdm


def progress(iterable=None, desc=None, total=None, initial=0):
    """A tqdm bar; `LESIONLIB_QUIET=1` (set for headless runs) turns it off entirely."""
    return tqdm(iterable, desc=desc, total=total, initial=initial, leave=False, disable=_quiet())


def quieten():
    """Turn off the bars of diffusers and transformers, if imported, where ours are off."""
    for library in filter(None, map(sys.modules.get, ("diffusers", "transformers"))):
        if _quiet():
            library.utils.logging.disable_progress_bar()


def _quiet() -> bool:
    return bool(os.environ.get("LESIONLIB_QUIET"))
