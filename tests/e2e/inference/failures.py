"""What goes wrong, and what the client reads then; parts, batches, workers that die (contract 1.5, 1.8, 11.1, 11.3)."""

from collections.abc import Iterator
from typing import Any

from tests.e2e.inference.answers import does
from tests.e2e.inference.talk import Ask, Peer, Step

RAISED = (
    "raise ValueError('on purpose')",
    "raise Exception()",
    "raise KeyError('CUDA')",
    "raise RuntimeError('CUDA error: out of memory')",
    "raise RuntimeError('cuda')",
    "raise MemoryError",
    "raise MemoryError('much')",
    "assert False",
    "1 / 0",
    "nonsense =",
    "import no_such_module",
    "raise StopIteration",
    "raise TimeoutError('late')",
    "raise OSError(28, 'no space')",
    "raise NotImplementedError",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
    "def f(): f()\nf()",
)
PREDICTION_ERRORS = (
    "('no such thing', 404)",
    "('not this way', 400)",
    "('broken')",
    "('broken', 500)",
    "('odd', 513)",
    "('teapot', 418)",
    "('slow down', 429)",
    "('later', 503)",
    "('fine', 200)",
    "('')",
    "('gr\\u00fc\\u00dfe \"quoted\" <b>\\n', 400)",
    "(7, 400)",
    "(message='named', error_code=422)",
)
SET_AND_RAISED = (
    "context.set_response_status(418); raise ValueError('x')",
    "context.set_response_header(0, 'x-a', 'b'); raise ValueError('x')",
    "context.set_response_content_type(0, 'text/css'); answer = object()",
    "context.set_response_status(201); answers = 'text'",
    "context.set_response_status(404, 'Gone'); answers = None",
    "context.set_response_status(250)",
)
# Each ends the worker that runs it. (SIGKILL is not among them: whether it was for want of memory is the machine's to say.)
FATAL = (
    "import os; os._exit(3)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
)
# TorchServe's worker ends at these; a server need not.
UNKIND = (
    "import sys; sys.exit(1)",
    "context.set_response_header(0, 'x-a', 7)",
    "answer = '\\ud800'",
)
ROUTES = (
    "POST /predictions/does",
    "POST /predictions/does/1.0",
    "POST /explanations/does",
    "POST /invocations?model_name=does",
    "POST /models/does/invoke",
    "POST /does/predict",
    "POST /v1/models/does:predict",
    "POST /v2/models/does/infer",
)


def raised(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(does(code) for code in RAISED))
    first = "from ts.utils.util import PredictionException; "
    yield from peer.say(*(does(f"raise PredictionException{said}", first=first) for said in PREDICTION_ERRORS))
    yield from peer.say(
        does("from ts.service import PredictionException as P; answer = str(P('a', 7)), P('a').error_code")
    )
    yield from peer.say(does("from ts.service import PredictionException; raise PredictionException('imported', 409)"))
    yield from peer.say(*(does(code) for code in SET_AND_RAISED))
    yield from peer.say(*(Ask(line, b"raise ValueError('x')", note="that raises") for line in ROUTES))
    yield from peer.say(does("answer = 'still there'"))


def deaths(peer: Peer) -> Iterator[Step]:
    for code in (*FATAL, *UNKIND):
        yield from peer.say(does(code, "mortal"))
        peer.wait_for("mortal")
        yield from peer.say(does("answer = 'again'", "mortal"))
    yield from peer.say(does("import time; time.sleep(30)", "hasty"))
    peer.wait_for("hasty")
    yield from peer.say(does("answer = 'again'", "hasty"))


def workers(peer: Peer) -> Iterator[Step]:
    """Of a model that has none; all ways to it."""
    yield from peer.manage(Ask("PUT /models/spare?min_worker=0&max_worker=0&synchronous=true"))
    yield from peer.say(*(Ask(line.replace("does", "spare"), b"answer = 1", note="without workers") for line in ROUTES))
    yield from peer.manage(Ask("PUT /models/spare?min_worker=1&synchronous=true"))
    peer.wait_for("spare")
    yield from peer.say(does("answer = 'here'", "spare"))
    yield from peer.manage(Ask("DELETE /models/spare"))
    yield from peer.say(does("answer = 'here'", "spare"))


# ---- answers in parts

SEND = """from ts.handler_utils.utils import send_intermediate_predict_response
s = lambda what, message='part', code=200: send_intermediate_predict_response(
    what, context.request_ids, message, code, context)
"""


def send(what: str) -> str:
    return f"s({what}); "


STREAMS = (
    send("['a']") + send("[b'b']") + "answer = 'end'",
    send("['a']") + "answer = ''",
    send("['']") + "answer = 'end'",
    send("[{'a': 1}]") + "answer = {'b': [2]}",
    send("[7]") + send("[None]") + "answer = 0.5",
    send("['gr\\u00fc\\u00dfe']") + "answer = b'\\xff'",
    "context.set_response_content_type(0, 'text/event-stream'); "
    + send("['data: 1\\n\\n']")
    + "answer = 'data: 2\\n\\n'",
    "context.set_response_header(0, 'x-a', 'b'); " + send("['a']") + "context.set_response_header(0, 'x-c', 'd')",
    "context.set_response_status(202, 'Later'); " + send("['a']") + "answer = 'end'",
    send("['a']") + "context.set_response_status(500, 'Broken'); answer = 'end'",
    send("['a']") + "raise ValueError('late')",
    send("['a']") + "from ts.service import PredictionException as P; raise P('late', 404)",
    send("['a']") + "raise MemoryError",
    send("['a']") + "answers = None",
    send("['a']") + "answers = ['b', 'c']",
    send("['a']") + "answer = object()",
    send("['a'], 'gone', 404") + "answer = 'end'",
    send("['a'], 'odd', 500") + "answer = 'end'",
    send("['x' * 70000]") + "answer = 'end'",
    "".join(send(f"['{n}']") for n in range(20)) + "answer = 'end'",
    "context.set_response_status(418); " + send("['a']") + "answer = 'end'",
    send("[object()]") + "answer = 'end'",
    send("[]") + "answer = 'end'",
)


def streams(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(does(code, "streamer", SEND) for code in STREAMS))
    older = SEND.replace("ts.handler_utils.utils", "ts.protocol.otf_message_handler")
    yield from peer.say(does(send("['older']") + "answer = 'end'", "streamer", older))
    yield from peer.say(Ask("POST /explanations/streamer", (SEND + STREAMS[0]).encode(), note="in parts"))
    yield from peer.say(Ask("HEAD /predictions/streamer", (SEND + STREAMS[0]).encode(), note="in parts"))
    fatal = "import os; os._exit(3)"
    yield from peer.say(does(send("['a']") + fatal, "streamer", SEND))
    peer.wait_for("streamer")
    yield from peer.say(does("answer = 'again'", "streamer"))


# ---- several requests in a batch: four, which all wait for each other

TOGETHER: tuple[tuple[str, ...], ...] = (
    ("answer = len(data)",),
    tuple(f"answer = 'mine {n}'" for n in range(4)),
    tuple(f"context.set_response_status({200 + n}, 'Status {n}', index); answer = {n}" for n in range(4)),
    tuple(f"context.set_response_header(index, 'x-a', '{n}'); answer = {n}" for n in range(4)),
    ("context.set_all_response_status(202, 'All')",),
    ("answers = [b'only one']",),
    ("answers = None",),
    ("answers = [str(n % 1) for n in range(4)]",),
    ("raise ValueError('all')",),
    ("from ts.service import PredictionException as P; raise P('all', 404)",),
    ("raise MemoryError",),
    ("answer = 1", "answer = 2", "raise ValueError('one')", "answer = 4"),
    ("answer = 1", "answer = object()", "answer = 3", "answer = 4"),
    ("answer = len({context.get_request_id(i) for i in range(4)}), sorted(context.request_ids)",),
    ("answer = [context.get_request_header(i, 'host') for i in range(len(context.request_processor))]",),
    ("answer = context.system_properties['batch_size']",),
)
STREAMED = "if index == 0: s([f'part {i} ' for i in range(len(data))])\nanswer = 'end'"


def batches(peer: Peer) -> Iterator[Step]:
    """A step is a batch."""
    for codes in TOGETHER:
        # Rows lie in a batch in the order in which they were read, which is nobody's promise: what is noted does not tell it.
        rows = codes if len(codes) > 1 else codes * 4
        yield " | ".join(codes), {"rows": peer.together(*(does(code, "four") for code in rows))}
    answers = peer.together(*(does(STREAMED, "four", SEND) for _ in range(4)))
    for answer in answers:
        answer["parts"] = [_without_row(part) for part in answer.get("parts", [])]
    yield "in parts", {"rows": answers}


def _without_row(part: Any) -> Any:
    return "part <row> " if isinstance(part, str) and part.startswith("part ") else part
