"""The published `quick` run again: the same tables on the same machine, alike on another.

`./run_all.sh --test -m slow tests/test_reproduce.py` takes as long as `./run_all.sh`.
"""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from lesionlib.engine.files import ROOT, read_json

PUBLISHED, NAME = ROOT / "figures" / "quick", "test-quick"
KEYS = ["network", "method", "amount", "share", "schedule", "seed", "test"]
# Another processor or another version of a package rounds differently, and trainings amplify it: by
# how much is seen between seeds.
TOLERANCE = {
    "table1": {"mse": 0.02, "psnr_1": 2.0, "ssim": 0.1},
    "segmentation": {"dice": 0.15, "iou": 0.15},
}


@pytest.fixture(scope="module")
def again():
    """The default run, under a name of its own."""
    process = subprocess.run(["./run_all.sh", "--name", NAME], cwd=ROOT)
    assert process.returncode == 0
    yield ROOT / "runs" / NAME
    shutil.rmtree(ROOT / "runs" / NAME)


def same_machine(run) -> bool:
    """Whether processor and packages are those of the published run."""
    here, there = (
        read_json(folder / "provenance.json")["environment"] for folder in (run, PUBLISHED)
    )
    return all(here[key] == there[key] for key in ("hardware", "packages", "python"))


@pytest.mark.slow
def test_the_default_run_gives_the_published_tables(again):
    if same_machine(again):
        for path in sorted((PUBLISHED / "tables").glob("*.csv")):
            own = (again / "tables" / path.name).read_text().replace(NAME, "quick")
            assert own.replace(f"{ROOT}/", "") == path.read_text(), path.name
    for name, columns in TOLERANCE.items():
        tables = [pd.read_csv(folder / "tables" / f"{name}.csv") for folder in (again, PUBLISHED)]
        keys = [key for key in KEYS if key in tables[0]]
        one, two = (table.sort_values(keys).reset_index(drop=True) for table in tables)
        assert one[keys].equals(two[keys])
        for column, tolerance in columns.items():
            np.testing.assert_allclose(one[column], two[column], atol=tolerance, err_msg=column)
