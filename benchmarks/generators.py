"""Training and sampling of both generators against loops written as their references' are.

ControlNet: the loop of diffusers' examples/controlnet/train_controlnet.py, which decodes pictures
and runs autoencoder and text encoder in every step; sampling: StableDiffusionControlNetPipeline.
Pix2PixHD: the order of NVIDIA/pix2pixHD's training, in float32. The same weights' shapes, batch,
machine and run; what ours computes once (latents, embeddings) is done before the clock starts.
"""

import itertools
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import sd15
from lesionlib.data import phantom
from lesionlib.engine import settings as config
from lesionlib.engine import training
from lesionlib.generators import base, controlnet, latents, pix2pixhd

PROMPTS = ["a dermoscopic image of a nevus", "a dermoscopic image of a melanoma with streaks"]
DEVICE = training.device()
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


def enlarged(folder, target, size=ISIC):
    """Write the pictures of `folder` again at `size` (width, height): JPEG, quality 90."""
    for path in folder.rglob("ISIC*.*"):
        if path.suffix in (".jpg", ".png"):
            (target / path.parent.name).mkdir(parents=True, exist_ok=True)
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            how = cv2.INTER_CUBIC if path.suffix == ".jpg" else cv2.INTER_NEAREST
            picture = cv2.resize(picture, size, interpolation=how)
            how = [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else []
            cv2.imwrite(str(target / path.parent.name / path.name), picture, how)


def synchronise():
    """Wait for the accelerator, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def example_rate(pipe, folder, size, batch, steps, *, workers=0, to_none=False, precision="no"):
    """Samples per second of the loop of diffusers' example, with these of its flags."""
    unet, vae, encoder = (x.to(DEVICE) for x in (pipe.unet, pipe.vae, pipe.text_encoder))
    for part in (unet, vae, encoder):
        part.requires_grad_(False).to(memory_format=torch.contiguous_format)
    model = controlnet.new(pipe).controlnet.to(DEVICE, memory_format=torch.contiguous_format)
    unet.to(memory_format=torch.contiguous_format)
    accelerator = training.accelerator(precision)
    kind = {"no": torch.float32, "bf16": torch.bfloat16}[precision]
    for part in (unet, vae, encoder):
        part.to(dtype=kind) if precision != "no" else None
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)
    loader = DataLoader(
        Pictures(folder, size, pipe.tokenizer),
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    model, optimiser, loader, rates = accelerator.prepare(model, optimiser, loader, rates)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, (image, mask, ids) in enumerate(batches):
        if step == 2:
            synchronise()
            start = time.perf_counter()
        if step == 2 + steps:
            synchronise()
            break
        out = vae.encode(image.to(kind))
        z = out.latents if hasattr(out, "latents") else out.latent_dist.sample()
        z = z * vae.config.scaling_factor
        noise = torch.randn_like(z)
        t = torch.randint(0, pipe.scheduler.config.num_train_timesteps, (batch,), device=z.device)
        noisy = pipe.scheduler.add_noise(z.float(), noise.float(), t).to(kind)
        words = encoder(ids, return_dict=False)[0]
        down, middle = model(
            noisy, t, encoder_hidden_states=words, controlnet_cond=mask.to(kind), return_dict=False
        )
        predicted = unet(
            noisy,
            t,
            encoder_hidden_states=words,
            down_block_additional_residuals=[x.to(kind) for x in down],
            mid_block_additional_residual=middle.to(kind),
            return_dict=False,
        )[0]
        target = noise
        if pipe.scheduler.config.prediction_type == "v_prediction":
            target = pipe.scheduler.get_velocity(z, noise, t)
        loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        optimiser.zero_grad(set_to_none=to_none)
        loss.detach().item()  # for its progress bar
    rate = batch * steps / (time.perf_counter() - start)
    del loader
    for part in (unet, vae, encoder):
        part.to(dtype=torch.float32) if precision != "no" else None
    return rate


def our_rates(pipe, images, masks, prompts, batch, steps, precision="no"):
    """Samples per second of our training, the seconds, and those in forward and backward; even
    `steps`."""
    pipe.to(DEVICE)
    controlled, seen, busy, backward = controlnet.new(pipe), [], [], torch.Tensor.backward

    def clock(*_):
        synchronise()
        busy.append(time.perf_counter())

    def timed_backward(*given, **options):
        clock()
        backward(*given, **options)
        clock()

    def watch(_):
        synchronise()
        seen.append((time.perf_counter(), len(busy)))
        return {"seconds": seen[-1][0]}

    controlled.register_forward_pre_hook(clock)
    controlled.register_forward_hook(clock)
    torch.Tensor.backward = timed_backward
    try:
        with tempfile.TemporaryDirectory() as folder:
            z = latents.encode_images(pipe, images, Path(folder))
            controlnet.train(
                pipe,
                controlled,
                z,
                masks,
                prompts,
                Path(folder),
                steps=2 + steps,
                batch=batch,
                lr=5e-6,
                prompt_dropout=0.5,
                seed=0,
                record={},
                precision=precision,
                validate=watch,
                validate_every=2,
                save_every=10**9,
            )
    finally:
        torch.Tensor.backward = backward
    (start, first), (end, last) = seen[1], seen[-1]
    spans = np.diff(busy[first:last])[::2]
    return batch * steps / (end - start), end - start, spans.sum()


FLAGS = {"workers": dict(workers=2, to_none=True)}
FLAGS["workers, bf16"] = dict(FLAGS["workers"], precision="bf16")


def training_rows(name, pipe, folders, size, batch, steps, repeats, flags=FLAGS, number=None):
    """Rows for one base: against the example's defaults, its best flags, and the limit.

    `folders` of pictures by what is said of them: the example decodes them in every step. `number`
    images for ours, whose latents are made before the clock starts (default: all).
    """
    folder = next(iter(folders.values()))
    images, masks = (array[:number] for array in arrays(folder, size))
    prompts = [PROMPTS[i % 2] for i in range(len(images))]
    precision = "bf16" if DEVICE.type == "cuda" else "no"
    flags = {"defaults": {}} | flags
    ours, shares, theirs = [], [], {(kind, key): [] for kind in folders for key in flags}
    for _ in range(repeats):
        rate, *seconds = our_rates(pipe, images, masks, prompts, batch, steps, precision)
        ours.append(rate)
        shares.append(seconds)
        for kind, key in theirs:
            slow = flags[key].get("precision") and DEVICE.type == "cpu"  # once is enough to see it
            if slow and (len(ours) > 1 or folders[kind] is not folder):
                continue
            theirs[kind, key].append(
                example_rate(pipe, folders[kind], size, batch, steps, **flags[key])
            )
    whole, both = min(shares)
    title = f"ControlNet training, {name}"
    rows = [(f"{title}: seconds of all in forward + backward", both, whole, "s")]
    for kind in folders:
        tuned = [key for key in list(flags)[1:] if theirs[kind, key]]
        best = max(tuned, key=lambda key, kind=kind: max(theirs[kind, key]))
        for said, key in (("defaults", "defaults"), (f"best flags ({best})", best)):
            rows.append(
                (
                    f"{title}, {kind}: example's {said}",
                    max(ours),
                    max(theirs[kind, key]),
                    "samples/s",
                )
            )
    return rows


def sampling_rows(name, pipe, size, number, steps, repeats):
    """Images per second against the pipeline of diffusers at its default guidance."""
    pipe.to(DEVICE)
    controlled = controlnet.new(pipe, 0).eval()
    zero = (
        controlled.controlnet.controlnet_down_blocks,
        [controlled.controlnet.controlnet_mid_block],
    )
    for layer in itertools.chain(*zero):
        torch.nn.init.normal_(layer.weight, std=0.02)  # so that control changes something
    masks = np.zeros((number, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    side = size // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, side, side)
    noise = torch.stack(
        [torch.randn(shape, generator=training.generator_at(0, i)) for i in range(number)]
    ).to(DEVICE)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    theirs = StableDiffusionControlNetPipeline(
        **parts, controlnet=controlled.controlnet, requires_safety_checker=False
    )
    theirs.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs.set_progress_bar_config(disable=True)

    def timed(work):
        synchronise()
        start = time.perf_counter()
        images = work()
        synchronise()
        return number / (time.perf_counter() - start), images

    def reference(**options):
        return timed(
            lambda: (
                theirs(
                    [""] * number,
                    controlnet.hint(masks).to(DEVICE),
                    latents=noise,
                    num_inference_steps=steps,
                    output_type="np",
                    **options,
                ).images
            )
        )

    def own():
        return timed(
            lambda: np.stack(
                list(
                    controlnet.sample(
                        pipe, controlled, masks, [""] * number, steps=steps, batch=number
                    )
                )
            )
        )

    ours, default = [], []
    for _ in range(repeats):
        rate, images = own()
        ours.append(rate)
        default.append(reference()[0])
    same = reference(guidance_scale=1.0)[1]
    apart = np.abs(images / 255 - same).mean() * 255
    return [
        (f"sampling, {name}: pipeline of diffusers", max(ours), max(default), "images/s"),
        (f"sampling, {name}: mean difference at equal guidance (limit 2)", apart, 2.0, "of 255"),
    ]


def literal_pix2pixhd(images, masks, batch, sizes, disc_channels):
    """A step of the original's order: three passes of the discriminator, two optimisers."""
    generator, critic = pix2pixhd.networks(*sizes, disc_channels, 2, 0)
    generator.to(DEVICE)
    critic.to(DEVICE)
    adam = [
        torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (generator, critic)
    ]

    def step(number):
        pair = pix2pixhd.batch_of(images, masks, number, batch, 0)
        real, condition = (x.to(DEVICE) for x in pair)
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


def pix2pixhd_row(images, masks, settings, steps, repeats):
    """Steps per second of our training against the literal float32 loop."""
    sizes = [settings[f"pix2pixhd_{k}"] for k in ("channels", "downsample", "blocks")]
    critic, batch = settings["pix2pixhd_disc_channels"], settings["pix2pixhd_batch"]
    ours, theirs = [], []

    def seconds(number):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            pix2pixhd.train(
                images,
                masks,
                Path(folder),
                steps=number,
                batch=batch,
                base_channels=sizes[0],
                n_downsample=sizes[1],
                n_blocks=sizes[2],
                disc_channels=critic,
                seed=0,
                record={},
                device=DEVICE,
                save_every=10**9,
            )
            return time.perf_counter() - start

    for _ in range(repeats):
        before = seconds(3)  # what every training costs once, its checkpoint included
        ours.append(steps / (seconds(3 + steps) - before))
        step = literal_pix2pixhd(images, masks, batch, sizes, critic)
        for number in range(3):
            step(number)
        synchronise()
        start = time.perf_counter()
        for number in range(steps):
            step(number)
        synchronise()
        theirs.append(steps / (time.perf_counter() - start))
    return [("Pix2PixHD training: literal float32 loop", max(ours), max(theirs), "steps/s")]


def rows(repeats: int = 3) -> list[tuple[str, float, float, str]]:
    """(name, ours, reference, unit), the best of alternating repeats.

    In the sizes of the preset isic with as many threads as its jobs have.
    """
    settings, found = config.load("isic"), []
    threads = torch.get_num_threads()
    torch.set_num_threads(settings["threads"])
    size, batch = settings["image_size"], settings["controlnet_batch"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        phantom.write_dataset(folder, 64, 256, workers=1)
        images, masks = arrays(folder, size)
        pipe = base.new(
            images,
            PROMPTS,
            folder / "small",
            latent_channels=settings["base_latent_channels"],
            patch=settings["base_patch"],
            whitening=settings["base_whitening"],
            channels=settings["base_channels"],
            attention=settings["base_attention"],
            text_width=settings["base_text_width"],
            seed=0,
        )
        large = folder / "large"
        enlarged(folder, large)
        folders = {"256 px": folder, "{}x{}".format(*ISIC): large}
        found += training_rows("isic sizes", pipe, folders, size, batch, 12, repeats)
        found += sampling_rows("isic sizes", pipe, size, 16, settings["ddim_steps"], repeats)
        found += pix2pixhd_row(images, masks, settings, 30, repeats)
        torch.set_num_threads(threads)
        attention = settings["base_attention"]
        kinds = ("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
        ups = ("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1])
        pipe = sd15.pipeline(
            PROMPTS,
            folder / "shape",
            block_out_channels=tuple(settings["base_channels"]),
            layers_per_block=1,
            down_block_types=tuple(kinds),
            up_block_types=tuple(ups),
            attention_head_dim=4,
            norm_num_groups=8,
            sample_size=32,
        )
        name = "SD 1.5's autoencoder and text encoder"
        flags = FLAGS if DEVICE.type == "cuda" else {"workers": FLAGS["workers"]}
        found += training_rows(name, pipe, {"256 px": folder}, 256, 4, 2, 1, flags, number=8)
        if DEVICE.type == "cuda":
            pipe = sd15.pipeline(PROMPTS, folder / "whole")
            name = "Stable Diffusion 1.5, 512 px"
            found += training_rows(name, pipe, {"256 px": folder}, 512, 4, 10, 1)
            found += sampling_rows(name, pipe, 512, 4, 20, 1)
            peak = torch.cuda.max_memory_allocated() / 2**30
            found.append(("peak memory of all this", peak, float("nan"), "GiB"))
        else:
            none = float("nan")
            found.append(("Stable Diffusion 1.5, 512 px (GPU: not measured)", none, none, ""))
    return found
