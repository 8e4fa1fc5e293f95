"""The TorchServe release whose handler API this package provides. Handlers compare against it."""

__version__ = "0.12.0"
