"""Inputs and weights made by formula, for comparison with outputs of original implementations.

The formulas stand in `tests/reference/README.md`.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "reference"


def reference(name: str):
    """Outputs {name: array}, state dict and input of a stored case."""
    with np.load(FOLDER / f"{name}.npz") as file:
        outputs = {key: file[key] for key in file.files if key.startswith("out")}
        shapes = json.loads(str(file["meta"]))["state_dict"]
        shape = tuple(int(n) for n in file["input_shape"])
    return outputs, weights(shapes), network_input(shape)


def network_input(shape) -> torch.Tensor:
    """Smooth values of about [-1, 1], float32."""
    i = np.arange(np.prod(shape), dtype=np.float64)
    a = np.sin(0.011 * i) * np.cos(0.0037 * i)
    return torch.from_numpy((-1 + 2 * (a + 1) / 2).reshape(shape).astype(np.float32))


def weights(shapes: dict) -> dict:
    """A state dict for {key: shape}."""
    return {key: value(key, tuple(shape)) for key, shape in shapes.items()}


def value(key: str, shape) -> torch.Tensor:
    """The tensor of one key of a state dict."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    i = np.arange(np.prod(shape), dtype=np.float64)
    s = np.sin(0.37 * i + zlib.crc32(key.encode()) % 1000)
    if key.endswith("running_var"):
        s = 1 + 0.5 * s
    elif key.endswith("running_mean"):
        s = 0.1 * s
    elif len(shape) == 1 and key.endswith("weight"):
        s = 1 + 0.1 * s
    elif key.endswith("bias"):
        s = 0.05 * s
    else:
        s = s * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(s.reshape(shape).astype(np.float32))
