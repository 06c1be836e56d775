"""Training and sampling of both generators against loops written as their references' are.

ControlNet: the loop of diffusers' examples/controlnet/train_controlnet.py, which decodes pictures
and runs autoencoder and text encoder in every step; sampling: StableDiffusionControlNetPipeline.
Pix2PixHD: the order of NVIDIA/pix2pixHD's training. Both sides in bf16 and in channels_last where
that is faster. The same weights' shapes, batch, machine and run; what ours computes once (latents,
embeddings) is done before the clock starts.
"""

import copy
import itertools
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lesionlib.data import phantom
from lesionlib.data.dataset import Study
from lesionlib.engine import settings as config
from lesionlib.engine import training
from lesionlib.engine.settings import Base, ControlNet, Pix2PixHD, Sampling, Settings, Training
from lesionlib.generators import base, controlnet, latents, pix2pixhd, sd15

PROMPTS = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma with streaks"]
DEVICE = training.device()
FAST = DEVICE.type == "cuda" or training.cpu_computes_bf16()
PRECISIONS = ["no", "bf16"] if FAST else ["no"]
WIDTHS = [64, 96, 128]  # of the base that comes with the repository
ISIC = (1024, 768)  # pixels: about the smallest size that is common in ISIC 2018


class Pictures(Dataset):
    """Image and mask files with prompts, decoded and transformed at every access."""

    def __init__(self, folder, size: int, tokenizer):
        self.images = sorted((folder / "ISIC2018_Task1-2_Training_Input").glob("*.jpg"))
        self.masks = folder / "ISIC2018_Task1_Training_GroundTruth"
        self.tokenizer = tokenizer
        resize = transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR)
        to_tensor = [resize, transforms.CenterCrop(size), transforms.ToTensor()]
        self.image = transforms.Compose([*to_tensor, transforms.Normalize([0.5], [0.5])])
        self.mask = transforms.Compose(to_tensor)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        path = self.images[i]
        mask = self.masks / f"{path.stem}_segmentation.png"
        ids = self.tokenizer(
            PROMPTS[i % 2],
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        image = self.image(Image.open(path).convert("RGB"))
        return image, self.mask(Image.open(mask).convert("RGB")), ids


def arrays(folder, size: int):
    """The same files as our notebook 01 leaves them: uint8 images and masks in memory."""
    files = Pictures(folder, size, None)
    images = [cv2.imread(str(path))[..., ::-1] for path in files.images]
    masks = [
        cv2.imread(str(files.masks / f"{path.stem}_segmentation.png"), cv2.IMREAD_GRAYSCALE)
        for path in files.images
    ]
    images = [cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in images]
    masks = [cv2.resize(x, (size, size), interpolation=cv2.INTER_NEAREST) > 127 for x in masks]
    return np.stack(images), np.stack(masks).astype(np.uint8)


def resized(folder, target, size):
    """Write the pictures of `folder` again at `size` (width, height): JPEG, quality 90."""
    for path in folder.rglob("ISIC*.*"):
        if path.suffix in (".jpg", ".png"):
            (target / path.parent.name).mkdir(parents=True, exist_ok=True)
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            method = cv2.INTER_CUBIC if size[0] > picture.shape[1] else cv2.INTER_AREA
            method = method if path.suffix == ".jpg" else cv2.INTER_NEAREST
            picture = cv2.resize(picture, size, interpolation=method)
            options = [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else []
            cv2.imwrite(str(target / path.parent.name / path.name), picture, options)


def synchronise():
    """Wait for the accelerator, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Flags:
    """Flags of diffusers' example."""

    workers: int = 0  # processes that decode pictures
    to_none: bool = False  # gradients are set to None
    precision: str = "no"  # no or bf16
    channels_last: bool = False  # not one of the example's, but free to use


def example_step(pipe, model, batch, dtype) -> torch.Tensor:
    """The loss of one step of diffusers' example, on `batch` (images, masks, token ids)."""
    image, mask, ids = batch
    out = pipe.vae.encode(image.to(dtype))
    z = out.latents if hasattr(out, "latents") else out.latent_dist.sample()
    z = z * pipe.vae.config.scaling_factor
    noise, steps = torch.randn_like(z), pipe.scheduler.config.num_train_timesteps
    t = torch.randint(0, steps, (len(image),), device=z.device)
    noisy = pipe.scheduler.add_noise(z.float(), noise.float(), t).to(dtype)
    words = pipe.text_encoder(ids, return_dict=False)[0]
    hints = {"controlnet_cond": mask.to(dtype)}
    down, middle = model(noisy, t, encoder_hidden_states=words, **hints, return_dict=False)
    predicted = pipe.unet(
        noisy,
        t,
        encoder_hidden_states=words,
        down_block_additional_residuals=[x.to(dtype) for x in down],
        mid_block_additional_residual=middle.to(dtype),
        return_dict=False,
    )[0]
    target = noise
    if pipe.scheduler.config.prediction_type == "v_prediction":
        target = pipe.scheduler.get_velocity(z, noise, t)
    return F.mse_loss(predicted.float(), target.float(), reduction="mean")


def example_rate(pipe, folder, size, batch, steps, flags: Flags):
    """Samples per second of the loop of diffusers' example, with these flags."""
    parts, dtype = (pipe.unet, pipe.vae, pipe.text_encoder), torch.float32
    layout = torch.channels_last if flags.channels_last else torch.contiguous_format
    for part in parts:
        part.to(DEVICE).requires_grad_(False).to(memory_format=torch.contiguous_format)
    model = controlnet.new(pipe).controlnet.to(DEVICE, memory_format=layout)
    pipe.unet.to(memory_format=layout)
    accelerator = training.accelerator(flags.precision)
    if flags.precision != "no":
        dtype = torch.bfloat16
        for part in parts:
            part.to(dtype=dtype)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    pictures, options = Pictures(folder, size, pipe.tokenizer), dict(num_workers=flags.workers)
    options |= dict(shuffle=True, drop_last=True, persistent_workers=flags.workers > 0)
    loader = DataLoader(pictures, batch, **options)
    model, optimiser, loader, rates = accelerator.prepare(model, optimiser, loader, rates)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, one in enumerate(batches):
        if step == 2:
            synchronise()
            start = time.perf_counter()
        if step == 2 + steps:
            synchronise()
            break
        loss = example_step(pipe, model, one, dtype)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        optimiser.zero_grad(set_to_none=flags.to_none)
        loss.detach().item()  # for its progress bar
    rate = batch * steps / (time.perf_counter() - start)
    del loader
    for part in parts:
        part.to(dtype=torch.float32)
    return rate


@contextmanager
def clocked(model):
    """Yield a list that gets the time before and after each forward and backward pass."""
    busy, backward = [], torch.Tensor.backward

    def clock(*_):
        synchronise()
        busy.append(time.perf_counter())

    def timed_backward(*given, **options):
        clock()
        backward(*given, **options)
        clock()

    model.register_forward_pre_hook(clock)
    model.register_forward_hook(clock)
    torch.Tensor.backward = timed_backward
    try:
        yield busy
    finally:
        torch.Tensor.backward = backward


def our_times(pipe, images, masks, batch, steps, passes=False):
    """Seconds of `steps` steps of our training, an even number, and of their passes.

    Passes are forward and backward; they are timed if `passes`, and then each is waited for, so
    that a GPU gets no work ahead.
    """
    pipe.to(DEVICE)
    controlled, times = controlnet.new(pipe), []
    settings = ControlNet(steps=2 + steps, batch=batch, lr=5e-6, prompt_dropout=0.5)
    shared, common = Training(ema=0.0, save_every=10**9), Settings()
    once = common.augmentation.model_copy(update={"variants": 1})
    common = common.model_copy(update={"augmentation": once})
    prompts = pd.DataFrame({"prompt": [PROMPTS[i % 2] for i in range(len(images))]})
    clock = clocked(controlled) if passes else nullcontext([])
    with clock as busy, tempfile.TemporaryDirectory() as place:

        def watch(_):
            synchronise()
            times.append((time.perf_counter(), len(busy)))
            return {"seconds": times[-1][0]}

        folder = Path(place)
        part, monitor = Study(images, masks, prompts, ""), base.Monitor(watch, 2)
        examples = latents.examples(pipe, part, common, "controlnet", folder)
        controlnet.train(pipe, controlled, examples, folder, settings, shared, {}, monitor)
    (start, first), (end, last) = times[1], times[-1]
    spans = np.diff(busy[first:last])[::2]
    return end - start, spans.sum()


FLAGS = {"workers": Flags(workers=2, to_none=True)}
FLAGS["workers, channels_last"] = replace(FLAGS["workers"], channels_last=True)
if FAST:
    FLAGS |= {f"{k}, bf16": replace(flags, precision="bf16") for k, flags in FLAGS.items()}


def training_rows(pipe, folders, size, batch, steps, repeats, flags=FLAGS, number=None):
    """Rows for one base: against the example's defaults, its best flags, and the limit.

    `folders` of pictures by label: the example decodes them in every step. `number` images for
    ours, whose latents are made before the clock starts (default: all).
    """
    images, masks = (array[:number] for array in arrays(next(iter(folders.values())), size))
    flags = {"defaults": Flags()} | flags
    ours, shares, theirs = [], [], {(label, key): [] for label in folders for key in flags}
    for _ in range(repeats):
        ours.append(batch * steps / our_times(pipe, images, masks, batch, steps)[0])
        shares.append(our_times(pipe, images, masks, batch, steps, passes=True))
        for label, key in theirs:
            rate = example_rate(pipe, folders[label], size, batch, steps, flags[key])
            theirs[label, key].append(rate)
    whole, both = min(shares)
    rows = [("seconds of all in forward + backward", both, whole, "s")]
    for label in folders:
        best = max(list(flags)[1:], key=lambda key, label=label: max(theirs[label, key]))
        for said, key in (("defaults", "defaults"), (f"best flags ({best})", best)):
            rates = max(ours), max(theirs[label, key])
            rows.append((f"{label}: example's {said}", *rates, "samples/s"))
    return rows


def titled(name, rows):
    """Rows of `training_rows` with the name of the base."""
    title = f"ControlNet training, {name}"
    return [(f"{title}: {x}" if i == 0 else f"{title}, {x}", *y) for i, (x, *y) in enumerate(rows)]


def timed(number, work):
    """Images per second of `work`, which makes `number` of them, and the images."""
    synchronise()
    start = time.perf_counter()
    images = work()
    synchronise()
    return number / (time.perf_counter() - start), images


def their_sampling(pipe, controlled, masks, steps, precision="no"):
    """A function that samples images of masks by the pipeline of diffusers; it takes its options.

    Noise is that of `controlnet.sample`, prompts are empty. Weights are copies in channels_last; in
    bf16 all are converted, as the documentation of diffusers advises.
    """
    side, number = masks.shape[1] // pipe.vae_scale_factor, len(masks)
    shape = (pipe.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=training.generator_at(0, i)) for i in range(number)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    models = {k: getattr(pipe, k) for k in ("vae", "text_encoder", "unet")}
    models["controlnet"] = controlled.controlnet
    models = {k: copy.deepcopy(model).to(dtype=dtype) for k, model in models.items()}
    for name in ("unet", "controlnet"):
        models[name].to(memory_format=torch.channels_last)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    theirs = StableDiffusionControlNetPipeline(**parts | models, requires_safety_checker=False)
    theirs.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack(noise).to(DEVICE, dtype)

    def sample(**options):
        options |= dict(latents=noise, num_inference_steps=steps, output_type="np")
        return theirs([""] * number, controlnet.control_images(masks).to(DEVICE), **options).images

    return sample


def sampling_rows(name, pipe, size, number, steps, repeats):
    """Images per second against the pipeline of diffusers, at its default and at equal guidance.

    Both sides in float32 and, where the machine has it, in bf16: the faster one counts.
    """
    pipe.to(DEVICE)
    controlled = controlnet.new(pipe, 0).to(DEVICE).eval()
    zero = (
        controlled.controlnet.controlnet_down_blocks,
        [controlled.controlnet.controlnet_mid_block],
    )
    for layer in itertools.chain(*zero):
        torch.nn.init.normal_(layer.weight, std=0.02)  # so that control changes something
    masks = np.zeros((number, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    # without guidance by the mask, which takes another pass and which the pipeline does not have
    settings = Sampling(ddim_steps=steps, sample_batch=number, control_guidance=1.0)

    def own(precision):
        made = controlnet.sample(
            pipe, controlled, masks, [""] * number, settings, precision=precision
        )
        return np.stack(list(made))

    work = {}
    for precision in PRECISIONS:
        theirs = their_sampling(pipe, controlled, masks, steps, precision)
        work["ours", precision] = partial(own, precision)
        work["default", precision] = theirs
        work["equal", precision] = partial(theirs, guidance_scale=1.0)
    rates = {key: [] for key in work}
    made = {key: one() for key, one in work.items()}  # the first one is slower
    for _ in range(repeats):
        for key, one in work.items():
            rates[key].append(timed(number, one)[0])
    best = {key: max(PRECISIONS, key=lambda p, key=key: max(rates[key, p])) for key, _ in work}
    fastest = {key: max(rates[key, precision]) for key, precision in best.items()}
    apart = np.abs(made["ours", "no"] / 255 - made["equal", "no"]).mean() * 255
    rows = [
        (
            f"sampling, {name} ({best['ours']}): pipeline of diffusers, {said} ({best[key]})",
            fastest["ours"],
            fastest[key],
            "images/s",
        )
        for said, key in (("default guidance", "default"), ("equal guidance", "equal"))
    ]
    title = f"sampling, {name}: mean difference at equal guidance, float32 (limit 0.5)"
    return [*rows, (title, apart, 0.5, "of 255")]


def literal_pix2pixhd(examples, settings: Pix2PixHD, precision="no"):
    """A step of the original's order: three passes of the discriminator, two optimisers.

    In float32 as the original; in bf16 by autocast, and in channels_last.
    """
    generator, critic = pix2pixhd.networks(settings, 0).to(DEVICE)
    if precision != "no":
        generator.to(memory_format=torch.channels_last)
        critic.to(memory_format=torch.channels_last)
    cast = partial(torch.autocast, DEVICE.type, torch.bfloat16, enabled=precision != "no")
    adam = [
        torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (generator, critic)
    ]

    def step(number):
        real, condition = (x.to(DEVICE) for x in examples.batch(number, settings.batch, 0))
        with cast():
            fake = generator(condition)
            of_old = critic(torch.cat([condition, fake.detach()], 1))
            of_real = critic(torch.cat([condition, real], 1))
            of_fake = critic(torch.cat([condition, fake], 1))
            loss_d = (pix2pixhd.gan_loss(of_old, False) + pix2pixhd.gan_loss(of_real, True)) / 2
            loss_g = pix2pixhd.gan_loss(of_fake, True) + 10 * pix2pixhd.feature_matching_loss(
                of_fake, of_real, critic.n_layers
            )
        for optimiser, loss in zip(adam, (loss_g, loss_d), strict=True):
            optimiser.zero_grad()  # of the critic: what the generator's loss left there
            loss.backward()
            optimiser.step()

    return step


def pix2pixhd_rows(images, masks, settings: Pix2PixHD, steps, repeats):
    """Steps per second of our training against the literal loop, without a perceptual loss."""
    settings = settings.model_copy(update=dict(enhancers=0, lr=2e-4))
    examples, shared = pix2pixhd.Examples(images, masks), Training(save_every=10**9)
    ours, theirs = [], {precision: [] for precision in PRECISIONS}

    def seconds(number):
        own = settings.model_copy(update=dict(steps=number))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            pix2pixhd.train(examples, Path(folder), own, shared, {})
            return time.perf_counter() - start

    for _ in range(repeats):
        before = seconds(3)  # what every training costs once, its checkpoint included
        ours.append(steps / (seconds(3 + steps) - before))
        for precision, rates in theirs.items():
            step = literal_pix2pixhd(examples, settings, precision)
            for number in range(3):
                step(number)
            synchronise()
            start = time.perf_counter()
            for number in range(steps):
                step(number)
            synchronise()
            rates.append(steps / (time.perf_counter() - start))
    said = {"no": "literal float32 loop", "bf16": "the same in bf16, channels_last"}
    return [
        (f"Pix2PixHD training: {said[precision]}", max(ours), max(rates), "steps/s")
        for precision, rates in theirs.items()
    ]


def isic_shape(folder, settings: Base):
    """Stable Diffusion 1.5's autoencoder and text encoder with a UNet as small as the base's."""
    attention = settings.attention
    downs = ("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
    ups = ("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1])
    return sd15.pipeline(
        PROMPTS,
        folder,
        block_out_channels=tuple(settings.channels),
        layers_per_block=1,
        down_block_types=tuple(downs),
        up_block_types=tuple(ups),
        attention_head_dim=4,
        norm_num_groups=8,
        sample_size=32,
    )


def full_size_rows(folder) -> list[tuple]:
    """Rows of Stable Diffusion 1.5 itself, which needs a GPU."""
    if DEVICE.type != "cuda":
        none = float("nan")
        return [("Stable Diffusion 1.5, 512 px (GPU: not measured)", none, none, "")]
    pipe, name = sd15.pipeline(PROMPTS, folder / "whole"), "Stable Diffusion 1.5, 512 px"
    found = titled(name, training_rows(pipe, {"256 px": folder}, 512, 4, 10, 1))
    found += sampling_rows(name, pipe, 512, 4, 20, 1)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return [*found, ("peak memory of all this", peak, float("nan"), "GiB")]


def rows(repeats: int = 3) -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit), the best of alternating repeats.

    In the sizes of the preset isic with as many threads as its jobs have. For a smaller benchmark:
    `python -m benchmarks.generators REPEATS`.
    """
    settings = config.load("isic")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.jobs.threads)
    size, batch, name = settings.data.image_size, settings.controlnet.batch, "isic sizes"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole, shrunk = folder / "whole", folder / "shrunk"
        phantom.write_dataset(folder, 64, 256, workers=1)
        images, masks = arrays(folder, size)
        own = settings.base.model_copy(update={"reach": 0, "channels": WIDTHS})
        pipe = base.new(images, PROMPTS, folder / "small", own, 0)
        resized(folder, whole, ISIC)
        resized(folder, shrunk, (size, size))
        folders = {f"{size} px (already shrunk)": shrunk, "{}x{}".format(*ISIC): whole}
        found = titled(name, training_rows(pipe, folders, size, batch, 12, repeats))
        found += sampling_rows(name, pipe, size, 16, settings.sampling.ddim_steps, repeats)
        found += pix2pixhd_rows(images, masks, settings.pix2pixhd, 30, repeats)
        torch.set_num_threads(threads)
        pipe, name = isic_shape(folder / "shape", own), "SD 1.5's autoencoder and text encoder"
        flags = FLAGS if DEVICE.type == "cuda" else {"workers": FLAGS["workers"]}
        folders = {"256 px": folder}
        found += titled(name, training_rows(pipe, folders, 256, 4, 2, 1, flags, number=8))
        return found + full_size_rows(folder)


if __name__ == "__main__":
    found = pd.DataFrame(
        rows(*map(int, sys.argv[1:])), columns=["name", "ours", "reference", "unit"]
    )
    print(found.assign(ratio=found["ours"] / found["reference"]).to_string(index=False))
