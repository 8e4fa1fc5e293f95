"""TorchServe's handler API. Archives import this package as `ts`; it has that name only inside workers."""

from ringserve.backends.ts.version import __version__

__all__ = ["__version__"]
