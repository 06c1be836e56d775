"""One finished run of the whole study, shared by the tests that look at it."""

import os
import re
import shutil

import pytest
import torch
from whole_study import RUN, external_pairs, run_all
from xdist.scheduler import LoadFileScheduling

from lesionlib.data import phantom
from lesionlib.engine import settings
from lesionlib.engine.files import ROOT

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes on what may be two cores
    torch.set_num_threads(1)


def order(file) -> int:
    """When a file of tests, relative to the repository, begins: the longest first.

    0 for those that share the fixture `finished`, 1 for others with whole runs, 2 for the rest.
    """
    text = (ROOT / file).read_text()
    shares = re.search(r"^def .*\bfinished\b[,)]|^    finished\b[,)]", text, re.M)
    return 0 if shares else 2 - ("mark.study" in text)


class Scheduling(LoadFileScheduling):
    """Keeps tests that share a fixture in one process: `finished`, or those of a file.

    What has whole runs of its own goes to the other process, which else had nothing to do for half
    of the time.
    """

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return file if order(file) else "finished"


def pytest_xdist_make_scheduler(config, log):
    """How `-n 2` shares out the tests: in the order of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Begin with the longest, those of whole runs, so that no process waits for them at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: order(item.nodeid.split("::")[0]))


@pytest.fixture(scope="session")
def external(tmp_path_factory):
    """Arguments that name an external generator, with images for S-test, and a further test set."""
    folder = tmp_path_factory.mktemp("external")
    gan, clinic = (
        external_pairs(folder / name, seed, 14) for name, seed in (("gan", 71), ("clinic", 72))
    )
    number = settings.load("smoke").data.phantoms
    phantom.write_dataset(folder / "more", number, 64, 73, workers=1)
    shutil.copytree(folder / "more" / "ISIC2018_Task1-2_Training_Input", gan / "generated")
    (gan / "trained_on.csv").write_text("id\nanother\n")
    return "--synthetic", f"gan={gan}", "--external", f"clinic={clinic}"


@pytest.fixture(scope="session")
def finished(external):
    """One run of all seven notebooks, with an external generator and a further test set."""
    shutil.rmtree(RUN, ignore_errors=True)
    process = run_all(*external)
    assert process.returncode == 0, process.stderr[-3000:]
    yield process
    shutil.rmtree(RUN)
