"""The training loop: repeatable, killed and resumed, shared by processes, averaged."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small_base import train
from torch import nn

from lesionlib.engine import training
from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT, Log

SCRIPT = ROOT / "tests" / "small_base.py"


def start(kind, folder, *before, steps=12):
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "LESIONLIB_QUIET": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [*(before or [sys.executable]), str(SCRIPT), kind, str(folder), str(steps)]
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(folder) -> int:
    return sum(len(Log.read(path)) for path in folder.rglob("log.csv"))


@pytest.mark.parametrize(
    "kind, after",
    [("controlnet", (2, 5)), ("base", (3,)), ("pix2pixhd", (2, 9)), ("reference", (2, 9))],
)
def test_killed_at_any_moment_it_ends_with_the_same_weights(kind, after, tmp_path):
    whole = train(kind, tmp_path / "whole")
    folder, kills = tmp_path / "killed", 0
    for wanted in after:  # rows of the logs after which it is killed, each time later
        process = start(kind, folder)
        while process.poll() is None and rows(folder) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills, "no process lived long enough to be killed"
    last = start(kind, folder)
    assert last.wait() == 0, last.stdout.read()
    ended = torch.load(folder / "weights.pt", weights_only=True)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)
    for path in (tmp_path / "whole").rglob("log.csv"):
        assert path.read_text() == (folder / path.relative_to(tmp_path / "whole")).read_text()


@pytest.mark.parametrize(
    "kind, number",
    [("controlnet", signal.SIGTERM), ("pix2pixhd", signal.SIGUSR1), ("reference", signal.SIGTERM)],
)
def test_told_to_stop_it_writes_its_checkpoint_and_goes_on_there(kind, number, tmp_path):
    steps, stopped = 60, tmp_path / "stopped"  # enough for the signal to come in time
    process = start(kind, stopped, steps=steps)
    while rows(stopped) < 1:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert f"the training was stopped ({number.name}) and has written its checkpoint" in said
    before = rows(stopped)
    last = start(kind, stopped, steps=steps)
    assert last.wait() == 0, last.stdout.read()
    assert rows(stopped) > before
    whole = train(kind, tmp_path / "whole", steps)
    ended = torch.load(stopped / "weights.pt", weights_only=True)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)


def test_a_damaged_checkpoint_is_named_and_set_aside_never_used(tmp_path, capsys):
    path, state = (
        tmp_path / "checkpoint.pt",
        {
            "record": {"a": 1},
            "step": 3,
            "x": {
                "w": torch.arange(8.0),
                "half": [torch.ones(2, dtype=torch.bfloat16), None, True],
            },
        },
    )
    training.save_checkpoint(path, **state)
    assert training.load_checkpoint(path, {"a": 1})["step"] == 3
    assert training.load_checkpoint(path, {"a": 2}) is None and path.exists()
    whole = path.read_bytes()
    damaged = [whole[:-1], whole[: len(whole) // 2], b""]
    for i in range(0, len(whole), 13):
        changed = bytearray(whole)
        changed[i] ^= 1 << i % 8
        damaged.append(bytes(changed))
    noticed = 0
    for data in damaged:
        path.write_bytes(data)
        found = training.load_checkpoint(path, {"a": 1})
        if found is None:
            assert (
                f"WARNING: {path}: it is corrupt (truncated or modified)" in capsys.readouterr().out
            )
            assert not path.exists() and (tmp_path / "checkpoint.pt.damaged").exists()
            noticed += 1
        else:  # the archive has bytes that mean nothing
            assert training._checksum(found).digest() == training._checksum(state).digest()
    assert noticed > len(damaged) / 4  # the rest is padding between the archive's members
    weights = whole.index(np.arange(8, dtype=np.float32).tobytes())
    for i in range(weights, weights + 32):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert training.load_checkpoint(path, {"a": 1}) is None


class Evil:
    """What a pickle can hold: a call that is made when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_checkpoint_is_set_aside_and_does_nothing(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"record": {}, "step": 1, "x": Evil(tmp_path / "harm")}, path)
    assert training.load_checkpoint(path, {}) is None
    path.write_bytes(pickle.dumps(Evil(tmp_path / "harm")))
    assert training.load_checkpoint(path, {}) is None
    assert not (tmp_path / "harm").exists()


def test_two_processes_share_a_batch_and_reach_the_same_loss(tmp_path):
    train("controlnet", tmp_path / "one")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    process = start("controlnet", tmp_path / "two", *launch)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-2000:]
    one, two = (Log.read(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    losses = [[float(row["loss"]) for row in log] for log in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    import accelerate

    class Three:
        num_processes, process_index = 3, 1

    monkeypatch.setattr(accelerate, "PartialState", Three)
    assert training.process_rows(12) == slice(4, 8)
    with pytest.raises(InputError, match="3 processes cannot share it equally"):
        training.process_rows(4)


class Line(nn.Module):
    """y = a x with one weight, and a locked one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()), False)

    def forward(self, x):
        return self.a * x * self.b


def fit(folder, loss=lambda model, step: (model(1.0) - 1) ** 2, validate=None, **options):
    options = dict(steps=4, lr=0.1, decay="constant", clip=0.0, log_every=2) | options
    return training.fit(Line(), loss, folder, training.Schedule(**options), {}, validate=validate)


def test_average_by_hand(tmp_path):
    seen = []

    def watch(step):
        return {"a": 0.0}

    def loss(model, step):
        seen.append(model.a.item())
        return (model(1.0) - 1) ** 2

    averaged = fit(tmp_path / "ema", loss, ema=0.5, validate=watch).a.item()
    plain = fit(tmp_path / "plain").a.item()
    weights, shadow = [*seen[1:], plain], 0.0
    for n, weight in enumerate(weights, 1):  # diffusers: decay (1 + n) / (10 + n) until it is 0.5
        decay = min(0.5, n / (9 + n)) if n > 1 else 0.0
        shadow = decay * shadow + (1 - decay) * weight
    assert averaged == pytest.approx(shadow, rel=1e-5) and averaged < plain


def test_validating_changes_nothing_and_is_logged(tmp_path):
    steps = []

    def watch(step):
        steps.append(step)
        return {"value": step / 3}

    validated = fit(tmp_path / "a", validate=watch, validate_every=3, ema=0.9).a.item()
    assert validated == fit(tmp_path / "b", ema=0.9).a.item() and steps == [0, 3, 4]
    assert [row["step"] for row in Log.read(tmp_path / "a" / "validations.csv")] == ["0", "3", "4"]


def test_gradients_are_averaged_over_accumulated_batches(tmp_path):
    def loss(model, step):
        return model(1.0) * [1.0, 3.0][step % 2]

    seen = {}

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            seen["grad"] = self.param_groups[0]["params"][0].grad.item()
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Spy)
        fit(tmp_path, loss, accumulate=2, steps=1)
    assert seen["grad"] == 2.0


def test_a_loss_that_is_no_number_stops_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="loss is nan after step 2.*lower the learning rate"):
        fit(tmp_path, lambda model, step: model(1.0) * float("nan"))


def test_checkpoints_hold_what_is_trained_and_load_without_pickle(tmp_path):
    fit(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(state["model"]) == {"a"} and state["step"] == 4


def test_bf16_trains_and_is_taken_off_again(tmp_path):
    model = fit(tmp_path, precision="bf16")
    assert model(torch.ones(())).dtype == torch.float32 and 0 < model.a.item() < 1


def test_batches_visit_every_image_once_per_epoch():
    rows = torch.cat([training.batch_at(step, 4, 10, seed=0) for step in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10)) == sorted(rows[10:].tolist())
    assert rows[:10].tolist() != rows[10:].tolist()


def test_learning_rate_by_hand():
    rates = [training.Schedule(100, 1.0, 10).rate(step) for step in (0, 9, 50, 99)]
    assert rates[0] == pytest.approx(0.1) and rates[2] == pytest.approx(0.5)
    assert rates[1] > 0.97 and rates[3] < 0.001
    assert training.Schedule(100, 2.0, 10, "constant").rate(99) == 2.0
    linear = training.Schedule(100, 1.0, decay="linear")
    assert [linear.rate(step) for step in (0, 50, 75, 100)] == [1, 1, 0.5, 0]
