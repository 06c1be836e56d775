"""The source of a run's images: procedural ones, a public source, or the user's own folders."""

from lesionlib.data import catalogue, phantom
from lesionlib.engine.settings import Data


def read(settings: Data, folder) -> catalogue.Catalogue:
    """The catalogue of the source that the settings name.

    Procedural images are first written to `folder` in the layout of the ISIC downloads, so that
    the same code reads them and real ones. Raises InputError as `catalogue.read` does.
    """
    root = settings.isic_root
    if settings.source == "phantom":
        root = folder
        phantom.write_dataset(root, settings.phantoms, settings.phantom_size, settings.data_seed)
    return catalogue.read(
        settings.source,
        images=settings.images,
        masks=settings.masks,
        table=settings.table,
        isic_root=root,
        official=settings.split == "official",
    )
