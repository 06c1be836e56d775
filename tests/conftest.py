"""One finished run of the whole study, shared by the tests that look at it."""

import os
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


def of_study(file) -> bool:
    """Whether a file, relative to the repository, has tests of whole runs."""
    return "mark.study" in (ROOT / file).read_text()


class Scheduling(LoadFileScheduling):
    """Keeps tests that share a fixture in one process: those of whole runs, and those of a file."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return "study" if of_study(file) else file


def pytest_xdist_make_scheduler(config, log):
    """How `-n 2` shares out the tests: in the order of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Begin with the longest, those of whole runs, so that no process waits for them at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not of_study(item.nodeid.split("::")[0]))


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
