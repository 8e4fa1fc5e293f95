"""From the name of an envelope to the handler wrapped in one: the four that TorchServe has, or a class of the archive."""

from importlib import import_module

from ringserve.backends.entry_point import Handle, classes_of, import_if_there
from ringserve.backends.ts.torch_handler.request_envelope.base import BaseEnvelope
from ringserve.protocol.errors import InvalidModel

PACKAGE = "ringserve.backends.ts.torch_handler.request_envelope"
BUILT_IN = {
    "body": "BodyEnvelope",
    "json": "JSONEnvelope",
    "kserve": "KServeEnvelope",
    "kservev2": "KServev2Envelope",
}


def find_envelope(name: str) -> type:
    """The class of the envelope `name`: a built-in one, or the only one that the module of this name defines. A module may
    define other classes beside one that is derived from `BaseEnvelope`. Raises `InvalidModel`, and whatever the module raises.
    """
    if name in BUILT_IN:
        built_in: type = getattr(import_module(f"{PACKAGE}.{name}"), BUILT_IN[name])
        return built_in
    module = import_if_there(name)
    if module is None:
        raise InvalidModel(
            f'The envelope "{name}" is none of {", ".join(BUILT_IN)} and no module of the archive '
            "(model-config.yaml: envelope; config.properties: service_envelope)."
        )
    classes = classes_of(module)
    found = [kind for kind in classes if issubclass(kind, BaseEnvelope)] or classes
    if len(found) != 1 or not callable(getattr(found[0], "handle", None)):
        names = [kind.__name__ for kind in classes]
        raise InvalidModel(
            f'The module of the envelope "{name}" should define one BaseEnvelope, found the classes {names}.'
        )
    return found[0]


def wrap(handle: Handle, envelope: type) -> Handle:
    """What to call with each batch instead of `handle`."""
    wrapped: Handle = envelope(handle).handle
    return wrapped
