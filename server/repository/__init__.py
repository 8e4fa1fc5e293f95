"""The model repository: archives in, checked models out. Imports no framework and no code from archives."""

from ringserve.server.repository.archive_plan import ArchiveLimits
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.store import ModelStore, UnpackedModel

__all__ = ["ArchiveLimits", "Manifest", "ModelConfig", "ModelStore", "UnpackedModel"]
