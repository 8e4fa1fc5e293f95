"""The three keys of a running server: where each comes from, how long it holds, and how it changes.

A key that nobody gives is made at start, written into `key_file.json`, and renewed by `/token`; the API's holds as long as the server
runs, the others for `token_expiration_min`. A key that is given, by environment or by file, is never renewed here and never ends; a
file is looked at again and again, since secrets that are mounted change. The key it held before goes on for a while, because
clients and servers do not get the new one at the same moment.
"""

import asyncio
import logging
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ringserve.protocol.errors import Internal, InvalidKey
from ringserve.server.configuration.keys import HONOURED
from ringserve.server.control import Credential, Keys
from ringserve.server.repository.files import open_regular
from ringserve.server.security.key_file import KEY_FILE_NAME, KeyFileError, remove_key_file, write_key_file
from ringserve.server.security.tokens import KEY_CHARACTERS_MAX, NOT_RENEWED, Plane, key_problem
from ringserve.server.settings import ConfigError, Settings

logger = logging.getLogger("ringserve.tokens")

SETUP_FAILED = "Token Authorization setup unsuccessful"  # TorchServe's words
VARIABLES = {
    Plane.INFERENCE: "RINGSERVE_INFERENCE_KEY",
    Plane.MANAGEMENT: "RINGSERVE_MANAGEMENT_KEY",
    Plane.API: "RINGSERVE_API_KEY",
}
KEY_BYTES = 6  # base64url makes 8 characters of them
LOOK_S = 1.0  # how often key files are looked at
OVERLAP_S = 60.0  # how long the key that a file held before still opens
FOR_EVER_S = math.inf
Publish = Callable[[Keys], Awaitable[None]]
# How keys are named that go from one instance to the next one: by plane, and by where they come from.
MADE, BY_ENVIRONMENT, BY_FILE = "", " by environment", " by file"
Handed = Mapping[str, Sequence[Credential]]
_Seen = tuple[int, int, int, int]  # what tells one state of a file from another


@dataclass(frozen=True, slots=True)
class Given:
    """Where a plane's key comes from, if the server does not make it."""

    name: str  # of the variable or of the setting
    key: str = ""
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """One plane's credential, and the one before it as long as that still opens."""

    credential: Credential
    before: Credential | None = None

    @property
    def credentials(self) -> tuple[Credential, ...]:
        return (self.credential,) if self.before is None else (self.credential, self.before)


def take_keys(environ: MutableMapping[str, str]) -> dict[Plane, str]:
    """The keys of the environment, which has them no more, nor the passwords that settings have been made of: what we start must
    not inherit them."""
    for key in HONOURED.values():
        if key.secret and key.variable:
            environ.pop(key.variable, None)
    taken = {plane: environ.pop(name, "") for plane, name in VARIABLES.items()}
    return {plane: key for plane, key in taken.items() if key}


def given_keys(settings: Settings, environment: Mapping[Plane, str]) -> dict[Plane, Given]:
    """Which keys the server does not make. Raises `ConfigError` for a plane that is given two."""
    files = {
        Plane.INFERENCE: ("inference_key_file", settings.inference_key_file),
        Plane.MANAGEMENT: ("management_key_file", settings.management_key_file),
        Plane.API: ("api_key_file", settings.api_key_file),
    }
    given: dict[Plane, Given] = {}
    for plane, (name, file) in files.items():
        if plane in environment:
            if file is not None:
                raise ConfigError(f"{name}: {VARIABLES[plane]} gives this key as well, expected one of them")
            given[plane] = Given(VARIABLES[plane], key=environment[plane])
        elif file is not None:
            given[plane] = Given(name, file=file.absolute())
    return given


def read_key(path: Path) -> tuple[str, _Seen]:
    """The key in a file, without blanks and line ends around it. Raises `ValueError` saying why it holds none."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            text = file.read(KEY_CHARACTERS_MAX * 2).decode("latin-1").strip()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    problem = key_problem(text)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    return text, _seen(status)


def _seen(status: os.stat_result) -> _Seen:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path, seen: _Seen | None) -> bool:
    """Whether it is not what was read before; links are followed, since mounted secrets are swapped by theirs."""
    try:
        return _seen(path.stat()) != seen
    except OSError:
        return True


class Keyring:
    """Of one server, in its supervisor; made by `open_keyring`."""

    def __init__(
        self, given: Mapping[Plane, Given], lifetime_s: float, key_file: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._given = given
        self._lifetime_s = lifetime_s
        self._key_file = key_file
        self._clock = clock
        self._held: dict[Plane, _Held] = {}
        self._seen: dict[Plane, _Seen | None] = {}
        self._complained: dict[Plane, str] = {}  # about files, once each
        self._changing = asyncio.Lock()
        self._publish: Publish | None = None

    def fill(self, handed: Handed | None = None) -> None:
        """Get every key, and write down those that are not given. What an instance before this one made goes on, and what it was given
        opens for a while where this one is given another. Raises `ConfigError`."""
        for plane in Plane:
            source = self._given.get(plane)
            if source is None:
                self._hold(plane, self._inherited(plane, handed or {}) or self._made(plane), handed or {})
                continue
            key = source.key
            try:
                if source.file is not None:
                    key, self._seen[plane] = read_key(source.file)
                elif (problem := key_problem(key)) is not None:
                    raise ValueError(problem)
            except ValueError as error:
                raise ConfigError(f"{SETUP_FAILED}: {source.name}: {error}") from None
            self._hold(plane, Credential(key, FOR_EVER_S), handed or {})
        try:
            self._write(self._held)
        except KeyFileError as error:
            raise ConfigError(f"{SETUP_FAILED}: {error}") from None

    def _made(self, plane: Plane) -> Credential:
        until_s = FOR_EVER_S if plane is Plane.API else self._clock() + self._lifetime_s
        return Credential(secrets.token_urlsafe(KEY_BYTES), until_s)

    def _inherited(self, plane: Plane, handed: Handed) -> Credential | None:
        made = handed.get(plane.value + MADE, ())
        return made[0] if made and made[0].until_s > self._clock() else None

    def _hold(self, plane: Plane, credential: Credential, handed: Handed) -> None:
        others = [each for origin in (MADE, BY_ENVIRONMENT, BY_FILE) for each in handed.get(plane.value + origin, ())]
        before = next((each for each in others if each.key != credential.key), None)
        if before is not None:
            before = Credential(before.key, min(before.until_s, self._clock() + OVERLAP_S))
        self._held[plane] = _Held(credential, before)

    def _write(self, held: Mapping[Plane, _Held]) -> None:
        """Given keys are not written down: who gave them has them. When nothing else is left, there is no file. Raises `KeyFileError`."""
        made = {plane: each.credential for plane, each in held.items() if plane not in self._given}
        if made:
            write_key_file(self._key_file, made)
        else:
            remove_key_file(self._key_file.parent)

    def describe(self) -> str:
        """Where the keys are, for the log."""
        said = [f"the {plane.value} key is given by {source.name}" for plane, source in self._given.items()]
        if len(said) < len(Plane):
            said.append(f"{'the others are' if said else 'the keys are'} in {self._key_file}")
        return "token authorization is on: " + ", ".join(said)

    @property
    def credentials(self) -> dict[Plane, tuple[Credential, ...]]:
        return {plane: held.credentials for plane, held in self._held.items()}

    @property
    def handed_over(self) -> dict[str, tuple[Credential, ...]]:
        """What the next instance is to know when it takes over from this one."""
        return {plane.value + self._origin(plane): held.credentials for plane, held in self._held.items()}

    def _origin(self, plane: Plane) -> str:
        source = self._given.get(plane)
        return MADE if source is None else BY_FILE if source.file is not None else BY_ENVIRONMENT

    async def hand_out(self, publish: Publish) -> None:
        """Now and at every change, which is made when `publish` returns."""
        self._publish = publish
        await self._tell()

    async def renew(self, kind: str) -> None:
        """A new key for a plane, written down, from now on the only one; whoever asked has shown the API's. Raises `InvalidKey` for
        what has no key of ours."""
        if kind not in (Plane.INFERENCE, Plane.MANAGEMENT):
            raise InvalidKey(NOT_RENEWED)
        plane = Plane(kind)
        source = self._given.get(plane)
        if source is not None:
            raise InvalidKey(f"{NOT_RENEWED}. The {plane.value} key is given by {source.name} and changes there.")
        async with self._changing:
            held = {**self._held, plane: _Held(self._made(plane))}
            try:
                await asyncio.to_thread(self._write, held)
            except KeyFileError as error:
                raise Internal(f"The key stays as it is: {error}.") from None
            self._held = held
            logger.info("the %s key is a new one", plane.value)
            await self._tell()

    async def look(self) -> None:
        """Take what key files hold now, and end what has been replaced for long enough. A file without a key changes nothing."""
        async with self._changing:
            changed = False
            now_s = self._clock()
            for plane, held in self._held.items():
                if held.before is not None and held.before.until_s <= now_s:
                    self._held[plane], changed = replace(held, before=None), True
            for plane, source in self._given.items():
                if source.file is not None and await self._reread(plane, source.file):
                    changed = True
            if changed:
                await self._tell()

    async def _reread(self, plane: Plane, path: Path) -> bool:
        if not await asyncio.to_thread(_changed, path, self._seen[plane]):
            return False
        try:
            key, self._seen[plane] = await asyncio.to_thread(read_key, path)
        except ValueError as error:
            if self._complained.get(plane) != str(error):
                logger.error("the %s key stays as it is: %s", plane.value, error)
            self._complained[plane] = str(error)
            return False
        self._complained.pop(plane, None)
        old = self._held[plane].credential
        if key == old.key:
            return False
        before = Credential(old.key, self._clock() + OVERLAP_S)
        self._held[plane] = _Held(Credential(key, FOR_EVER_S), before)
        logger.info("the %s key is a new one; the one before it opens for %d s more", plane.value, OVERLAP_S)
        return True

    async def _tell(self) -> None:
        if self._publish is not None:
            held = self.credentials
            await self._publish(Keys(0, held[Plane.INFERENCE], held[Plane.MANAGEMENT], held[Plane.API]))


def open_keyring(
    settings: Settings, environment: Mapping[Plane, str], folder: Path, handed: Handed | None = None
) -> Keyring | None:
    """The keys of a server that starts in `folder`, None when it has no tokens. `handed`: what the instance handed over that this one
    follows; a key of its environment goes on where this one has none. Raises `ConfigError`."""
    if settings.disable_token_authorization:
        return None
    given = given_keys(settings, environment)
    for plane in Plane:
        inherited = (handed or {}).get(plane.value + BY_ENVIRONMENT, ())
        if plane not in given and inherited:
            given[plane] = Given(VARIABLES[plane], key=inherited[0].key)
    keyring = Keyring(given, settings.token_expiration_min * 60, folder / KEY_FILE_NAME)
    keyring.fill(handed)
    logger.info("%s", keyring.describe())
    return keyring
