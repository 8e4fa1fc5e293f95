"""What a client of the Open Inference Protocol asks for and gets, whatever transport it came by: REST and gRPC both parse into these
and render these, and `OpenInference` (service.py) knows no others."""

from collections.abc import Mapping
from typing import NamedTuple

from ringserve.protocol.request import Scalar, Source, Tensor


class RegionPlace(NamedTuple):
    """A part of a region that the client shares with the server, in bytes from the region's start."""

    region: str
    offset: int
    nbytes: int


class CallInput(NamedTuple):
    """One input as the client wrote it. Its bytes (row-major, little-endian, elements of BYTES behind their lengths) are `data`, or lie
    at `place`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview = b""
    place: RegionPlace | None = None


class CallOutput(NamedTuple):
    """One output the client asks for. `classification`: only the so many highest values, as texts; 0 for the tensor itself. `place`:
    where its bytes are to be written, instead of into the answer."""

    name: str
    classification: int = 0
    place: RegionPlace | None = None


class InferCall(NamedTuple):
    """One inference. `version` "" is the default one. `parameters` are all that came, also those that the server itself understands
    (`priority`, `timeout`, `sequence_id`, ...). `deadline_ns` (CLOCK_MONOTONIC) is when the client stops waiting, 0 for never;
    `forwarded` are headers or metadata that the model is to see."""

    model: str
    version: str
    id: str
    inputs: tuple[CallInput, ...]
    outputs: tuple[CallOutput, ...] = ()
    parameters: Mapping[str, Scalar] = {}
    deadline_ns: int = 0
    request_id: str = ""
    forwarded: Mapping[str, str] = {}


class InferResult(NamedTuple):
    """One answer. Outputs that were written to a region have no bytes here. With a `source`, the bytes are the model's memory until
    it is closed, which whoever sends them does. `final`: no other follows it; only decoupled models have more than one."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar] = {}
    final: bool = True
    source: Source | None = None
