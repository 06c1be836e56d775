"""What `stage` measures of the GPUs, with NVML's calls replaced; a kernel that does not start."""

import argparse
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from lesionlib.engine import files, trace
from lesionlib.engine.files import write_json
from lesionlib.workflow import processes, stage


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


def test_peak_of_memory_is_that_of_the_fullest_gpu(monkeypatch, tmp_path):
    used = {"one": iter([300, 900, 100]), "two": iter([400, 200, 800])}
    asked = []

    class Ended(threading.Event):
        def wait(self, timeout=None):
            asked.append(timeout)
            return len(asked) > 2

    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetMemoryInfo",
        lambda handle: SimpleNamespace(used=next(used[handle]) * 2**20),
    )
    peak = [0]
    sitting = stage.Sitting(tmp_path / "sitting.json")
    stage.watch(sitting, ["one", "two"], peak, Ended())
    assert peak == [900] and sitting.path.exists()


def test_the_time_of_all_sittings_is_kept_that_of_a_killed_one_included(tmp_path):
    facts, kept = tmp_path / "logs" / "01_data.json", tmp_path / "logs" / "sittings"
    write_json(facts, {"stage": "01_data", "started": "2026-11-26T21:00:00+0000"})
    killed = {"started": "2026-11-26T20:00:00+0000", "seconds": 100.0, "cpu_seconds": 50.0}
    write_json(kept / facts.name, [killed])
    sitting = stage.Sitting(kept / facts.name)
    sitting.note()
    busy = "import time; began = time.process_time()\nwhile time.process_time() - began < 0.3: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    sitting.note()
    found = trace.stages(tmp_path)["01_data"]
    assert found["sittings"] == 2
    assert 50.3 <= found["cpu_seconds"] < 100 < found["seconds"] < 200


def test_a_signal_reaches_the_kernel_though_other_processes_end_or_are_hidden(monkeypatch):
    class Child:
        def __init__(self, found, gone=False):
            self.found, self.gone, self.got = found, gone, []

        def cmdline(self):
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

        def send_signal(self, number):
            if self.gone:
                raise psutil.NoSuchProcess(1)
            self.got.append(number)

    kernel = ["python", "-m", "ipykernel_launcher"]
    hidden = [Child(psutil.NoSuchProcess(1)), Child(psutil.AccessDenied(2))]
    children = [*hidden, Child(kernel, gone=True), Child(kernel), Child(["sh"])]
    found = SimpleNamespace(children=lambda recursive: children)
    monkeypatch.setattr(stage.psutil, "Process", lambda: found)
    stage.forward_signal(15, None)
    assert [child.got for child in children] == [[], [], [], [15], []]


@pytest.mark.parametrize(
    "said, status, starts",
    [(stage.NO_KERNEL, 1, stage.ATTEMPTS), ("ZeroDivisionError", 1, 1), ("", 0, 1)],
)
def test_only_a_kernel_that_never_came_up_is_started_again(
    tmp_path, monkeypatch, said, status, starts
):
    instead = ["sh", "-c", f"echo x >> {tmp_path}/starts; echo {said}; exit {status}"]
    monkeypatch.setattr(stage, "papermill", lambda: instead)
    monkeypatch.setattr(stage.signal, "signal", lambda *a: None)
    given = argparse.Namespace(
        notebook="n",
        executed="e",
        values="{}",
        text=str(tmp_path / "log.txt"),
        facts=str(tmp_path / "logs" / "n.json"),
    )
    code, took = stage.run_papermill(given)
    assert code == status and took["started"]
    assert len((tmp_path / "starts").read_text().split()) == starts


def test_a_stage_that_fails_says_where_and_why_for_the_last_lines(tmp_path, monkeypatch, capsys):
    executed = tmp_path / "notebooks" / "01_data.ipynb"
    said = {"output_type": "stream", "text": ["WARNING: 3 out\n"]}
    error = {"output_type": "error", "ename": "InputError", "evalue": "x.jpg: corrupt"}
    cells = [{"cell_type": "code", "outputs": [one]} for one in (said, error)]
    files.write_json(executed, {"cells": cells})
    (tmp_path / "log.txt").write_text("Traceback\nExecutionError: x\n\n")
    monkeypatch.setattr(stage, "run_papermill", lambda given: (1, {}))
    values = '{"preset": "smoke", "overrides": {}}'
    told = ["--text", str(tmp_path / "log.txt"), "--facts", "f", "--values", values]
    assert stage.main(["notebooks/01_data.ipynb", str(executed), *told]) == 1
    cause = f"{executed}, cell 2: x.jpg: corrupt"
    assert processes.told_failures(tmp_path) == [cause]
    assert capsys.readouterr().err.splitlines() == ["WARNING: 3 out", cause]
    files.write_json(executed, {"cells": []})  # the kernel died before it could say anything
    assert stage.main(["notebooks/01_data.ipynb", str(executed), *told]) == 1
    assert processes.told_failures(tmp_path) == ["ExecutionError: x"]


def test_a_stage_that_failed_leaves_an_empty_file_that_nobody_trips_over(tmp_path):
    for folder in ("logs", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "logs" / "03_controlnet.json").touch()
    assert trace.stages(tmp_path) == {} and trace.records(tmp_path) == {}


def test_a_copied_run_is_verified_and_explained_where_it_lies(tmp_path):
    run, copy = tmp_path / "one", tmp_path / "two"
    for folder in ("logs", "notebooks", "tables"):
        (run / folder).mkdir(parents=True)
    output = run / "tables" / "split.csv"
    output.write_text("id\n")
    facts = {
        "stage": "01_data",
        "started": "2026-11-28T21:00:00+0000",
        "parameters": {"run": str(run)},
        "outputs": stage.digests([output]),
    }
    write_json(run / "logs" / "01_data.json", facts)
    shutil.copytree(run, copy)
    assert trace.verify(copy) == (1, []) and trace.maker(copy, copy / "tables/split.csv")
    (copy / "tables" / "split.csv").write_text("ID\n")
    assert trace.verify(copy)[1] == [f"changed: {copy / 'tables/split.csv'}"]
    output.unlink()
    assert trace.verify(run)[1] == [f"missing: {output}"] and len(trace.verify(copy)[1]) == 1
