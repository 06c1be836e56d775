"""Downloads all that a run needs, for clusters whose compute nodes have no network.

`./run_all.sh --preset paper --prefetch` installs the packages, as every start does, and downloads
what the settings name: ISIC, the base model, weights for the VGG loss and for Inception.
"""

from contextlib import contextmanager

from lesionlib.engine.errors import InputError
from lesionlib.engine.files import resolve
from lesionlib.engine.settings import Settings


def fetch_base_model(name: str):
    """Download a base to the hub's cache, unless it is a local directory."""
    if resolve(name).exists():
        return f"{name}: a directory"
    from diffusers import StableDiffusionPipeline  # slow import, needed only here

    with _hub_errors("base_model", name):
        found = StableDiffusionPipeline.download(name, safety_checker=None, use_safetensors=True)
    return f"{name}: {found}"


def fetch_controlnet(name: str):
    """Download a trained ControlNet to the hub's cache, unless it is a local directory."""
    if resolve(name).exists():
        return f"{name}: a directory"
    from diffusers import ControlNetModel  # slow import, needed only here

    with _hub_errors("controlnet_model", name):
        ControlNetModel.from_pretrained(name)
    return f"{name}: in the hub's cache"


@contextmanager
def _hub_errors(setting: str, name: str):
    """Turn the errors of a download into an InputError that names the setting."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(
            f"{setting}: {name}",
            f"it could not be downloaded from the hub ({str(error)[:200]})",
            f"check the id and the network, or set {setting} to a diffusers directory",
        ) from error


def fetch_torchvision_weights(name: str, weights: str):
    """Download weights of torchvision to torch.hub's cache."""
    import torchvision  # slow import, needed only here

    try:
        getattr(torchvision.models, name).IMAGENET1K_V1.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            weights, f"they could not be downloaded ({error})", "check the network, then try again"
        ) from error
    return f"{weights}: in torch.hub's cache"


def fetch_isic(folder):
    """Download ISIC's images and tables."""
    from lesionlib.data import download

    if code := download.main([str(folder)]):
        raise InputError(folder, "ISIC is not complete", f"see above; exit status {code}")
    return f"{folder}: ISIC"


def downloads(settings: Settings) -> list:
    """The downloads that the settings need, as (function, arguments)."""
    needed = []
    if settings.data.source == "isic":
        needed.append((fetch_isic, [resolve(settings.data.isic_root)]))
    if settings.base.model not in ("", "small"):
        needed.append((fetch_base_model, [settings.base.model]))
    if settings.controlnet.model:
        needed.append((fetch_controlnet, [settings.controlnet.model]))
    if settings.pix2pixhd.vgg == "download":
        needed.append((fetch_torchvision_weights, ["VGG19_Weights", "weights of the VGG loss"]))
    if settings.evaluation.features == "inception":
        needed.append(
            (fetch_torchvision_weights, ["Inception_V3_Weights", "weights of Inception v3"])
        )
    return needed


def prefetch(settings: Settings):
    """Download everything that the settings name; InputError names what is unavailable."""
    needed = downloads(settings)
    for function, arguments in needed:
        print(function(*arguments))
    print(f"{len(needed)} fetched; the run needs no network now" if needed else "nothing to fetch")
