"""The study without Snakemake, by the lines that docs/running.md shows."""

import os
import re
import shutil
import subprocess

import pytest

from lesionlib.engine.files import ROOT


@pytest.mark.study
def test_the_documented_lines_run_the_study_without_snakemake(tmp_path):
    text = (ROOT / "docs" / "running.md").read_text()
    blocks = re.findall("```bash\n(.*?)```", text, re.S)
    lines = next(block for block in blocks if "papermill" in block)
    lines = lines.replace("runs/mine", "runs/test-plain").replace("/tmp/", f"{tmp_path}/")
    run = ROOT / "runs" / "test-plain"
    shutil.rmtree(run, ignore_errors=True)
    one = os.environ | {"OMP_NUM_THREADS": "1"}  # more wait for one another where cores are shared
    command = ["bash", "-euc", lines]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=one)
    assert process.returncode == 0, process.stderr[-3000:]
    assert len(list(tmp_path.glob("0*.ipynb"))) == 7 and (run / "figures" / "figure4.png").exists()
    shutil.rmtree(run)
