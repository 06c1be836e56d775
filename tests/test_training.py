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


@pytest.fixture
def processor(monkeypatch):
    """A function that pretends to be a CPU with these capabilities and times of a convolution."""
    training.cpu_computes_bf16.cache_clear()
    timed = []

    def pretend(capabilities, bf16=1.0, float32=1.0):
        timed.clear()

        def seconds(in_bf16):
            timed.append(in_bf16)
            return bf16 if in_bf16 else float32

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True) | {"aes": True}
        )
        monkeypatch.setattr(training, "_seconds_of_convolution", seconds)
        return timed

    yield pretend
    training.cpu_computes_bf16.cache_clear()


class Wide(nn.Module):
    """A convolution that is wide enough for bf16, then attention."""

    def __init__(self, width=training.BF16_CHANNELS):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.layer(x).flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(y, y, y)


def test_auto_asks_the_cpu_first_then_times_a_convolution_once(processor, capsys):
    model, timed = Wide(), processor({"avx2"})
    assert training.resolved_precision("auto", model) == "no" and not timed
    for capability, bf16, expected in (
        ("avx512_bf16", 0.6, "bf16"),
        ("amx_bf16", 0.6, "bf16"),
        ("amx_bf16", 2.8, "no"),
    ):
        training.cpu_computes_bf16.cache_clear()
        timed = processor({capability}, bf16)
        found = {training.resolved_precision("auto", model) for _ in range(3)}
        assert found == {expected} and sorted(timed) == [False, True]
        warned = "this CPU has bf16, but a convolution takes 2.8 times" in capsys.readouterr().out
        assert warned == (expected == "no")


def test_auto_leaves_narrow_models_in_float32_and_stated_precisions_alone(processor):
    processor({"avx512_bf16"}, 0.6)
    assert training.resolved_precision("auto", Wide()) == "bf16"
    assert training.resolved_precision("auto", Wide(training.BF16_CHANNELS - 1)) == "no"
    mouth = nn.Conv2d(3, 512, 3)  # wide on one side only
    assert training.resolved_precision("auto", mouth) == "no"
    for stated in ("no", "bf16", "fp16"):
        assert training.resolved_precision(stated, mouth) == stated


@pytest.mark.parametrize("supported, expected", [(True, "bf16"), (False, "no")])
def test_auto_on_a_gpu_is_bf16_where_it_is_computed_not_emulated(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: including_emulation or supported,
    )
    assert training.resolved_precision("auto", Line()) == expected


def test_a_convolution_takes_time_and_changes_no_random_number():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.no_grad():
        assert training._seconds_of_convolution(False) > 0
    assert torch.equal(torch.rand(2), expected)


def fit_wide(folder, stop_at=None, precision="auto"):
    def loss_at(model, step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(2, training.BF16_CHANNELS, 4, 4, generator=training.generator_at(0, step))
        return model(x).square().mean()

    schedule = training.Schedule(6, 1e-2, save_every=2, precision=precision)
    return training.fit(Wide(), loss_at, folder, schedule, {"n": 1}).layer.weight.detach()


def test_auto_resumed_on_the_same_machine_is_bit_for_bit_elsewhere_it_says_so(
    processor, tmp_path, capsys
):
    processor({"avx512_bf16"}, 0.6)
    whole = fit_wide(tmp_path / "whole")
    assert torch.equal(whole, fit_wide(tmp_path / "bf16", precision="bf16"))
    assert not torch.equal(whole, fit_wide(tmp_path / "no", precision="no"))
    for name in ("same", "other"):
        with pytest.raises(KeyboardInterrupt):
            fit_wide(tmp_path / name, stop_at=3)
    assert torch.equal(whole, fit_wide(tmp_path / "same"))
    assert "WARNING" not in capsys.readouterr().out
    training.cpu_computes_bf16.cache_clear()
    processor({"avx2"})
    assert not torch.equal(whole, fit_wide(tmp_path / "other"))
    said = capsys.readouterr().out
    assert "precision auto was bf16 where this training began and is no here" in said
    assert torch.equal(whole, fit_wide(tmp_path / "whole"))  # complete: nothing is remade
    assert "WARNING" not in capsys.readouterr().out


def test_attention_of_bf16_is_that_of_float32():
    attend = nn.functional.scaled_dot_product_attention
    q, k, v = torch.randn((3, 1, 2, 5, 4), generator=training.generator_at(0, 0)).bfloat16()
    mask = torch.zeros(5, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), training.FloatAttention():
        found = attend(q, k, v, attn_mask=mask)
        assert attend(q.float(), k.float(), v.float()).dtype == torch.bfloat16  # as autocast says
    expected = attend(q.float(), k.float(), v.float()).bfloat16()
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


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
