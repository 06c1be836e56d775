"""What `stage` measures of the GPUs, with NVML's calls replaced where there is none."""

import threading
from types import SimpleNamespace

import pynvml
import pytest

from lesionlib import stage


def test_without_a_driver_there_are_no_gpus_and_no_energy(monkeypatch):
    def fail():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert stage.gpus() == [] and stage.gpu_energy([]) == 0


def test_energy_is_the_sum_of_the_counters_in_watt_hours(monkeypatch):
    def counter(handle):
        if handle == "old":
            raise pynvml.NVMLError_NotSupported
        return 7_200_000  # millijoules: 2 Wh

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", counter)
    assert stage.gpu_energy(["one", "old", "two"]) == pytest.approx(4)


def test_peak_of_memory_is_that_of_the_fullest_gpu(monkeypatch):
    used = {"one": iter([300, 900, 100]), "two": iter([400, 200, 800])}
    asked = []

    class Ended(threading.Event):
        def wait(self, timeout=None):
            asked.append(timeout)
            return len(asked) > 3

    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetMemoryInfo",
        lambda handle: SimpleNamespace(used=next(used[handle]) * 2**20),
    )
    peak = [0]
    stage.watch_gpus(["one", "two"], peak, Ended())
    assert peak == [900]
