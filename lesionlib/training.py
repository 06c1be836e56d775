"""One training loop for everything that minimises one loss: resumable, logged, repeatable."""

import math

import torch
from torch import nn

from lesionlib.files import Log, aside
from lesionlib.progress import progress


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Linear warm-up to `peak`, then constant or a half cosine down to zero."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    if decay == "constant":
        return peak * rising
    return peak * rising * 0.5 * (1 + math.cos(math.pi * step / steps))


def save_checkpoint(path, **state):
    """Write tensors and plain values aside, then rename."""
    with aside(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path, record: dict):
    """The checkpoint at `path`, or None if there is none or it was made by other settings."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state if state["record"] == record else None


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
    save_every: int = 200,
    log_every: int = 10,
    desc: str = "training",
) -> nn.Module:
    """Minimise `loss_at(step)` over the parameters of `model` that require gradients.

    `folder` gets `checkpoint.pt` (written aside, then renamed) and `log.csv`. Called again
    with the same `record` it goes on where it stopped, or returns at once when it was done;
    with another `record` (settings, data, code) it starts afresh. With `accumulate` > 1,
    `loss_at` is called with accumulate * step + j and the gradients are averaged.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    path, start = folder / "checkpoint.pt", 0
    if (state := load_checkpoint(path, record)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    log = Log(folder / "log.csv", ["step", "loss", "lr"], start)
    model.train()
    bar = progress(range(start, steps), desc=desc, total=steps, initial=start)
    total = 0.0
    for step in bar:
        rate = learning_rate(step, steps, lr, warmup, decay)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        for part in range(accumulate):
            loss = loss_at(accumulate * step + part) / accumulate
            loss.backward()
            total += loss.item()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        if (step + 1) % log_every == 0:
            log.add(step=step + 1, loss=f"{total / log_every:.6g}", lr=f"{rate:.4g}")
            bar.set_postfix(loss=f"{total / log_every:.4f}")
            total = 0.0
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_checkpoint(
                path,
                model=model.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step + 1,
                record=record,
            )
    return model.eval()
