"""What a unit of each kind of work costs on a GPU that is not at hand: counted, not tried.

Networks of the run's shapes compute nothing ("meta" tensors of PyTorch), and each operation takes
the longest of three: its floating-point operations, the bytes that it reads and writes, and the
launch of a kernel (a roofline). Rates are those of the card's data sheet times COMPUTE and MEMORY,
the shares of them that are reached. These and LAUNCH are fitted to the 17 training steps of the
presets isic-gpu and paper as tried on one H200 (docs/cost.md has them); other cards are assumed to
reach as much. Everything is counted in bf16, in PyTorch without compilation; the matrix of an
attention stays on the chip.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import ref

import torch
from diffusers.utils import logging
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

from lesionlib.evaluation import attributes
from lesionlib.generators import base, controlnet, pix2pixhd
from lesionlib.generators.budget import pix2pixhd_settings
from lesionlib.segmentation import networks, reference
from lesionlib.workflow import probe

META, BF16 = torch.device("meta"), torch.bfloat16
COMPUTE, MEMORY = 0.17, 0.3  # shares of the data sheet's rates that are reached
LAUNCH = 29e-6  # seconds of an operation, however small it is
WORKSPACE = 1.5  # memory used over memory counted: 1.3 to 1.9 in segmentation networks of `paper`
ON_CHIP = ("bmm", "_safe_softmax", "_softmax", "_softmax_backward_data")  # of an attention
FREE = ("_unsafe_view", "empty", "empty_like", "new_empty")  # operations without a kernel


@dataclass(frozen=True)
class Card:
    """A GPU: dense bf16 operations (32-bit sums) and bytes per second, memory in bytes, source."""

    name: str
    flops: float
    bytes: float
    memory: float
    source: str


CARDS = {
    "h100": Card("NVIDIA H100 SXM", 989e12, 3.35e12, 80e9, "H100 data sheet"),
    "h200": Card("NVIDIA H200 SXM", 989e12, 4.8e12, 141e9, "H200 data sheet"),
    "a100": Card("NVIDIA A100 SXM 80 GB", 312e12, 2.039e12, 80e9, "A100 80 GB data sheet"),
    "l40s": Card("NVIDIA L40S", 362e12, 0.864e12, 48e9, "L40S data sheet"),
    "rtx4090": Card("NVIDIA RTX 4090", 165e12, 1.008e12, 24e9, "Ada architecture white paper"),
    "rtx3090": Card("NVIDIA RTX 3090", 71e12, 0.936e12, 24e9, "GA102 architecture white paper"),
}


class Roofline(TorchDispatchMode):
    """Adds up what the operations within this block would take on a card, and their memory."""

    def __init__(self, card: Card):
        super().__init__()
        self.card, self.seconds, self.flops = card, 0.0, 0
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet, made = func._overloadpacket, tensors(out)
        for x in made:
            self._keep(x.untyped_storage())
        flops = operations(packet, args, kwargs, out)
        if not func.is_view and packet.__name__ not in FREE:
            seen = [] if packet.__name__ in ON_CHIP else [*tensors((args, kwargs)), *made]
            moved = sum(x.numel() * x.element_size() for x in seen)
            card = self.card
            times = flops / card.flops / COMPUTE, moved / card.bytes / MEMORY, LAUNCH
            self.seconds, self.flops = self.seconds + max(times), self.flops + flops
        return out

    def _keep(self, storage):
        """Note the memory of a tensor, until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:

            def forget(_):
                self.now -= size
                del self.alive[key]

            self.alive[key] = ref(storage, forget)
            self.now += size
            self.peak = max(self.peak, self.now)


def operations(packet, args, kwargs, out) -> int:
    """Floating-point operations of an operation, a multiplication and its addition being two."""
    if packet is torch.ops.aten.convolution_backward:  # PyTorch's own count forgets groups
        made, x, weight = (tensor.shape for tensor in args[:3])
        once = conv_flop_count(x, weight, made, transposed=args[7])
        return once * sum(args[10][:2])
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def tensors(values) -> list[torch.Tensor]:
    """The tensors in nested values."""
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


class NoValues(TorchFunctionMode):
    """Within this block the value of a tensor is 0: meta tensors have none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.item and args[0].is_meta:
            return 0.0
        return func(*args, **(kwargs or {}))


@dataclass
class Count:
    """Networks of a run that are counted on a card; `found` gets the seconds of each unit."""

    settings: object
    card: Card
    folder: object

    def __post_init__(self):
        self.found, self.sizes, self.flops, self.memory = {}, {}, {}, {}

    def step(self, unit: str, model, loss, share: int = 1):
        """Count a training step: `loss`, its gradients, and AdamW."""
        learnt = [p for p in model.parameters() if p.requires_grad]
        optimiser, line = torch.optim.AdamW(learnt, foreach=True), Roofline(self.card)
        with NoValues(), line:
            value = loss()
            if value is not None:
                value.backward()
            optimiser.step()
        self._note(unit, line, 1, model)

    def forward(self, unit: str, model, work, share: int):
        """Count what `work` computes without gradients, as `share` units."""
        with torch.no_grad(), Roofline(self.card) as line:
            work()
        self._note(unit, line, share, model)

    def _note(self, unit, line, share, model):
        self.found[unit] = line.seconds / share
        self.flops[unit] = line.flops / share
        # in a training the weights, gradients and moments are of 32 bits, here of 16
        more = sum(p.numel() * (8 if p.requires_grad else 2) for p in model.parameters())
        weights = sum(p.numel() * 2 for p in model.parameters())
        self.memory[unit] = WORKSPACE * (line.peak + weights + more)


def empty(*shape) -> torch.Tensor:
    """A tensor of this shape without values."""
    return torch.empty(shape, device=META, dtype=BF16)


def whole(*shape) -> torch.Tensor:
    """The same of integers."""
    return torch.empty(shape, device=META, dtype=torch.long)


def count_diffusion(count: Count):
    """Base and ControlNet: training, sampling, encoding and decoding."""
    own, sampling = count.settings.controlnet, count.settings.sampling
    size = count.settings.data.image_size
    pipe = probe.pipeline(count.settings, count.folder, META)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.to(BF16).requires_grad_(False)
    config, side = pipe.unet.config, size // pipe.vae_scale_factor
    tokens = pipe.tokenizer.model_max_length

    def latents(n):
        return empty(n, config.in_channels, side, side), whole(n)

    def text(n):
        return empty(n, tokens, config.cross_attention_dim)

    with META:
        controlled = controlnet.new(pipe, locked=own.locked, middle_only=own.middle_only).to(BF16)
    controlled.controlnet.requires_grad_(True)
    count.sizes |= probe.diffusion_sizes(pipe, controlled, size)
    n, guided = sampling.sample_batch, whole(sampling.sample_batch * (sampling.guidance != 1))
    with torch.no_grad(), controlled.embedded(empty(n, 3, size, size)) as hints:
        denoise = controlnet.guide(controlled, text(n), hints, guided, text(len(guided)), sampling)
        passes = n * probe.rows(sampling, True, True)
        count.forward("denoised", controlled, lambda: denoise(latents(n)[0], whole()), passes)
    picture = empty(1, 3, size, size)
    count.forward("encoded", pipe.vae, lambda: pipe.vae.encode(picture), 1)
    count.forward("decoded", pipe.vae, lambda: pipe.vae.decode(latents(1)[0]), 1)
    if not own.model:
        if count.settings.training.gradient_checkpointing:
            controlled.unet.enable_gradient_checkpointing()
            controlled.controlnet.enable_gradient_checkpointing()
        n, hints = own.batch, empty(own.batch, 3, size, size)
        controlled.train()
        count.step("controlnet", controlled, lambda: controlled(*latents(n), text(n), hints).mean())
    if count.settings.base.is_trained:
        n = count.settings.base.batch
        model = base.Denoiser(pipe.unet, pipe.text_encoder).requires_grad_(True)
        count.step("base", model, lambda: model(*latents(n), whole(n, tokens)).mean())


class Plain(pix2pixhd.Terms):
    """Terms of a step without mixed precision, which meta tensors do not know."""

    def autocast(self, device_type: str):
        return nullcontext()


def count_gan(count: Count, name: str):
    """Pix2PixHD or Pix2PixHD+: the stages of its training, and translation."""
    own, size, n = pix2pixhd_settings(count.settings), count.settings.data.image_size, 0
    plus, n = name == "pix2pixhd_plus", own.batch
    with META:
        vgg = probe.perceptual(own.vgg)
    vgg = vgg and vgg.to(META, BF16)
    for ending in probe.gan_stages(count.settings):
        number = own.enhancers if ending else 0
        side = size if ending else size // 2**own.enhancers
        with META:
            both = pix2pixhd.networks(own, 0, plus, number).to(BF16)
        terms = Plain(vgg=vgg, vgg_images=own.vgg_images, diversity=own.diversity)
        noise = empty(n + (n + 1) // 2, own.noise) if plus else None
        real, condition = empty(n, 3, side, side), empty(n, 2, side, side)
        arguments = *both, real, condition, terms, noise

        def losses(arguments=arguments):
            pix2pixhd.gradients(*arguments)

        count.step(name + ending, both, losses)
    made = (empty(16, 2, size, size), empty(16, own.noise) if plus else None)
    count.forward(f"{name} image", both, lambda: both[0](*made), 16)
    sizes = probe.size_of(both), probe.size_of(both[0])
    count.sizes |= dict(zip((name, f"{name} generator"), sizes, strict=True))


def count_network(count: Count, unit: str, network: str, recipe, size: int):
    """A segmentation network: training, and prediction."""
    n = max(2, recipe.batch)
    with META:
        model = networks.build(network, recipe.encoder, recipe.decoder).to(BF16)
    images, masks = empty(n, 3, size, size), empty(n, 1, size, size)
    count.step(unit, model, lambda: networks.dice_loss(model(images).float(), masks.float()))
    count.forward(f"{unit} image", model, lambda: model(images), n)
    count.sizes[unit] = probe.size_of(model)


def count_judged(count: Count):
    """The networks that judge an image, after `count_network` of "reference"; features: Lite0's."""
    import timm  # slow import, needed only here

    with META:
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False).to(BF16)
    images = empty(64, 3, 128, 128)  # as `distribution.imagenet_features`
    count.forward("features", model, lambda: model.forward_features(images), len(images))
    count.found["judged"] = count.found["reference image"] + count.found["features"]


def count_classifier(count: Count):
    """The attribute classifier: training."""
    import timm  # slow import, needed only here

    size = count.settings.data.image_size
    with META:
        model = timm.create_model(attributes.NETWORK, pretrained=False, num_classes=8).to(BF16)
    images = empty(attributes.BATCH, 3, size, size)
    count.step("classifier", model, lambda: model(images).float().mean())


def counted(settings, card: Card, folder) -> dict:
    """Seconds of each unit on the card, in the form of `probe.tried`, with the memory of each."""
    count, own = Count(settings, card, folder), settings.segmentation
    logging.set_verbosity_error()  # of diffusers, on types that count nowhere here
    with warnings.catch_warnings(), probe.silence():
        warnings.simplefilter("ignore")  # weights are not loaded into meta tensors
        count_diffusion(count)
        for name in settings.design.methods:
            if name != "controlnet":
                count_gan(count, name)
        for name in own.networks:
            recipe = probe.recipe_of(name, own)
            count_network(count, name, name, recipe, own.segmentation_size)
        recipe = reference.recipe(settings.reference, settings.augmentation)
        count_network(count, "reference", "unet", recipe, settings.reference.size)
        count_judged(count)
        count_classifier(count)
    return {
        "seconds": count.found,
        "parameters": count.sizes,
        "gpu": {unit: size / 1e9 for unit, size in count.memory.items()},
        "flops": count.flops,
    }
