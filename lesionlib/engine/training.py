"""One training loop for all networks: resumable, logged, repeatable.

A `Task` defines what is trained and how one step is made; `Loop` does the rest: learning rates,
logs, validations, checkpoints, and stopping after a signal. `fit` trains one model that minimises
one loss. It runs on `accelerate`: the same code serves one process, several GPUs and several nodes.
The random numbers of a step depend on seed and step alone. They are drawn for the whole batch, of
which each process takes its share; the number of processes changes nothing but rounding.
"""

import hashlib
import math
import os
import signal
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lesionlib.engine.errors import InputError, Interrupted
from lesionlib.engine.files import Log, atomic_write
from lesionlib.engine.progress import progress

SAVE_AFTER = 60  # seconds of training that may be lost if checkpoints are saved at validations
BF16_CHANNELS = 48  # narrower networks are not faster in bf16 on a CPU, see `resolved_precision`
BF16_LIMIT = 1.4  # CPU time of bf16 by that of float32: 0.6 where it is native, else 2.8 to 25


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # set by accelerate launch


@cache
def cpu_computes_bf16() -> bool:
    """Whether this CPU has avx512_bf16 or AMX and this process makes use of it.

    The CPU is asked first. Then a convolution, forward and backward, is timed once per process: if
    the libraries are held to older instructions (ONEDNN_MAX_CPU_ISA), bf16 takes BF16_LIMIT times
    as long as float32 or more, and a WARNING says so. Both cases are a factor of two from the
    limit, and the least CPU time is steady: noise does not change the answer.
    """
    if not {"avx512_bf16", "amx_bf16"} & {k for k, x in torch.cpu.get_capabilities().items() if x}:
        return False
    ratio = _seconds_of_convolution(True) / _seconds_of_convolution(False)
    if ratio >= BF16_LIMIT:
        print(
            f"WARNING: this CPU has bf16, but a convolution takes {ratio:.1f} times as long in it "
            "as in float32; where precision is auto, float32 is used"
        )
    return ratio < BF16_LIMIT


def _seconds_of_convolution(bf16: bool) -> float:
    """The least CPU time of a convolution of typical size, forward and backward."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
        x, times = torch.randn(8, 64, 16, 16).to(memory_format=torch.channels_last), []
        for _ in range(6):  # the first ones are slower
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = layer(x)
            y.float().sum().backward()
            times.append(time.process_time() - start)
    return min(times)


def resolved_precision(precision: str, model: nn.Module) -> str:
    """The mixed precision no, bf16 or fp16 that a setting amounts to for a model on this machine.

    "auto" is bf16 on a GPU that computes in it. On a CPU it is bf16 if `cpu_computes_bf16` and the
    model has a convolution of BF16_CHANNELS or more, in and out. Measured on one thread of an AMD
    EPYC with avx512_bf16, at 64 px: a U-Net with ResNet-18 1.8 times as fast, a ControlNet of
    widths 64/96/128 1.5 times, of 48/64/96 1.3 times, of 16/32 1.0 times (at 32 px 0.75).

    "auto" stands in the keys of results, not what it became: like the device, that belongs to the
    machine. So a run that moves to another machine stays current, cells trained on different nodes
    of a cluster are found by all of them, and no measurement outdates anything. Records name what
    it became (`precision`). It is the same for every start on one machine, where an interrupted
    training therefore continues bit for bit; elsewhere `Loop` says if it differs. For a cluster of
    different processors, state the precision.
    """
    if precision != "auto":
        return precision
    if device().type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    widest = max((min(layer.in_channels, layer.out_channels) for layer in layers), default=0)
    return "bf16" if widest >= BF16_CHANNELS and cpu_computes_bf16() else "no"


class FloatAttention(TorchFunctionMode):
    """Within this block, attention of bf16 tensors is computed in float32.

    On a CPU its backward pass is two to five times as fast, its forward pass about as fast.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args_32 = [_float32(x) for x in args]
        kwargs_32 = {name: _float32(x) for name, x in kwargs.items()}
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*args_32, **kwargs_32).to(args[0].dtype)


def _float32(x):
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def float_attention(precision: str, model: nn.Module):
    """`FloatAttention` where it is faster: in bf16 on a CPU; else a block that changes nothing.

    Nor does it with gradient checkpointing, which computes forward passes again outside the block.
    """
    again = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    fast = precision == "bf16" and device().type == "cpu" and not again
    return FloatAttention() if fast else nullcontext()


def generator_at(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of seed and step alone.

    A training resumed at step k therefore draws the same numbers as an uninterrupted one.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def batch_at(step: int, batch: int, n: int, seed: int) -> torch.Tensor:
    """Indices (batch,) of step `step` when n samples are visited in shuffled epochs."""
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = {
        e: torch.randperm(n, generator=generator_at(seed, -1 - e))
        for e in torch.unique(positions // n).tolist()
    }
    return torch.stack([epochs[p // n][p % n] for p in positions.tolist()])


def process_rows(batch: int) -> slice:
    """The rows of a batch that this process computes; InputError without equal shares for all."""
    from accelerate import PartialState

    state = PartialState()
    if batch % state.num_processes:
        raise InputError(
            f"batch {batch}",
            f"{state.num_processes} processes cannot share it equally",
            "make the batch a multiple of the number of processes",
        )
    size = batch // state.num_processes
    return slice(state.process_index * size, (state.process_index + 1) * size)


@dataclass(frozen=True)
class Schedule:
    """The length of a training, its learning rate, and when it logs, validates and saves.

    `lr` rises linearly for `warmup` steps, then follows `decay`: "constant", "cosine" (half a
    cosine down to zero) or "linear" (constant for half of the steps, then linear to zero). The task
    applies `weight_decay`, `clip` (largest norm of the gradients, 0: unlimited), `accumulate`
    (batches per step), `ema` (decay of the moving average of the weights, 0: none) and `precision`
    (no, bf16, fp16, auto: `resolved_precision`). A checkpoint is written every `save_every` steps
    and at the end; with 0, at the first validation after SAVE_AFTER seconds. A row is logged every
    `log_every` steps; a validation takes place every `validate_every` steps (0: never) and at the
    end.
    """

    steps: int
    lr: float
    warmup: int = 0
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0
    precision: str = "no"
    save_every: int = 200
    log_every: int = 10
    validate_every: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        peak = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return peak * min(1.0, 2 * (1 - step / self.steps)) if self.decay == "linear" else peak

    def validates(self, done: int) -> bool:
        """Whether a validation is due after `done` steps."""
        between = self.validate_every and done % self.validate_every == 0
        return bool(between) or done == self.steps


@dataclass(frozen=True)
class Files:
    """Paths of a training's checkpoint, its log, and a separate log of its validations, if any.

    With a separate log, a first validation takes place before the first step.
    """

    checkpoint: Path
    log: Path
    validations: Path | None = None


def _checksum(value, total=None):
    """SHA-256 of tensors and plain values, nested in dicts and lists."""
    total = total or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        total.update(f"{value.dtype}{tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key, part in value.items():
            total.update(repr(key).encode())
            _checksum(part, total)
    elif isinstance(value, list | tuple):
        total.update(f"{len(value)} parts".encode())
        for part in value:
            _checksum(part, total)
    else:
        total.update(repr(value).encode())
    return total


def save_checkpoint(path, **state):
    """Write tensors and plain values with a checksum (see `files.atomic_write`)."""
    with atomic_write(path) as temporary:
        torch.save(state | {"checksum": _checksum(state).hexdigest()}, temporary)


def load_checkpoint(path, record: dict):
    """The checkpoint at `path`; None if there is none, or if it has another `record`.

    A corrupt checkpoint is named in a WARNING and renamed to `path`.damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        intact = state.pop("checksum") == _checksum(state).hexdigest()
    except Exception:  # a flipped bit can make the reader raise anything
        intact = False
    if not intact:
        path.replace(f"{path}.damaged")
        print(f"WARNING: {path}: it is corrupt (truncated or modified); the training starts again")
        return None
    return state if state["record"] == record else None


def trainable(model: nn.Module) -> dict:
    """What training changes in a model: parameters that require gradients, and buffers."""
    locked = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in locked}


class Average:
    """Exponential moving average of parameters, from `diffusers`; decay 0: none."""

    def __init__(self, parameters, decay: float):
        self.parameters, self.model = parameters, None
        if decay:
            from diffusers.training_utils import EMAModel  # slow import, needed only with EMA

            self.model = EMAModel(parameters, decay=decay, foreach=True)

    def step(self):
        """Move the average towards the current weights."""
        if self.model:
            self.model.step(self.parameters)

    def state(self) -> dict:
        """The average as a checkpoint keeps it."""
        if not self.model:
            return {}
        return {"shadow": self.model.shadow_params, "step": self.model.optimization_step}

    def load(self, state: dict):
        """Continue from the state of a checkpoint."""
        if self.model:
            for shadow, saved in zip(self.model.shadow_params, state["shadow"], strict=True):
                shadow.copy_(saved)
            self.model.optimization_step = state["step"]

    def __enter__(self):
        """Put the averaged weights into the model until the block ends."""
        if self.model:
            self.model.store(self.parameters)
            self.model.copy_to(self.parameters)

    def __exit__(self, *_):
        if self.model:
            self.model.restore(self.parameters)

    def finish(self):
        """Leave the averaged weights in the model."""
        if self.model:
            self.model.copy_to(self.parameters)


class Stop:
    """Within this block, SIGTERM and SIGUSR1 (Slurm's warning) are only noted in `received`.

    The training checks it after every step, writes its checkpoint, and raises `error`.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.received, self.before = "", {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
            self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = signal.Signals(number).name

    def error(self, path, step: int) -> Interrupted:
        """The error to raise once the checkpoint is written."""
        return Interrupted(
            path,
            f"the training was stopped ({self.received or 'a signal to another process'}) and has "
            f"written its checkpoint after step {step}",
            "start the same command again: it continues from this checkpoint",
        )


@contextmanager
def memory_errors(settings: str):
    """Turn a lack of accelerator memory into an InputError that names the settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
        raise InputError(
            "memory of the accelerator", f"it is not enough ({message})", f"lower {settings}"
        ) from error


def accelerator(precision: str = "no"):
    """An `accelerate.Accelerator` of mixed precision no, bf16 or fp16."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # else an earlier training's precision persists
    return Accelerator(mixed_precision=precision)


class Task:
    """What is trained, and how one step is made; the base class of what `Loop` runs.

    By default one process trains all of `model` by `optimiser`. A subclass defines `gradients` and
    overrides what differs. `columns` of the log are names of losses, "lr", and values of
    validations, with `digits` significant digits; `lower` names the settings to lower where memory
    is short, `remedy` what to do if the loss is no longer finite ("": continue).
    """

    columns, digits = ("loss", "lr"), 6
    desc, lower, remedy = "training", "its batch", ""
    has_validation = False
    is_main = True  # whether this process writes the files
    precision = "no"  # as resolved

    def __init__(self, model: nn.Module, optimiser):
        self.model, self.optimiser = model, optimiser

    def begin(self, start: int):
        """Called once before step `start`, after a checkpoint was loaded."""

    def before(self, step: int):
        """Called before each step."""

    def gradients(self, step: int):
        """Accumulate the gradients of a step and yield its named losses, once for each batch."""
        raise NotImplementedError

    def update(self):
        """Update the weights with the gradients."""
        self.optimiser.step()

    def means(self, sums: dict, count: int) -> dict:
        """Means by name of losses summed over `count` steps."""
        return {name: total / count for name, total in sums.items()}

    def validate(self, step: int) -> dict:
        """The results of a validation by name; called if `has_validation`, in the main process."""
        raise NotImplementedError

    def wait(self):
        """Wait until all processes have reached this point."""

    def should_stop(self, stop: Stop, logged: bool) -> bool:
        """Whether to stop after this step; `logged`: whether it added a row to the log."""
        return bool(stop.received)

    def state(self) -> dict:
        """The task's state as a checkpoint keeps it: tensors and plain values."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict):
        """Continue from the `state` of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])

    def finish(self) -> nn.Module:
        """The model that is returned, in eval mode."""
        return self.model.eval()


class Loop:
    """Trains a `Task` and keeps its state in `files`, so that it can be interrupted at any moment.

    Run again with the same `record`, it continues from its checkpoint, on a CPU bit for bit, or
    returns at once if it was complete; with another `record` (settings, data, code) it starts from
    the beginning. Checkpoints are written atomically; corrupt ones see `load_checkpoint`.
    """

    def __init__(self, task: Task, files: Files, schedule: Schedule, record):
        self.task, self.files, self.schedule, self.record = task, files, schedule, record
        self.start, self.sums, self.count = 0, {}, 0  # losses since the last row, and their steps
        self.log = self.validations = None
        self.saved = time.monotonic()

    def run(self) -> nn.Module:
        """The trained model. InputError if the loss is no longer finite, after a signal to stop
        (see `Stop`), or without enough memory."""
        task, steps = self.task, self.schedule.steps
        if (state := load_checkpoint(self.files.checkpoint, self.record)) is not None:
            task.load(state)
            self.start, self.sums, self.count = state["step"], state["sums"], state["count"]
            before = state.get("precision", task.precision)
            if self.start < steps and before != task.precision:
                print(
                    f"WARNING: {self.files.checkpoint}: precision auto was {before} where this "
                    f"training began and is {task.precision} here, where it continues"
                )
        if self.start == steps:
            return task.finish()
        task.begin(self.start)
        if task.is_main:
            self.log = Log(self.files.log, ["step", *task.columns], self.start)
        if task.has_validation and self.files.validations and self.start == 0:
            self._validate(0)
        task.model.train()
        bar = progress(range(self.start, steps), desc=task.desc, total=steps, initial=self.start)
        with Stop() as stop, memory_errors(task.lower):
            for step in bar:
                self._step(step)
                self._report(step + 1, bar, stop)
        return task.finish()

    def _step(self, step: int):
        """Update the weights once, and add up the losses."""
        task, rate = self.task, self.schedule.rate(step)
        task.before(step)
        for group in task.optimiser.param_groups:
            group["lr"] = rate
        task.optimiser.zero_grad(set_to_none=True)
        for losses in task.gradients(step):
            self._check({name: x for name, x in losses.items() if isinstance(x, float)}, step + 1)
            self.sums = {name: self.sums.get(name, 0.0) + x for name, x in losses.items()}
        task.update()
        self.count += 1

    def _report(self, done: int, bar, stop: Stop):
        """Validate, log, save and stop where due after `done` steps."""
        task, schedule, found = self.task, self.schedule, {}
        validated = task.has_validation and schedule.validates(done)
        logged = done % schedule.log_every == 0 or (validated and not self.files.validations)
        if logged:
            found = self._means(done) | {"lr": schedule.rate(done - 1)}
        if validated:
            found |= self._validate(done)
        if logged:
            digits = dict.fromkeys(found, task.digits) | {"lr": 4}
            row = {name: f"{found[name]:.{digits[name]}g}" for name in task.columns}
            bar.set_postfix(row)
            if self.log:
                self.log.add(step=done, **row)
        stopped = task.should_stop(stop, logged)
        if (stopped or self._save_due(done, validated)) and task.is_main:
            progress_made = {
                "step": done,
                "sums": self.sums,
                "count": self.count,
                "record": self.record,
                "precision": task.precision,
            }
            save_checkpoint(self.files.checkpoint, **task.state(), **progress_made)
            self.saved = time.monotonic()
        if stopped and done < schedule.steps:
            task.wait()
            raise stop.error(self.files.checkpoint, done)

    def _means(self, done: int) -> dict:
        """Mean losses since the last row of the log."""
        means = self.task.means(self.sums, self.count)
        self.sums, self.count = {}, 0
        self._check(means, done)
        return means

    def _check(self, losses: dict, done: int):
        """InputError if a loss is not finite; tensors are only checked as means, for speed."""
        wrong = [f"{name} is {x}" for name, x in losses.items() if not math.isfinite(x)]
        if self.task.remedy and wrong:
            problem = f"the {' and '.join(wrong)} after step {done} of {self.task.desc}"
            raise InputError(self.files.log, problem, self.task.remedy)

    def _validate(self, step: int) -> dict:
        """The results of a validation, also added to `validations.csv` if there is one."""
        task, found = self.task, {}
        task.model.eval()
        if task.is_main:
            with torch.no_grad():
                found = task.validate(step)
            if self.files.validations:
                columns = ["step", *found]
                self.validations = self.validations or Log(
                    self.files.validations, columns, self.start
                )
                self.validations.add(step=step, **{k: f"{v:.6g}" for k, v in found.items()})
        task.wait()
        task.model.train()
        return found

    def _save_due(self, done: int, validated: bool) -> bool:
        if self.schedule.save_every:
            return done % self.schedule.save_every == 0 or done == self.schedule.steps
        return validated and time.monotonic() - self.saved >= SAVE_AFTER


class OneLoss(Task):
    """One model that minimises one loss by AdamW, in one or several processes (`accelerate`)."""

    remedy = "lower the learning rate, or set precision to no; then start again"

    def __init__(self, model: nn.Module, loss_at, schedule: Schedule, validate=None):
        self.precision = resolved_precision(schedule.precision, model)
        self.accelerator, self.loss_at, self.schedule = (
            accelerator(self.precision),
            loss_at,
            schedule,
        )
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        super().__init__(
            model,
            torch.optim.AdamW(
                self.parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True
            ),
        )
        model.to(self.accelerator.device)
        self.average = Average(self.parameters, schedule.ema)
        self.measure, self.has_validation = validate, validate is not None
        self.is_main = self.accelerator.is_main_process

    def begin(self, start):
        self.wrapped, self.optimiser = self.accelerator.prepare(self.model, self.optimiser)

    def gradients(self, step):
        number = self.schedule.accumulate
        for part in range(number):
            with nullcontext() if part + 1 == number else self.accelerator.no_sync(self.wrapped):
                with float_attention(self.precision, self.model):
                    loss = self.loss_at(self.wrapped, number * step + part) / number
                self.accelerator.backward(loss)
            yield {"loss": loss.detach()}

    def update(self):
        if self.schedule.clip:
            self.accelerator.clip_grad_norm_(self.parameters, self.schedule.clip)
        self.optimiser.step()
        self.average.step()

    def means(self, sums, count):
        return {
            name: (self.accelerator.reduce(x, "mean") / count).item() for name, x in sums.items()
        }

    def validate(self, step):
        with self.average:
            return self.measure(step)

    def wait(self):
        self.accelerator.wait_for_everyone()

    def should_stop(self, stop, logged):
        if self.accelerator.num_processes == 1:
            return bool(stop.received)
        if not logged:  # processes only agree at logged steps, so that all stop together
            return False
        received = torch.tensor(float(bool(stop.received)), device=self.accelerator.device)
        return self.accelerator.reduce(received, "sum").item() > 0

    def state(self):
        return {
            "model": trainable(self.model),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
        }

    def load(self, state):
        self.model.load_state_dict(state["model"], strict=False)
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load(state["average"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self):
        self.wait()
        self.accelerator.unwrap_model(
            self.model, keep_fp32_wrapper=False
        )  # removes mixed precision
        self.average.finish()
        return self.model.eval()


def fit(
    model: nn.Module,
    loss_at,
    folder,
    schedule: Schedule,
    record: dict,
    *,
    validate=None,
    desc: str = "training",
    lower: str = "its batch",
) -> nn.Module:
    """Minimise `loss_at(model, step)` over the parameters of `model` that require gradients.

    AdamW. With `accumulate` > 1, `loss_at` is called with accumulate * step + j and the gradients
    are averaged. With `ema` the moving average of the weights is returned. At each validation,
    the first before training, `validate(step)` sees the averaged weights; the dict that it
    returns, always with the same keys, becomes a row of `validations.csv`.

    `folder` gets `checkpoint.pt`, `log.csv` and `validations.csv`; `record`: see `Loop`.
    InputError as `Loop.run`; without enough memory it names the settings `lower`.
    """
    task = OneLoss(model, loss_at, schedule, validate)
    task.desc, task.lower = desc, lower
    paths = (folder / name for name in ("checkpoint.pt", "log.csv", "validations.csv"))
    return Loop(task, Files(*paths), schedule, record).run()
