"""Outputs of the frozen parts of a base: computed once, kept on disk, memory-mapped.

Latents of a bounded number of warped copies of all images, and embeddings of all distinct prompts.
Training reads rows of them; neither autoencoder nor text encoder runs again.
"""

import numpy as np
import torch

from lesionlib.data import augmentation
from lesionlib.engine.code import code_digest
from lesionlib.engine.files import atomic_write
from lesionlib.engine.progress import progress
from lesionlib.engine.provenance import digest, record, recorded
from lesionlib.generators.base import Examples, PatchAutoencoder, encode, token_ids, weights_digest


def _load_or_build(path, shape, parts):
    """The float32 array of `shape` at `path`, memory-mapped; built first if missing or corrupt.

    `parts` yields the (index, values) that fill it; only the main process builds it.
    """
    from accelerate import PartialState

    state = PartialState()
    with state.main_process_first():
        if state.is_main_process and not (path.exists() and recorded(path)):
            with atomic_write(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                for index, values in parts:
                    array[index] = values
                array.flush()
            record(path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def encode_images(pipe, images: np.ndarray, masks, matrices, folder, batch: int = 32):
    """Scaled latents (V, N, C, h, w) of images (N, S, S, 3) warped by `matrices` (V, N, 2, 3).

    `masks` (N, S, S) are of their lesions. The name of the file in `folder` depends on the
    autoencoder, its code, the images and the warps, so that it is never outdated. Latents are the
    mean of the autoencoder's distribution, not a sample from it.
    """
    code = code_digest(encode, augmentation.warp_images, PatchAutoencoder)
    vae, warps = (weights_digest(pipe.vae), pipe.vae.config.scaling_factor), matrices.numpy()
    name = digest(code, *vae, images, masks, np.ascontiguousarray(warps))
    first = encode(pipe, images[:1])

    def parts():
        jobs = [(v, i) for v in range(len(matrices)) for i in range(0, len(images), batch)]
        for v, i in progress(jobs, desc="latents"):
            part = slice(i, i + batch)
            warped = augmentation.warp_images(images[part], masks[part], matrices[v, part])
            z = encode(pipe, warped)
            yield (v, slice(i, i + len(z))), z.cpu().numpy()

    shape = (*matrices.shape[:2], *first.shape[1:])
    return _load_or_build(folder / f"latents-{name}.npy", shape, parts())


def examples(pipe, part, settings, training: str, folder) -> Examples:
    """The examples of a `training` (base or controlnet) on the images of a `dataset.Study`.

    Uses the groups `data` and `augmentation` of `settings`; `folder` keeps the latents.
    """
    matrices = augmentation.variants(part.images, part.masks, settings.augmentation, training)
    texts = augmentation.described(part.table, part.masks, matrices, settings.data)
    latents = encode_images(pipe, part.images, part.masks, matrices, folder)
    return Examples(latents, part.masks, matrices, texts)


@torch.no_grad()
def encode_prompts(pipe, prompts, folder=None, batch: int = 64):
    """Embeddings (U, T, D) of the distinct prompts, and the row (B,) of each prompt.

    With `folder` a memory-mapped array, else a tensor on the text encoder's device.
    """
    distinct, rows = np.unique(np.asarray(list(prompts), dtype=str), return_inverse=True)
    ids, device = token_ids(pipe, distinct), pipe.text_encoder.device

    def parts():
        for i in range(0, len(ids), batch):
            embeddings = pipe.text_encoder(ids[i : i + batch].to(device))[0].float()
            yield slice(i, i + len(embeddings)), embeddings

    rows = torch.from_numpy(rows.reshape(-1))
    if folder is None:
        return torch.cat([embeddings for _, embeddings in parts()]), rows
    name = digest(code_digest(token_ids), weights_digest(pipe.text_encoder), ids.numpy())
    shape = (*ids.shape, pipe.text_encoder.config.hidden_size)
    arrays = ((index, embeddings.cpu().numpy()) for index, embeddings in parts())
    return _load_or_build(folder / f"prompts-{name}.npy", shape, arrays), rows
