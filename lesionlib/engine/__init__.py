"""The foundation of all packages: settings, files, records, and one training loop."""

import pkgutil

import lazy_loader

# A module is imported when it is first used: importing the package costs nothing.
_modules = [module.name for module in pkgutil.iter_modules(__path__)]
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, _modules)
