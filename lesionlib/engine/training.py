"""One training loop for everything that minimises one loss: resumable, logged, repeatable.

It runs on `accelerate`: the same lines serve one process, several GPUs and several nodes. What is
drawn for a step depends on seed and step alone and is drawn for the whole batch, of which each
process takes its share; the number of processes changes nothing but rounding.
"""

import hashlib
import math
import os
import signal
import threading
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import Log, atomic_write
from lesionlib.engine.progress import progress


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # set by accelerate launch


def generator_at(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of seed and step alone.

    Whoever resumes at step k therefore draws what the uninterrupted training drew there.
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


def share(batch: int) -> slice:
    """The rows of a batch that this process computes; InputError if they cannot be equal shares."""
    from accelerate import PartialState

    state = PartialState()
    if batch % state.num_processes:
        raise InputError(
            f"batch {batch}",
            f"{state.num_processes} processes cannot share it equally",
            "make the batch a multiple of the number of processes",
        )
    own = batch // state.num_processes
    return slice(state.process_index * own, (state.process_index + 1) * own)


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Linear warm-up to `peak`, then constant or a half cosine down to zero."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    if decay == "constant":
        return peak * rising
    return peak * rising * 0.5 * (1 + math.cos(math.pi * step / steps))


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
    """Write tensors and plain values aside, with a checksum, then rename."""
    with atomic_write(path) as temporary:
        torch.save(state | {"checksum": _checksum(state).hexdigest()}, temporary)


def load_checkpoint(path, record: dict):
    """The checkpoint at `path`, or None if there is none or it was made by other settings.

    One that was cut short or changed is named in a WARNING and set aside as `path`.damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        whole = state.pop("checksum") == _checksum(state).hexdigest()
    except Exception:  # a flipped bit can make the reader raise anything
        whole = False
    if not whole:
        path.replace(f"{path}.damaged")
        print(f"WARNING: {path}: it was cut short or changed; the training starts anew")
        return None
    return state if state["record"] == record else None


def trainable(model: nn.Module) -> dict:
    """What training changes in a model: parameters that require gradients, and buffers."""
    locked = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: x for name, x in model.state_dict().items() if name not in locked}


class Average:
    """Exponential moving average of parameters, by `diffusers`; decay 0: there is none."""

    def __init__(self, parameters, decay: float):
        self.parameters, self.model = parameters, None
        if decay:
            from diffusers.training_utils import EMAModel  # heavy, not for everybody

            self.model = EMAModel(parameters, decay=decay, foreach=True)

    def step(self):
        """Move the average towards the present weights."""
        if self.model:
            self.model.step(self.parameters)

    def state(self) -> dict:
        """What a checkpoint must hold."""
        if not self.model:
            return {}
        return {"shadow": self.model.shadow_params, "step": self.model.optimization_step}

    def load(self, state: dict):
        """Go on from a checkpoint's state."""
        if self.model:
            for own, saved in zip(self.model.shadow_params, state["shadow"], strict=True):
                own.copy_(saved)
            self.model.optimization_step = state["step"]

    def __enter__(self):
        """The averaged weights stand in the model until the block ends."""
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
    """While it is open, SIGTERM and SIGUSR1 (Slurm's warning) are noted in `asked`, not obeyed.

    Whoever trains looks at it after every step, writes its checkpoint, and raises `error`.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.asked, self.before = "", {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others get no signals
            self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.asked = signal.Signals(number).name

    def error(self, path, step: int) -> InputError:
        """What is raised once the checkpoint is written."""
        return InputError(
            path,
            f"the training was told to stop ({self.asked or 'another process was'}) and has "
            f"written its checkpoint after step {step}",
            "start the same command again: it goes on there",
        )


@contextmanager
def memory(settings: str):
    """Name the settings to lower where the accelerator's memory is not enough (InputError)."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).splitlines()[0]
        raise InputError(
            "memory of the accelerator", f"it is not enough ({said})", f"lower {settings}"
        ) from error


def _together(stop: Stop, run, now: bool) -> bool:
    """Whether to stop; several processes ask one another `now` and then, so that all do."""
    if run.num_processes == 1:
        return bool(stop.asked)
    if not now:
        return False
    asked = torch.tensor(float(bool(stop.asked)), device=run.device)
    return run.reduce(asked, "sum").item() > 0


def accelerator(precision: str = "no"):
    """An `accelerate.Accelerator` of mixed precision no, bf16 or fp16."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the precision of an earlier training does not bind this one
    return Accelerator(mixed_precision=precision)


def fit(
    model: nn.Module,
    loss_at,
    folder,
    *,
    steps: int,
    lr: float,
    record: dict,
    warmup: int = 0,
    decay: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    ema: float = 0.0,
    precision: str = "no",
    validate=None,
    validate_every: int = 0,
    save_every: int = 200,
    log_every: int = 10,
    desc: str = "training",
    lower: str = "its batch",
) -> nn.Module:
    """Minimise `loss_at(model, step)` over the parameters of `model` that require gradients.

    AdamW; `lr` rises for `warmup` steps, then follows `decay`; gradients are clipped to norm
    `clip`. With `accumulate` > 1, `loss_at` is called with accumulate * step + j and the gradients
    are averaged. `ema` is the decay of an exponential moving average of the weights, which is what
    is returned (0: none); `precision` no, bf16 or fp16. Every `validate_every` steps, before the
    first and after the last one, `validate(step)` sees the averaged weights; what it returns, a
    dict of the same keys each time, is a row of `validations.csv`.

    `folder` gets `checkpoint.pt` (written aside, then renamed), `log.csv`, `validations.csv`.
    Called again with the same `record` it goes on where it stopped, on a CPU bit for bit, or returns at
    once when it was done; with another `record` (settings, data, code) it starts afresh.
    InputError if the loss is no longer a number, after a signal to stop (see `Stop`), or without
    enough memory: then it names the settings `lower`.
    """
    run = accelerator(precision)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    path, start, total = folder / "checkpoint.pt", 0, torch.zeros((), device=run.device)
    model.to(run.device)
    average = Average(parameters, ema)
    if (state := load_checkpoint(path, record)) is not None:
        model.load_state_dict(state["model"], strict=False)
        optimiser.load_state_dict(state["optimiser"])
        average.load(state["average"])
        start, total = state["step"], state["total"].to(run.device)
        if run.scaler and state["scaler"]:
            run.scaler.load_state_dict(state["scaler"])
    if start == steps:
        average.finish()
        return model.eval()
    inner = model
    model, optimiser = run.prepare(model, optimiser)
    log = seen = None
    if run.is_main_process:
        log = Log(folder / "log.csv", ["step", "loss", "lr"], start)

    def look(step):
        nonlocal seen
        if validate is not None and run.is_main_process:
            with average, torch.no_grad():
                row = {"step": step} | validate(step)
            seen = seen or Log(folder / "validations.csv", list(row), start)
            seen.add(**{k: v if k == "step" else f"{v:.6g}" for k, v in row.items()})
        run.wait_for_everyone()

    if start == 0:
        look(0)
    model.train()
    bar = progress(range(start, steps), desc=desc, total=steps, initial=start)
    with Stop() as stop, memory(lower):
        for step in bar:
            rate = learning_rate(step, steps, lr, warmup, decay)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            for part in range(accumulate):
                last = part + 1 == accumulate
                with nullcontext() if last else run.no_sync(model):
                    loss = loss_at(model, accumulate * step + part) / accumulate
                    run.backward(loss)
                total += loss.detach()
            if clip:
                run.clip_grad_norm_(parameters, clip)
            optimiser.step()
            average.step()
            done = step + 1
            if done % log_every == 0:
                mean = (run.reduce(total, "mean") / log_every).item()
                if not math.isfinite(mean):
                    raise InputError(
                        folder / "log.csv",
                        f"the loss is {mean} after step {done} of {desc}",
                        "lower the learning rate, or set precision to no; then start again",
                    )
                total.zero_()
                if log:
                    log.add(step=done, loss=f"{mean:.6g}", lr=f"{rate:.4g}")
                bar.set_postfix(loss=f"{mean:.4f}")
            if done == steps or (validate_every and done % validate_every == 0):
                inner.eval()
                look(done)
                inner.train()
            stopped = _together(stop, run, done % log_every == 0)
            if (done % save_every == 0 or done == steps or stopped) and run.is_main_process:
                save_checkpoint(
                    path,
                    model=trainable(inner),
                    optimiser=optimiser.state_dict(),
                    average=average.state(),
                    scaler=run.scaler.state_dict() if run.scaler else {},
                    total=total,
                    step=done,
                    record=record,
                )
            if stopped and done < steps:
                run.wait_for_everyone()
                raise stop.error(path, done)
    run.wait_for_everyone()
    run.unwrap_model(model, keep_fp32_wrapper=False)  # takes the mixed precision off again
    average.finish()
    return inner.eval()
