"""How similar sets of generated and real images are, and whether generated images are copies.

Everything works on features (n, d) of any extractor; see `extractor`. Sources: KID, Binkowski et
al. 2018; FID, Heusel et al. 2017; precision and recall, Kynkaanniemi et al. 2019; density and
coverage, Naeem et al. 2020.
"""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist, pdist
from torch.nn import functional

from lesionlib.data.duplicates import copies
from lesionlib.engine.errors import InputError
from lesionlib.engine.training import device
from lesionlib.evaluation import attributes
from lesionlib.segmentation.networks import inputs, load_lite0

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights


@torch.no_grad()
def features(model, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Pooled features (n, d) of a timm model for uint8 images (n, S, S, 3).

    With the classifier of `attributes`, which is trained on the real images of G, these are
    domain features: their distances are not comparable with those of Inception features.
    """
    model_device, found = next(model.parameters()).device, []
    for i in range(0, len(images), batch):
        part = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).to(model_device)
        maps = model.eval().forward_features(inputs(part))
        found.append(model.forward_head(maps, pre_logits=True).float().cpu().numpy())
    return np.concatenate(found)


def extractor(name: str, run):
    """A function from uint8 images (n, S, S, 3) to features (n, d), and the features' name.

    `name`: "domain", the classifier of `attributes`, trained on the real images of the run's G;
    "imagenet", EfficientNet-Lite0 with ImageNet weights, which come with the environment (trained
    on none of our images); "inception", torchvision's Inception v3 with ImageNet weights from
    torch.hub's cache (not the weights of the original FID: values differ from published ones); or
    the path of such a file. InputError if there are no weights.
    """
    if name == "imagenet":
        lite = imagenet_model()
        return lambda images: imagenet_features(lite, images), "EfficientNet-Lite0 (ImageNet)"
    if name == "domain":
        model = attributes.load(run)
        return lambda images: features(model, images), "a classifier trained on G"
    cached = sorted(Path(torch.hub.get_dir(), "checkpoints").glob("inception_v3_google-*.pth"))
    path = (cached or [Path("inception_v3_google-*.pth")])[0] if name == "inception" else name
    model = _inception(path)
    return lambda images: inception_features(model, images), "Inception v3 (torchvision)"


def imagenet_model():
    """timm's EfficientNet-Lite0 with the ImageNet weights of `networks.load_lite0`."""
    import timm  # slow import, needed only with these features

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_lite0(model)
    return model.to(device(), memory_format=torch.channels_last).eval()


@torch.no_grad()
def imagenet_features(model, images: np.ndarray, side: int = 128, batch: int = 64) -> np.ndarray:
    """Pooled features (n, 1280) of uint8 images (n, S, S, 3), resized to `side` pixels."""
    model_device, found = next(model.parameters()).device, []
    for i in range(0, len(images), batch):
        part = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).float().to(model_device)
        part = functional.interpolate(part, size=(side, side), mode="bilinear", antialias=True)
        part = (part / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        maps = model.forward_features(part)
        found.append(model.forward_head(maps, pre_logits=True).float().cpu().numpy())
    return np.concatenate(found)


def _inception(path):
    import torchvision  # slow import, needed only with Inception

    model = torchvision.models.inception_v3(init_weights=False, transform_input=True)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            path,
            f"no Inception v3 weights could be read ({type(error).__name__})",
            "give torchvision's inception_v3_google-*.pth as `features`, put it into "
            "torch.hub's cache, or set features to domain",
        ) from error
    model.fc = torch.nn.Identity()
    return model.eval().to(device())


@torch.no_grad()
def inception_features(model, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """Pooled features (n, 2048) of uint8 images (n, S, S, 3), resized to 299 pixels."""
    model_device, found = next(model.parameters()).device, []
    for i in range(0, len(images), batch):
        part = torch.from_numpy(images[i : i + batch]).permute(0, 3, 1, 2).float().to(model_device)
        part = functional.interpolate(part, size=(299, 299), mode="bilinear", antialias=True)
        mean, std = (part.new_tensor(x)[None, :, None, None] for x in (MEAN, STD))
        found.append(model((part / 255 - mean) / std).float().cpu().numpy())
    return np.concatenate(found)


def pixels(images: np.ndarray, side: int = 32) -> np.ndarray:
    """Pixels as features (n, side * side * 3), scaled so that a distance is an RMSE in [0, 1]."""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    flat = np.reshape(small, (len(images), -1)) / 255
    return flat / np.sqrt(flat.shape[1])


def diversity(features: np.ndarray, group) -> float:
    """Mean distance of two features (n, d) of one `group` (n,), over all such pairs."""
    values = [pdist(features[np.asarray(group) == one]) for one in np.unique(group)]
    return float(np.concatenate(values).mean())


def _kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of features with the kernel of KID."""
    a, b = a.astype(float), b.astype(float)
    within = [
        (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (_kernel(a, a), _kernel(b, b))
    ]
    return float(sum(within) - 2 * _kernel(a, b).mean())


def kid(a, b, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel inception distance: mean and standard deviation over random subsets of both sides.

    Subsets have `size` features, or as many as the smaller side.
    """
    draw, size = np.random.default_rng(seed), min(size, len(a), len(b))
    values = [
        mmd(*(x[draw.choice(len(x), size, replace=False)] for x in (a, b))) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def fid(a, b) -> float:
    """Frechet distance of Gaussians fitted to features; biased upwards by small n, so state n."""
    # The trace of the root of the product of two covariances is the nuclear norm of the product of
    # the centred features: defined, and exact, where fewer images than features make them singular.
    (a, mean_a), (b, mean_b) = (((x - x.mean(0)) / np.sqrt(len(x) - 1), x.mean(0)) for x in (a, b))
    shared = np.linalg.norm(np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T, "nuc")
    return float(np.sum((mean_a - mean_b) ** 2) + np.sum(a**2) + np.sum(b**2) - 2 * shared)


def prdc(real, made, k: int = 5) -> dict:
    """Precision, recall, density and coverage of `made` against `real`, with k neighbours."""
    k = min(k, len(real) - 1, len(made) - 1)
    radius = [np.sort(cdist(x, x), axis=1)[:, k] for x in (real, made)]
    distances = cdist(real, made)
    inside = distances < radius[0][:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((distances < radius[1][None]).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / k),
        "coverage": float((distances.min(axis=1) < radius[0]).mean()),
    }


def nearest(queries, references) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) of each of the features `queries` to the nearest reference, and its index."""
    distances = cdist(queries, references)
    index = distances.argmin(axis=1)
    return distances[np.arange(len(queries)), index], index


def compare(made: np.ndarray, reference: np.ndarray, seed: int = 0) -> dict:
    """KID (mean, sd over subsets of half the smaller side), FID, and `prdc` of features.

    fid_half is the mean FID of four random halves of `made`: its excess over `fid` shows how much
    of the FID is due to n.
    """
    mean, sd = kid(made, reference, size=min(len(made), len(reference)) // 2, seed=seed)
    draw, half = np.random.default_rng(seed), max(2, len(made) // 2)
    halves = [fid(made[draw.choice(len(made), half, replace=False)], reference) for _ in range(4)]
    found = {"n": len(made), "kid": mean, "kid_sd": sd, "fid": fid(made, reference)}
    return found | {"fid_half": float(np.mean(halves))} | prdc(reference, made)


def compare_all(made: dict, reference: np.ndarray) -> pd.DataFrame:
    """`compare` of the features of several sets of images, a row per name."""
    rows = [{"images": name} | compare(features, reference) for name, features in made.items()]
    return pd.DataFrame(rows)


def memorisation(known: np.ndarray, known_features, images: dict, features: dict):
    """Whether images are copies: a table with a row per set, and its nearest (distance, index).

    `known` (n, S, S, 3) are the training images; `images` and `features` map the names of sets to
    their images and features. Distances of each image to the nearest training image, in features
    and in pixels (`pixels`), are given as medians and in relation to the first set, real images
    that were not trained on; near-copies by `duplicates.copies`.
    """
    known_pixels, closest, rows = pixels(known), {}, []
    for name, made in images.items():
        closest[name] = nearest(features[name], known_features)
        copied = copies(known, made)["made"].nunique()
        rows.append(
            {
                "images": name,
                "n": len(made),
                "near-copies": copied,
                "share of near-copies": copied / len(made),
                "median in features": np.median(closest[name][0]),
                "median in pixels": np.median(nearest(pixels(made), known_pixels)[0]),
            }
        )
    table = pd.DataFrame(rows)
    for space in ("features", "pixels"):
        medians = table[f"median in {space}"]
        table[f"{space}: of real"] = medians / medians[0]
    return table, closest


def diversity_table(groups: dict, extract) -> pd.DataFrame:
    """`diversity` in features and in pixels, a row per name of `groups`: (images, group)."""
    rows = [
        {
            "images": name,
            "n": len(images),
            "in features": diversity(extract(images), group),
            "in pixels": diversity(pixels(images), group),
        }
        for name, (images, group) in groups.items()
    ]
    return pd.DataFrame(rows)
