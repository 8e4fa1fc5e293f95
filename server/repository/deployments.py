"""What is served from each place in the repository, and what is to be done next: pure, the time is given.

A step is taken only when nothing that is served is lost by it: a version is loaded beside the one that it replaces; what a policy
no longer wants goes when all that it wants is there; what is refused leaves everything as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ringserve.protocol.errors import BadRequest, Conflict, InvalidModel, RingServeError
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.scan import Entry
from ringserve.server.repository.version_policy import FolderConfig, version_key, wanted_versions

# A model that does not load may do so when memory is free again, or whatever it needs is back.
RETRY_S = 60.0
RETRY_S_MAX = 900.0
# A folder that changes whenever it is loaded (a model that writes beside its code) must not be loaded for ever.
RELOAD_S = 60.0
RELOADS_TOLERATED = 3
RELOAD_PAUSE_S_MAX = 600.0


class State(StrEnum):
    SERVED = "served"
    LOADING = "loading"
    INCOMPLETE = "incomplete"
    REFUSED = "refused"
    RETRYING = "retrying"
    UNLOADING = "unloading"


class Verb(StrEnum):
    DEPLOY = "deploy"
    RETIRE = "retire"


@dataclass(slots=True, eq=False)
class Deployment:
    """One place in the repository: what lies there (`entry`), and what is served from it (`version`, of the content `deployed`).
    `tried` is the content that `error` is about."""

    slot: str
    group: str
    entry: Entry | None = None
    version: ModelVersion | None = None
    deployed: str | None = None
    dismissed: str | None = None  # content that the API has unregistered
    busy: State | None = None
    loading: Entry | None = None
    abandoned: bool = False  # what is being loaded is not wanted any more
    tried: str | None = None
    error: str = ""
    final: bool = False  # only another content can be better
    conflict: bool = False
    failures: int = 0
    retry_s: float = 0.0
    reloads: int = 0
    deployed_s: float = 0.0
    hold_s: float = 0.0  # no reload before

    @property
    def label(self) -> str | None:
        """The version, where the folder says it."""
        return self.entry.version if self.entry is not None else None

    @property
    def troubled(self) -> bool:
        """Whether what lies there now has failed."""
        return self.entry is not None and self.tried == self.entry.fingerprint

    @property
    def refused(self) -> bool:
        return self.troubled and self.final

    @property
    def sent_away(self) -> bool:
        return self.entry is not None and self.dismissed == self.entry.fingerprint

    def still_is(self, entry: Entry) -> bool:
        return self.entry is not None and self.entry.fingerprint == entry.fingerprint

    def wants_loading(self, now_s: float) -> bool:
        if self.entry is None or self.entry.problem is not None or self.sent_away or now_s < self.hold_s:
            return False
        if self.version is not None and self.deployed == self.entry.fingerprint:
            return False
        return not self.troubled or (not self.final and now_s >= self.retry_s)

    def due_s(self) -> float:
        """When `wants_loading` may turn true by time alone; in the past, when it will not."""
        if self.entry is None or self.deployed == self.entry.fingerprint or self.refused:
            return 0.0
        return max(self.hold_s, self.retry_s if self.troubled else 0.0)

    def succeeded(self, version: ModelVersion, entry: Entry, now_s: float) -> None:
        soon = entry.is_folder and self.version is not None and now_s - max(self.deployed_s, self.hold_s) < RELOAD_S
        self.reloads = self.reloads + 1 if soon else 0
        if self.reloads >= RELOADS_TOLERATED:
            self.hold_s = now_s + min(RELOAD_PAUSE_S_MAX, 2.0**self.reloads)
        self.version, self.deployed, self.deployed_s = version, entry.fingerprint, now_s
        self.tried, self.error, self.failures, self.dismissed = None, "", 0, None
        self.final = self.conflict = False

    def failed(self, entry: Entry, error: RingServeError, now_s: float) -> None:
        same = self.tried == entry.fingerprint
        self.failures = self.failures + 1 if same else 1
        self.tried, self.error = entry.fingerprint, error.message
        self.final = isinstance(error, InvalidModel | BadRequest)
        self.conflict = isinstance(error, Conflict)
        self.retry_s = now_s + min(RETRY_S_MAX, RETRY_S * 2.0 ** (self.failures - 1))

    def unloaded(self) -> None:
        self.version, self.deployed = None, None

    def gone_from_registry(self, content: str | None = None) -> None:
        """Somebody has unregistered it by the API: it stays away until its file changes, from what was deployed or was about to be."""
        self.dismissed = content or self.deployed
        self.unloaded()


def next_step(
    deployments: Sequence[Deployment], config: FolderConfig | None, now_s: float
) -> tuple[Verb, Deployment] | None:
    """For the deployments of one group, of which none is busy. `config`: of a model with versions, None when it is broken."""
    ordered = sorted(deployments, key=lambda each: version_key(each.label or ""))
    labels = [
        each.label for each in ordered if each.label is not None and (each.version is not None or not each.refused)
    ]
    wanted = set(labels if config is None else wanted_versions(labels, config.policy))
    chosen = [each for each in ordered if each.entry is not None and (each.label is None or each.label in wanted)]
    for each in reversed(chosen):
        if each.wants_loading(now_s):
            return Verb.DEPLOY, each
    complete = all(each.version is not None or each.sent_away for each in chosen)
    for each in ordered:
        if each.version is not None and (each.entry is None or (each not in chosen and complete)):
            return Verb.RETIRE, each
    return None
