"""Requests of sequences in tensors, and what a worker was told of them."""

from typing import TYPE_CHECKING, Any

from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.control import AskSequence, GrantSequence, RefuseSequence
from ringserve.server.inflight import Pending
from ringserve.server.scheduling.rules import CORRID, END, READY, START, Control
from ringserve.server.tensor_calls import read_calls
from tests.server.sequences.supervising import KEY, Supervisor

if TYPE_CHECKING:
    from ringserve.backends.contract import TensorCall
    from ringserve.shm.ring import Command
    from tests.server.conftest import DirectedWorker, Stage

IDLE_MS = 2000
PLAIN = Signature((TensorSpec("x", "uint8", (1,)),), (TensorSpec("y", "uint8", (1,)),))
CONTROLS = (
    Control("S", START, "INT32", 0, 1),
    Control("E", END, "FP32", -1, 1),
    Control("R", READY, "BOOL"),
    Control("C", CORRID, "UINT32"),
)
TOLD = Signature(
    (
        TensorSpec("x", "uint8", (ANY,)),
        TensorSpec("S", "int32", (1,), optional=True),
        TensorSpec("E", "float32", (1,), optional=True),
        TensorSpec("R", "bool", (1,), optional=True),
        TensorSpec("C", "uint32", (1,), optional=True),
    ),
    (TensorSpec("y", "uint8", (ANY,)),),
)
MUST_START = (
    "inference request for sequence {} to model 'm' must specify the START flag on the first request of the sequence"
)


def submit(stage: "Stage", body: bytes, sequence_id: int | str = 7, marks: str = "", **said: Any) -> Pending:
    """`marks` has an S for START and an E for END."""
    tensor = Tensor("x", "UINT8", (1, len(body)), body)
    start, end = "S" in marks, "E" in marks
    tensors = TensorRequest((tensor,), sequence_id=sequence_id, sequence_start=start, sequence_end=end, **said)
    pending = stage.dispatcher.submit(InferRequest("id", "", {}, b"", tensors=tensors))
    stage.pendings.append(pending)
    return pending


def error_of(pending: Pending) -> tuple[type[BaseException], str, int]:
    error: Any = pending.exception()
    return type(error), str(error), error.http_status


def asked(supervisor: Supervisor) -> list[tuple[str, bool]]:
    return [(word.sequence_id, word.begins) for word in supervisor.heard if isinstance(word, AskSequence)]


async def refuse(supervisor: Supervisor, sequence_id: str) -> None:
    """There is none of this id."""
    await supervisor.stage.settle()
    word = RefuseSequence(KEY, sequence_id, supervisor.tokens[sequence_id], "there is no such sequence", unknown=True)
    await supervisor.say(word)


def calls_of(worker: "DirectedWorker", command: "Command") -> "list[TensorCall | None]":
    calls, refused, parcels = read_calls(
        worker.lane.slabs[command.slab], command.first, command.rows, True, worker.link.receive_parcel
    )
    assert parcels == []
    assert refused == {}
    return calls


def values(call: "TensorCall | None", *names: str) -> list[Any]:
    """What an input of one element says."""
    assert call is not None
    arrays = [call.inputs[name] for name in names]
    assert {array.shape for array in arrays} == {(1, 1)}
    return [array.item() for array in arrays]


async def granted(stage: "Stage", supervisor: Supervisor, slots: dict[int, int]) -> None:
    """Sequences that have begun at worker 1, each in its slot."""
    for number, (sequence_id, slot) in enumerate(slots.items(), 1):
        submit(stage, b"%d" % sequence_id, sequence_id, "S")
        await stage.settle()
        token = supervisor.tokens[str(sequence_id)]
        await supervisor.say(GrantSequence(KEY, str(sequence_id), token, number, "1", KEY, slot))
