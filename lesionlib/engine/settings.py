"""Every setting of the study, stated once: type, unit, bounds, default and meaning.

The defaults are the preset `quick`; a preset (config/NAME.yaml) states only what it changes. On the
command line and in YAML a setting goes by its flat key, the prefix of its group and its name
(`controlnet_steps` is `settings.controlnet.steps`).

`python -m lesionlib.engine.settings PRESET` prints a preset's settings as YAML; with `--docs`
instead of a preset it writes docs/settings.
"""

import difflib
import re
import sys
import textwrap
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import ROOT

FOLDER = ROOT / "config"
SMALL = "models/small"  # the base that comes with the repository, made by models/pretrain.py
LISTING = "./run_all.sh --help-settings lists all settings"
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false"}


def setting(default, meaning: str, *, unit: str = "", neutral: bool = False, **bounds) -> Any:
    """A field of a group: its default, one sentence of meaning, and pydantic's bounds.

    `neutral`: the setting does not determine the bytes of any result (see `Group.determining`).
    """
    extra = {"unit": unit, "neutral": neutral}
    return Field(default, description=meaning, json_schema_extra=extra, **bounds)


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("an entry occurs twice")
    return values


def _named(pattern: str):
    """A validator of mappings whose keys must match a pattern."""

    def check(values: dict) -> dict:
        for name in values:
            if not re.fullmatch(pattern, name):
                raise ValueError(f"'{name}' is not a valid name")
        return values

    return AfterValidator(check)


DISTINCT = (AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True}))
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[int, Field(ge=1, le=100)]
Factor = Annotated[float, Field(gt=0)]
AugmentedTraining = Literal["base", "controlnet", "pix2pixhd", "reference", "classifier"]
Network = Literal["unet", "unet_imagenet", "dcsaunet"]
Source = Literal[
    "phantom",
    "isic",
    "folders",
    "ham10000",
    "ph2",
    "isic2016",
    "isic2017",
    "isic2018",
    "isic_archive",
]
Arm = Literal[
    "table",
    "steps",
    "real_pairs",
    "shuffled",
    "classical",
    "low_data",
    "synthetic_only",
    "masks",
    "prompts",
    "filtered",
    "mixing",
    "base",
    "plus",
]
GeneratorFolders = Annotated[
    dict[str, str],
    _named(
        r"(?!real$|real_pairs$|classical$|base$|pix2pixhd|controlnet|.*_seed\d+$)[a-z][a-z0-9_]*"
        r"(?<!_best)(?<!_shuffled)(?<!_first)(?<!_mixed)"
    ),
    Field(
        json_schema_extra={
            "names": "lower-case letters, digits and _, not real, real_pairs, classical or base, "
            "not beginning with controlnet or pix2pixhd, not ending in _best, _shuffled, _first, "
            "_mixed or _seed and a number"
        }
    ),
]
TestFolders = Annotated[
    dict[str, str],
    _named(r"(?!S-)[A-Za-z][A-Za-z0-9_.]*"),
    Field(json_schema_extra={"names": "a letter, then letters, digits, _ and ."}),
]


class Group(BaseModel):
    """Settings of one stage; their flat keys begin with `prefix`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    prefix: ClassVar[str] = ""

    def determining(self) -> dict:
        """The settings that determine results (JSON values), without the neutral ones."""
        names = {
            name
            for name, field in type(self).model_fields.items()
            if not field.json_schema_extra["neutral"]
        }
        return self.model_dump(mode="json", include=names)


class Data(Group):
    """Images, their preparation, split and prompts (notebook 01)."""

    source: Source = setting(
        "phantom",
        "Source of the images: procedural ones (phantom), the ISIC downloads (isic), your own "
        "folders, or a public source as it was unpacked, which is also recognised in images.",
    )
    images: str = setting("", "Folder of the images, or of a public source (--images).")
    masks: str = setting("", "Folder of the masks, if not in that of the images (--masks).")
    table: str = setting("", "CSV of labels, or folder of ISIC tables (--table).")
    lesion_value: int = setting(
        -1,
        "Value of the lesion in your masks (--lesion-value); -1 takes the brighter of two.",
        ge=-1,
    )
    invert_masks: bool = setting(
        False, "Whether the lesion is what your masks do not mark (--invert-masks)."
    )
    isic_root: str = setting(
        "data/isic", "Folder of the unpacked ISIC downloads, for the source isic."
    )
    phantoms: int = setting(260, "Number of procedural images, for the source phantom.", ge=1)
    phantom_size: int = setting(
        128, "Side of the procedural images that are written.", unit="pixels", ge=1
    )
    data_seed: int = setting(0, "Seed of the procedural images.", ge=0)
    bad_inputs: Literal["skip", "stop"] = setting(
        "skip",
        "Treatment of unusable images: skip quarantines them, stop ends the run with an error.",
    )
    image_size: int = setting(
        64, "Side of the square images (not stated in the paper).", unit="pixels", ge=1
    )
    fit: Literal["squash", "letterbox", "crop"] = setting(
        "squash",
        "How an image becomes square: squash its sides, letterbox (pad) it, or crop its centre.",
    )
    split: str = setting(
        "grouped",
        "Split of the images: grouped (random, but all images of a lesion or picture in one part), "
        "paper (uniformly random), official (that of the source), or the path of a CSV.",
    )
    split_seed: int = setting(0, "Seed of the random split into G, S-train, S-val, S-test.", ge=0)
    generator_share: float = setting(
        0.6145, "Share of the images in G; in the paper 1,594 of 2,594.", gt=0, lt=1
    )
    prompt: Literal["full", "diagnosis", "empty"] = setting(
        "full",
        "Training prompts: full (diagnosis, attributes, prompt_details), the diagnosis, or empty.",
    )
    prompt_details: Annotated[list[Literal["size", "position", "site", "person"]], *DISTINCT] = (
        setting([], "Further details that full prompts include.")
    )
    external_tests: TestFolders = setting(
        {}, "Further test sets, NAME: folder or IMAGES:MASKS (--external NAME=DIR)."
    )


class Design(Group):
    """What the study compares."""

    methods: Annotated[list[Literal["controlnet", "pix2pixhd", "pix2pixhd_plus"]], *DISTINCT] = (
        setting(
            ["controlnet", "pix2pixhd", "pix2pixhd_plus"],
            "Generators that are compared; pix2pixhd_plus, ours, is in Table 2 with the arm plus.",
            min_length=1,
        )
    )
    external_generators: GeneratorFolders = setting(
        {}, "Synthetic pairs of other generators, NAME: folder (--synthetic NAME=DIR)."
    )
    synthetic_amounts: Annotated[list[Count], *DISTINCT] = setting(
        [60],
        "Numbers of synthetic pairs added to S-train (paper: 1,000, 3,000, 5,000, which are 1.43, "
        "4.3 and 7.1 times S-train).",
        unit="pairs",
        min_length=1,
    )
    arms: Annotated[list[Arm], *DISTINCT] = setting(
        ["table", "steps", "real_pairs", "shuffled", "classical", "low_data"],
        "Groups of segmentation trainings that run; lesionlib.segmentation.grid describes them.",
        min_length=1,
    )
    mask_mode: Literal["paper", "real", "fitted"] = setting(
        "paper",
        "Masks of the synthetic images: the paper's automatic recipe (paper), transformed masks of "
        "G (real), or shapes fitted to those of G (fitted).",
    )
    example_seed: int = setting(
        0, "Seed of the choice of example images, one from each quarter of lesion areas.", ge=0
    )


class Masks(Group):
    """Masks and prompts of the synthetic images (notebook 02)."""

    mask_samples: int = setting(
        150, "Masks of each mode that are compared with real ones.", unit="masks", ge=1
    )
    mask_seed: int = setting(0, "Seed of the masks and of the prompts drawn for them.", ge=0)
    prompt_draw: str = setting(
        "joint",
        "Labels in the prompts of the synthetic images: joint (as frequent as in G), uniform "
        "(every combination equally often), or the path of a CSV of labels with weights.",
    )


class Augmentation(Group):
    """Paired geometric augmentation of images and masks (notebooks 02 to 04)."""

    prefix: ClassVar[str] = "augment_"
    trainings: Annotated[list[AugmentedTraining], *DISTINCT] = setting(
        ["base", "controlnet", "pix2pixhd", "reference", "classifier"],
        "Trainings with warped images and masks (not stated in the paper); the others see the "
        "eight orientations only.",
    )
    share: float = setting(
        0.7,
        "Share of the draws that are warped; the others are merely oriented. So are, for base and "
        "ControlNet, all copies of images whose border is not skin all around.",
        ge=0,
        le=1,
    )
    angle: float = setting(180.0, "Largest rotation.", unit="degrees", ge=0, le=180)
    scale: Annotated[list[Factor], Field(min_length=2, max_length=2)] = setting(
        [0.45, 1.25], "Smallest and largest factor on the size of the lesion."
    )
    shift: float = setting(0.32, "Largest shift per axis.", unit="image sizes", ge=0, le=1)
    variants: int = setting(10, "Warped copies of each image whose latents are kept on disk.", ge=1)

    def applied(self, training: AugmentedTraining) -> dict:
        """What determines the warps of a training; nothing if it sees orientations only."""
        if training not in self.trainings:
            return {}
        kept = training in ("base", "controlnet")  # the others draw anew at every step
        unread = {"trainings"} if kept else {"trainings", "variants"}
        return {name: value for name, value in self.determining().items() if name not in unread}


class Reference(Group):
    """The reference segmenter, a U-Net that locates generated lesions (notebook 02)."""

    prefix: ClassVar[str] = "reference_"
    size: int = setting(32, "Side of its input images.", unit="pixels", ge=1)
    encoder: str = setting(
        "tu-resnet10t", "Encoder of segmentation-models-pytorch, without pretrained weights."
    )
    decoder: list[Count] = setting(
        [64, 48, 32, 16],
        "Decoder widths from deep to shallow; the encoder has as many halvings.",
        unit="channels",
        min_length=1,
    )
    steps: int = setting(700, "Length of its training.", unit="optimiser steps", ge=1)
    batch: int = setting(16, "Images per training step.", unit="images", ge=1)
    lr: float = setting(3.0e-3, "Learning rate of Adam, with cosine decay.", gt=0)
    precision: Literal["auto", "no", "bf16"] = setting(
        "auto", "Mixed precision of its training, as that of the generators."
    )
    seed: int = setting(0, "Seed of its training.", ge=0)
    colour: float = setting(
        0.1, "Largest change of brightness, contrast and saturation in training.", ge=0, lt=1
    )
    moved: int = setting(
        300,
        "Real images that are moved to the places and sizes of the synthetic pairs' masks, at most "
        "one for each: how well it locates lesions there.",
        unit="images",
        ge=1,
    )
    distractor: float = setting(
        0.01,
        "Smallest share of the image of a lesion-like region outside the mask that counts as a "
        "distractor.",
        gt=0,
        le=1,
    )


class Base(Group):
    """The diffusion base model (notebook 03)."""

    prefix: ClassVar[str] = "base_"
    model: str = setting(
        "small",
        "Diffusers directory or hub id of the base; small is that of this repository, pretrained "
        "on procedural images; if empty, a small base is trained from scratch on G.",
    )
    finetune: bool = setting(
        False, "Whether the named base is first trained further on G, in this run."
    )
    latent_channels: int = setting(8, "Principal components kept of each image patch.", ge=1)
    patch: Literal[1, 2, 4, 8] = setting(
        4, "Side of the image patch that becomes one latent pixel.", unit="pixels"
    )
    whitening: float = setting(
        0.5,
        "Scaling of the components: 0 keeps their natural scale, 1 gives all unit variance.",
        ge=0,
        le=1,
    )
    reach: int = setting(
        1, "Neighbours on each side that the decoder of a patch uses.", unit="patches", ge=0, le=2
    )
    channels: list[Count] = setting(
        [64, 96, 128],
        "Widths of the UNet, from the image to the middle (multiples of 8).",
        unit="channels",
        min_length=1,
    )
    attention: list[bool] = setting(
        [False, False, True], "Whether each of these levels attends to the prompt.", min_length=1
    )
    text_width: int = setting(
        64, "Width of the text encoder (a multiple of 4).", unit="channels", ge=1
    )
    text_pooled: bool = setting(
        False, "Whether the pooled prompt is also added to the embedding of the timestep."
    )
    text_tokens: int = setting(
        77, "Length to which its prompts are padded; longer ones are rejected.", unit="tokens", ge=2
    )
    steps: int = setting(2000, "Length of its training.", unit="optimiser steps", ge=1)
    batch: int = setting(32, "Images per training step.", unit="images", ge=1)
    lr: float = setting(1.0e-3, "Peak learning rate of AdamW, with warm-up and cosine decay.", gt=0)
    prompt_dropout: float = setting(0.2, "Share of training prompts that are emptied.", ge=0, le=1)

    @property
    def path(self) -> str:
        """The named base as a path, if it is one."""
        return SMALL if self.model == "small" else self.model

    @property
    def is_trained(self) -> bool:
        """Whether the base is trained in this run, from scratch or further."""
        return self.finetune or not self.model


class Training(Group):
    """Training of base and ControlNet; seed, precision and checkpoints also of Pix2PixHD."""

    generator_seeds: Annotated[list[Seed], *DISTINCT] = setting(
        [0],
        "Seeds of all generators: initialisation, data order and noise, of Pix2PixHD also the "
        "warps. Each entry trains every generator once, on the base of the first.",
        min_length=1,
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto",
        "Mixed precision of the generators and of the attribute classifier: no is 32-bit, auto is "
        "bf16 where it is faster (GPUs, CPUs with avx512_bf16 or AMX).",
    )
    ema: float = setting(
        0.99, "Decay of the moving average of base and ControlNet weights; 0 is none.", ge=0, le=1
    )
    min_snr: float = setting(
        0.0, "Min-SNR weighting of their loss (Hang et al. 2023: 5); 0 is none.", ge=0
    )
    warmup: float = setting(
        0.1, "Share of the steps during which the learning rate rises.", ge=0, le=1
    )
    gradient_clip: float = setting(1.0, "Norm to which gradients are clipped.", ge=0)
    save_every: int = setting(
        200, "Interval of the generators' checkpoints.", unit="optimiser steps", neutral=True, ge=1
    )
    gradient_checkpointing: bool = setting(
        False, "Whether training saves memory at the cost of about a third more time.", neutral=True
    )
    launch: str = setting(
        "",
        "Command that starts the training, such as accelerate launch; if empty, the notebook's "
        "kernel trains.",
        neutral=True,
    )

    @property
    def generator_seed(self) -> int:
        """The first seed, that of the base and of the generators that Table 2 uses."""
        return self.generator_seeds[0]


class ControlNet(Group):
    """The ControlNet (notebook 03)."""

    prefix: ClassVar[str] = "controlnet_"
    steps: int = setting(150, "Length of its training.", unit="optimiser steps", ge=1)
    batch: int = setting(32, "Images per gradient.", unit="images", ge=1)
    accumulate: int = setting(1, "Gradients averaged per optimiser step.", ge=1)
    lr: float = setting(3.0e-3, "Peak learning rate of AdamW.", gt=0)
    decay: Literal["cosine", "constant"] = setting(
        "cosine",
        "Course of the learning rate: cosine falls to zero, constant is as in the reference code.",
    )
    prompt_dropout: float = setting(
        0.5,
        "Share of training prompts that are emptied; evaluation uses the empty prompt.",
        ge=0,
        le=1,
    )
    model: str = setting(
        "",
        "A trained ControlNet to be evaluated as it is, a directory of diffusers or a hub id, on "
        "the base_model that it was trained on; if empty, one is trained.",
        neutral=True,  # the weights have the digest of what it names in their key
    )
    locked: bool = setting(
        True,
        "Whether the base stays fixed; if false, its decoder is trained too (sd_locked of the "
        "reference code).",
    )
    middle_only: bool = setting(False, "Whether the control enters the middle block only.")


class Validation(Group):
    """Validation during the ControlNet's training (notebook 03)."""

    validate_every: int = setting(
        50, "Interval of validations on S-val.", unit="optimiser steps", neutral=True, ge=1
    )
    validation_samples: int = setting(
        8, "Images sampled at each validation.", unit="images", neutral=True, ge=1
    )


class Sampling(Group):
    """Sampling of the diffusion models (notebook 03)."""

    ddim_steps: int = setting(12, "Number of DDIM steps.", unit="steps", ge=1)
    ddim_eta: float = setting(
        0.0, "Noise in each DDIM step: 0 is deterministic, 1 is as much as DDPM.", ge=0, le=1
    )
    guidance: float = setting(
        1.0, "Scale of classifier-free guidance; 1 needs no second pass.", ge=0
    )
    control_guidance: float = setting(
        1.5,
        "Scale of guidance by the mask: the prediction without control + scale x the difference; 1 "
        "needs no further pass.",
        ge=0,
    )
    conditioning_scale: float = setting(
        1.0, "Factor on what the ControlNet adds to the base, at no cost; 1 is as trained.", ge=0
    )
    sample_batch: int = setting(32, "Images sampled at once.", unit="images", neutral=True, ge=1)
    sample_seed: int = setting(0, "Seed of the initial noise.", ge=0)
    diversity_samples: int = setting(
        4, "Images of one mask, to measure the diversity of the ControlNet.", unit="images", ge=2
    )
    prompt_guidance: float = setting(
        3.0, "Guidance of the images that are generated to test prompts.", ge=0
    )
    prompt_samples: int = setting(
        8, "Images of each label that the attribute classifier tests.", unit="images", ge=1
    )


class Classifier(Group):
    """The attribute classifier, which tests whether images show what their prompts say."""

    prefix: ClassVar[str] = "classifier_"
    steps: int = setting(
        80, "Length of its training, on 32 real images per step.", unit="optimiser steps", ge=1
    )


class Pix2PixHD(Group):
    """Pix2PixHD, the baseline generator, and our Pix2PixHD+ (notebook 04)."""

    prefix: ClassVar[str] = "pix2pixhd_"
    channels: int = setting(
        16,
        "Width of the first layer of the global generator (original: 64).",
        unit="channels",
        ge=1,
    )
    downsample: int = setting(3, "Halvings before the residual blocks (original: 4).", ge=1)
    blocks: int = setting(3, "Residual blocks (original: 9).", ge=1)
    disc_channels: int = setting(
        16, "Width of the discriminators (original: 64).", unit="channels", ge=1
    )
    steps: int = setting(
        310,
        "Length of its training, half at a constant learning rate, half with linear decay; 0: it "
        "sees as many images as base and ControlNet do in this run.",
        unit="optimiser steps",
        ge=0,
    )
    batch: int = setting(4, "Images per training step (original: 1).", unit="images", ge=1)
    lr: float = setting(
        6.0e-4, "Learning rate of both networks, Adam with beta 0.5 (original: 2.0e-4).", gt=0
    )
    vgg: str = setting(
        "auto",
        "Perceptual loss: off; VGG19 from torch.hub's cache (disk), by download, or from the path "
        "of its weights; or auto, which is VGG19 if it is in the cache, else a VGG16 that is "
        "always there.",
    )
    vgg_images: int = setting(
        1, "Images of each batch that the perceptual loss sees; 0 is all.", unit="images", ge=0
    )
    resize: bool = setting(
        True,
        "Whether Pix2PixHD, too, has bilinear upsampling and convolution in place of transposed "
        "convolutions, which leave a checkerboard; Pix2PixHD+ always has.",
    )
    noise: int = setting(
        8, "Noise values per image in Pix2PixHD+ (ours, not the paper's).", unit="values", ge=1
    )
    diversity: float = setting(
        0.1, "Weight of its mode-seeking loss, by which noise changes the image.", ge=0
    )
    enhancers: int = setting(
        0, "Finer generators; with 1 the global generator is first trained at half the size.", ge=0
    )
    fine_steps: int = setting(
        300, "Length of the finer generator's training, if any.", unit="optimiser steps", ge=1
    )
    fixed_steps: int = setting(
        30,
        "The first of these steps, during which the global generator is fixed (original: a tenth).",
        unit="optimiser steps",
        ge=0,
    )


class Evaluation(Group):
    """Measures of images and segmentations (notebooks 05 and 06)."""

    features: str = setting(
        "domain",
        "Features of KID and FID: domain (a classifier trained on G), imagenet "
        "(EfficientNet-Lite0), inception, or the path of Inception's weights.",
    )
    surface_tolerance: float = setting(
        0.02,
        "Tolerance of the surface distance, as a fraction of the image's diagonal.",
        gt=0,
        le=1,
    )


class Segmentation(Group):
    """The segmentation networks of Table 2 (notebook 06)."""

    networks: Annotated[list[Network], *DISTINCT] = setting(
        ["unet"],
        "Segmentation networks of Table 2; unet_imagenet is a U-Net on EfficientNet-Lite0 with "
        "ImageNet weights.",
        min_length=1,
    )
    control_networks: Annotated[list[Network], *DISTINCT] = setting(
        ["unet"], "Networks that are trained in the arms that the paper does not have."
    )
    brief_networks: Annotated[list[Network], *DISTINCT] = setting(
        [],
        "Networks that, where time is short, see little: S-train alone and the largest amount of "
        "the first generator's pairs, for equal steps; in control_networks also the headroom, and "
        "the same at control_share.",
    )
    seeds: Annotated[list[Seed], *DISTINCT] = setting(
        [0, 1],
        "Seeds of the trainings; every entry of Table 2 is trained once with each.",
        min_length=1,
    )
    arm_seeds: int = setting(
        0, "The first so many of the seeds serve all but the whole of S-train alone; 0: all.", ge=0
    )
    data_shares: Annotated[list[Share], *DISTINCT] = setting(
        [25], "Shares of S-train in the arm low_data, in addition to 100.", unit="percent"
    )
    control_share: int = setting(
        25,
        "Share of S-train on which synthetic pairs are compared with one another; best one at "
        "which more real pairs still help. At 100 every one of data_shares gets synthetic pairs.",
        unit="percent",
        ge=1,
        le=100,
    )
    real_pairs: Annotated[list[Share], *DISTINCT] = setting(
        [100],
        "Shares of G whose real pairs are added to S-train in place of synthetic ones; the largest "
        "is the headroom.",
        unit="percent",
        min_length=1,
    )
    equal_epochs_up_to: int = setting(
        60,
        "Largest amount of synthetic pairs that is also trained for equal epochs, which takes the "
        "more steps the more pairs there are; 0: all amounts, and all real pairs of G.",
        unit="pairs",
        ge=0,
    )
    segmentation_precision: Literal["auto", "no", "bf16"] = setting(
        "auto", "Mixed precision of the segmentation networks, as that of the generators."
    )
    segmentation_size: int = setting(
        32,
        "Side of the images for segmentation; DCSAU-Net takes four times as long at 64.",
        unit="pixels",
        ge=1,
    )
    unet_encoder: str = setting(
        "tu-resnet10t", "Encoder of segmentation-models-pytorch, without pretrained weights."
    )
    unet_decoder: list[Count] = setting(
        [64, 48, 32, 16],
        "Decoder widths from deep to shallow; the encoder has as many halvings.",
        unit="channels",
        min_length=1,
    )
    epochs: int = setting(
        0,
        "Length of the trainings on S-train alone (paper: 350), from which all others follow; 0: "
        "until the plateau of validation (lesionlib.segmentation.plateau).",
        unit="epochs",
        ge=0,
    )
    most_steps: int = setting(
        60,
        "Length of the training that finds the plateau, and the longest on S-train alone.",
        unit="optimiser steps",
        ge=1,
    )
    plateau_gain: float = setting(
        0.01,
        "Gain of the validation Dice that, once no longer reached, marks the plateau.",
        gt=0,
        lt=1,
    )
    batch: int = setting(16, "Images per training step (paper: 256).", unit="images", ge=1)
    lr: float = setting(1.0e-3, "Learning rate of Adam (as in the paper).", gt=0)
    averaging: float = setting(
        0.1,
        "Length of the moving average of the weights, which is what is validated and tested, as a "
        "share of the steps so far; 0 is none.",
        ge=0,
        le=1,
    )
    validations: int = setting(
        12,
        "Validations on S-val in each training, the last at its end; the best weights are kept.",
        ge=1,
    )


class Jobs(Group):
    """How the work is divided into jobs."""

    cells_per_job: int = setting(
        12,
        "Trainings of Table 2's grid that share one run of notebook 06; one of DCSAU-Net counts "
        "as four.",
        neutral=True,
        ge=1,
    )
    threads: int = setting(
        1,
        "CPU threads of one job; parallel jobs use the CPU better than more threads do.",
        neutral=True,
        ge=1,
    )
    job_gpus: int = setting(
        0,
        "GPUs that a job which trains or samples requests from a cluster (--cluster).",
        neutral=True,
        ge=0,
    )


class Settings(BaseModel):
    """All settings of a run by group, the preset that they are based on, and the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: Data = Data()
    design: Design = Design()
    masks: Masks = Masks()
    augmentation: Augmentation = Augmentation()
    reference: Reference = Reference()
    base: Base = Base()
    training: Training = Training()
    controlnet: ControlNet = ControlNet()
    validation: Validation = Validation()
    sampling: Sampling = Sampling()
    classifier: Classifier = Classifier()
    pix2pixhd: Pix2PixHD = Pix2PixHD()
    evaluation: Evaluation = Evaluation()
    segmentation: Segmentation = Segmentation()
    jobs: Jobs = Jobs()
    preset: str = "quick"
    run: str = "runs/quick"

    def flat(self) -> dict:
        """Every flat key and its value, then `preset` and `run`."""
        values = self.model_dump()
        by_key = {key: values[group][name] for key, (group, name) in KEYS.items()}
        return by_key | {"preset": self.preset, "run": self.run}

    def _differing(self, other: "Settings") -> dict:
        theirs = other.flat()
        return {k: v for k, v in self.flat().items() if k in KEYS and v != theirs[k]}

    def changed(self) -> set[str]:
        """Flat keys whose value is not that of the preset `quick`."""
        return set(self._differing(Settings()))

    def overrides(self) -> dict:
        """Flat keys and values that differ from the preset's: the `overrides` of `load`."""
        return self._differing(load(self.preset))


GROUPS = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if issubclass(field.annotation, Group)
}
KEYS = {  # flat key: (name of the group, name within it)
    group.prefix + name: (attribute, name)
    for attribute, group in GROUPS.items()
    for name in group.model_fields
}


def read(path) -> dict:
    """One YAML file of settings; raises InputError if it is not a mapping."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(path, f"not valid YAML ({error})", "correct the file") from error
    if not isinstance(values, dict):
        raise InputError(path, "not a list of `key: value` lines", "correct the file")
    return values


def presets() -> list[str]:
    """Names of the presets in config/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def nearest(word: str, valid, least: float = 0.0) -> str:
    """The valid word closest to `word` in spelling, '' if none is alike by `least` (0 to 1)."""
    return next(iter(difflib.get_close_matches(str(word), list(valid), 1, least)), "")


def _converted(value, schema: dict):
    """A value that YAML may have left as text, such as 1e-3, as the number that it is."""
    if isinstance(value, list) and "items" in schema:
        return [_converted(item, schema["items"]) for item in value]
    types = {"integer": int, "number": float}
    if isinstance(value, str) and schema.get("type") in types:
        with suppress(ValueError):
            return types[schema["type"]](value)
    return value


def from_text(key: str, text: str):
    """The value of a setting that was given as text on the command line.

    A setting that is text is taken as it stands, so that 3.10, 001 and no survive; everything else
    is YAML. Raises InputError if that is broken.
    """
    schema = _schema(key) if key in KEYS else {}
    if schema.get("type") == "string":
        return text
    if schema.get("type") in ("integer", "number"):
        return _converted(text, schema)
    try:
        return _converted(yaml.safe_load(text), schema)
    except yaml.YAMLError as error:
        must = f"it must be {allowed(schema)}" if schema else LISTING
        remedy = f"{must}; quote it for the shell: --config '{key}=...'"
        raise InputError("--config", f"{key}={text} is broken off or misspelt", remedy) from error


def one_line(value) -> str:
    """A setting as one line of YAML, however long it is."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).splitlines()[0]


def _schema(key: str) -> dict:
    group, name = KEYS[key]
    return GROUPS[group].model_json_schema()["properties"][name]


def allowed(schema: dict) -> str:
    """The values that the JSON schema of a setting allows, in words."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if schema["type"] == "array":
        words = ["a list", "not empty"] if schema.get("minItems") else ["a list"]
        words += ["without repetition"] if schema.get("uniqueItems") else []
        return f"{', '.join(words)}, each entry {allowed(schema['items'])}"
    if schema["type"] == "object":
        return f"NAME: text; a NAME is {schema['names']}"
    limits = [f"{words} {schema[key]:g}" for key, words in BOUNDS.items() if key in schema]
    return ", ".join([TYPES.get(schema["type"], "text"), *limits])


def _size_rules(key: str, size: int, factors: dict):
    """Rules (is broken, key, value, what it must be) for a side that is halved in several ways."""
    for reason, factor in factors.items():
        yield size % factor, key, size, f"a multiple of {factor} for {reason}"


def _source_rules(data: Data):
    """Rules between the source of the images and the folders that are named."""
    folders = [key for key in ("images", "masks", "table") if getattr(data, key)]
    wrong = data.source in ("phantom", "isic") and folders
    remedy = f"folders, or a public source, with {' and '.join(folders)}; or give none of these"
    yield wrong, "source", data.source, remedy
    wrong = data.source == "phantom" and (data.lesion_value >= 0 or data.invert_masks)
    yield wrong, "source", data.source, "folders with lesion_value or invert_masks"
    wrong = data.split == "official" and data.source in ("phantom", "ham10000", "ph2")
    yield wrong, "split", data.split, "grouped for a source without official parts"
    wrong = data.source != "isic" and data.isic_root != Data().isic_root
    yield wrong, "source", data.source, "isic with isic_root"


def _given_rules(settings: Settings):
    """Rules for a ControlNet that is not trained here."""
    own, base, remedy = settings.controlnet, settings.base, "with controlnet_model"
    yield base.finetune, "base_finetune", True, f"false {remedy}, which knows the base as it was"
    yield not base.model, "base_model", "", f"the base that it was trained on, {remedy}"
    yield not own.locked, "controlnet_locked", False, f"true {remedy}"
    seeds = settings.training.generator_seeds
    yield len(seeds) > 1, "generator_seeds", seeds, f"a single one {remedy}"


def _rules(settings: Settings, groups):
    """Rules (is broken, key, value, what it must be) between settings of these groups."""
    groups = set(groups)
    base, pix, segmentation = settings.base, settings.pix2pixhd, settings.segmentation
    size, levels = settings.data.image_size, len(base.channels)
    yield from _source_rules(settings.data)
    if {"data", "base"} <= groups and base.model not in ("", "small"):
        yield from _size_rules("image_size", size, {"the base's autoencoder": 8})
    if {"data", "base"} <= groups and base.model == "small":
        yield from _size_rules("image_size", size, {"the base small": 16})
    if {"data", "base"} <= groups and not base.model:  # a small base of our own
        yield from _size_rules("image_size", size, {"base_patch": base.patch})
        wrong = len(base.attention) != levels
        yield wrong, "base_attention", base.attention, f"{levels} long, as base_channels is"
        wrong = any(width % 8 for width in base.channels)
        yield wrong, "base_channels", base.channels, "multiples of 8, for its normalisation"
        unit, reason = (64, " where base_text_pooled is set") if base.text_pooled else (4, "")
        multiple = f"a multiple of {unit}{reason}"
        yield base.text_width % unit, "base_text_width", base.text_width, multiple
        most = 3 * base.patch**2
        limit = f"at most {most}, the number of values in a patch of base_patch pixels"
        yield base.latent_channels > most, "base_latent_channels", base.latent_channels, limit
    gans = {"pix2pixhd", "pix2pixhd_plus"} & set(settings.design.methods)
    if {"base", "controlnet"} <= groups and settings.controlnet.model:
        yield from _given_rules(settings)
    if {"data", "pix2pixhd"} <= groups and gans:
        unit = 2 ** (pix.downsample + pix.enhancers)
        sizes = f"{2 * unit}, {3 * unit}, ... for pix2pixhd_downsample and pix2pixhd_enhancers"
        yield size % unit or size == unit, "image_size", size, sizes
        widths = {"pix2pixhd_enhancers": 2**pix.enhancers}
        yield from _size_rules("pix2pixhd_channels", pix.channels, widths)
    if "segmentation" in groups:
        unet = "the levels of unet_decoder", 2 ** len(segmentation.unet_decoder)
        factors = {"unet": unet, "unet_imagenet": unet, "dcsaunet": ("dcsaunet", 16)}
        factors = dict(factors[network] for network in segmentation.networks)
        yield from _size_rules("segmentation_size", segmentation.segmentation_size, factors)
    if "reference" in groups:
        factors = {"the levels of reference_decoder": 2 ** len(settings.reference.decoder)}
        yield from _size_rules("reference_size", settings.reference.size, factors)


def _build(values: dict, origin, groups, **facts) -> Settings:
    """Settings from flat keys; InputError names a wrong key or value and its `origin`."""
    nested = {}
    for key, value in values.items():
        if key not in KEYS:
            problem = f"unknown setting '{key}'"
            raise InputError(origin, problem, f"did you mean '{nearest(key, KEYS)}'? {LISTING}")
        group, name = KEYS[key]
        nested.setdefault(group, {})[name] = value
    try:
        settings = Settings(**nested, **facts)
    except ValidationError as error:
        group, name, *_ = error.errors()[0]["loc"]
        key = GROUPS[group].prefix + name
        problem = f"setting '{key}': {values[key]!r} is not allowed"
        raise InputError(origin, problem, f"it must be {allowed(_schema(key))}") from error
    for broken, key, value, remedy in _rules(settings, groups):
        if broken:
            problem = f"setting '{key}': {value} does not fit the other settings"
            raise InputError(origin, problem, f"it must be {remedy}")
    return settings


def load(preset="quick", overrides: dict | None = None, name: str = "", groups=None) -> Settings:
    """All settings of a run in runs/NAME: the preset's, then `overrides` by flat key.

    Raises InputError for an unknown preset, key or value, naming the nearest valid one, and for
    values that do not fit one another; with `groups` (names), only these are compared (one
    stage). `images` without `source` choose the source folders.
    """
    if preset not in presets():
        raise InputError(
            f"preset '{preset}'",
            "there is no such preset",
            f"did you mean '{nearest(preset, presets())}'? There are: {', '.join(presets())}",
        )
    facts = {"preset": preset, "run": f"runs/{name or preset}"}
    path = FOLDER / f"{preset}.yaml"
    values = read(path)
    groups = groups or GROUPS
    settings = _build(values, path, groups, **facts)
    if not overrides:
        return settings
    given = dict(overrides)
    if "images" in given:  # then the preset's own folders do not count
        given = {"source": "folders", "masks": "", "table": ""} | given
    return _build(values | given, "command line", groups, **facts)


def explain(groups=None) -> str:
    """The commented listing of the settings of `groups` (names; all of them), as YAML."""
    lines = ["# Values are those of the preset quick. Override: --config KEY=VALUE ..."]
    for attribute in groups or GROUPS:
        group = GROUPS[attribute]
        lines += ["", f"# --- {attribute}: {group.__doc__}"]
        default = group()
        for name, schema in group.model_json_schema()["properties"].items():
            facts = "; ".join(filter(None, [schema["unit"], allowed(schema)]))
            for text, indent in ((schema["description"], "# "), (facts, "#   ")):
                lines += textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)
            lines.append(f"{group.prefix}{name}: {one_line(getattr(default, name))}")
    return "\n".join(lines) + "\n"


def table(groups, settings: Settings) -> list[tuple]:
    """Rows (setting, value, meaning, whether it differs from `quick`) of groups, given by name."""
    changed = settings.changed()
    return [
        (key, getattr(getattr(settings, group), name), _schema(key)["description"], key in changed)
        for key, (group, name) in KEYS.items()
        if group in groups
    ]


def docs() -> dict[str, str]:
    """The pages of docs/settings, {file name: Markdown}: one for each group, and their list."""
    made = "Made by `python -m lesionlib.engine.settings --docs`; do not edit.\n\n"
    listed = [f"- [{name}]({name}.md): {group.__doc__}\n" for name, group in GROUPS.items()]
    pages = {
        f"{name}.md": f"# Settings: {name}\n\n{made}```yaml\n{explain([name])}```\n"
        for name in GROUPS
    }
    return pages | {"README.md": f"# Settings\n\n{made}{''.join(listed)}"}


def write_docs():
    """Write docs/settings (`docs`)."""
    for name, text in docs().items():
        (ROOT / "docs" / "settings" / name).write_text(text)


if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["--docs"]:
            write_docs()
        else:
            yaml.safe_dump(load(*sys.argv[1:2]).flat(), sys.stdout, sort_keys=False)
    except InputError as problem:
        sys.exit(f"settings: {problem}")
