"""The properties of a snapshot beside the models: what was said, and what TorchServe also says of itself there."""

import sys
from importlib.metadata import version as package_version

from ringserve.server.configuration.sources import remembered_properties
from ringserve.server.settings import Settings


def effective_properties(settings: Settings) -> list[tuple[str, str]]:
    """Sorted; no password and no key is among them. Folders are absolute, so that the file can be taken elsewhere."""
    pairs = dict(remembered_properties(settings))
    pairs["version"] = package_version("ringserve")
    pairs["python"] = sys.executable
    pairs["number_of_gpu"] = str(settings.number_of_gpu or 0)
    if settings.model_store is not None:
        pairs["model_store"] = str(settings.model_store.absolute())
        pairs.setdefault("workflow_store", pairs["model_store"])
    if settings.config_file is not None:
        pairs["tsConfigFile"] = str(settings.config_file.absolute())
    return sorted(pairs.items())
