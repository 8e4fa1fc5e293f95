"""What handlers do while they run: batches, failures, streams, and all they do to the process around them (contract 1.5, 1.8, 11)."""

import json
import re
from typing import Any

from tests.e2e.suite.cases import Archive, Ask, Case, Together, Tool, fails, says, tells

ALONE = "the failure of one row is its own (section 15, 11)"
PER_ROW = "the failure of a batch says no numbers"
JSON = "application/json"
FILL = "batchSize: {rows}\nmaxBatchDelay: 20000\nbatching: fill\n"


# ---- batches


def row(word: str, rows: int) -> Ask:
    """Of the archive `rows`."""
    bad = word.startswith("bad")
    return tells(
        word,
        word,
        {"word": word, "rows": rows, "ids": rows},
        status=422 if bad else 200,
        phrase="Not This One" if bad else None,
        headers={"x-row": word},
    )


def of_batch(word: str, answer: str, status: int = 200, **more: Any) -> Ask:
    return says(word, word, answer, status=status, **more)


def mismatch(word: str) -> Ask:
    return fails(word, word, 503, lambda said: said.startswith(b"number of batch response mismatched"))


UNSUPPORTED = "Unsupported model output data type."
BATCHES = (
    Case(
        Archive("rows", "rows.py", config=FILL.format(rows=4), tool=Tool.THEIRS),
        (
            Together("every row has its own answer", tuple(row(word, 4) for word in ("a", "b", "c", "d"))),
            Together("and its own status", tuple(row(word, 4) for word in ("a", "bad", "bad too", "d"))),
        ),
    ),
    Case(
        Archive("rows-by-and-by", "rows.py", config="batchSize: 4\nmaxBatchDelay: 50\n"),
        (tells("nobody waits for a full batch in vain", "one", {"word": "one", "rows": 1, "ids": 1}),),
    ),
    Case(
        Archive("whole-batch", "whole_batch.py", config=FILL.format(rows=2)),
        (
            Together(
                "a status for all is for all",
                (of_batch("all", "all", 207, phrase="Every One"), of_batch("b", "b", 207, phrase="Every One")),
            ),
            Together("an answer too few fails all", (mismatch("too few"), mismatch("b"))),
            Together("an answer too many fails all", (mismatch("too many"), mismatch("b"))),
            Together(
                "what cannot be serialised fails alone",
                (fails("a set", "a set", 503, UNSUPPORTED), of_batch("b", "b", torchserve=ALONE)),
            ),
            Together("and the next batch is served", (of_batch("a", "a"), of_batch("b", "b"))),
        ),
    ),
)

# ---- failures

FAILED = "Prediction failed"
INVALID = "Invalid model predict output"
ENDS = "TorchServe's worker ends with that"


def failing(word: str, message: str = FAILED, status: int = 503, **more: Any) -> Ask:
    return fails(f"{word} fails", word, status, message, headers={"connection": "close"}, **more)


FAILURES = (
    Case(
        Archive("raises", "raises.py", tool=Tool.THEIRS),
        (
            *(failing(word) for word in ("raise", "assert", "key", "recursion", "stop iteration")),
            failing("own error", torchserve=ENDS),
            failing("exit", torchserve=ENDS),
            failing("interrupt", torchserve=ENDS),
            failing("prediction", "the input is too short", 500),
            failing("prediction 513", "what 513 is for", 513),
            failing("prediction 404", "no such thing", 404),
            failing("prediction 429", "later", 429),
            failing("memory", "Out of resources", 507),
            failing("cuda", "Out of resources", 507),
            *(failing(word, INVALID) for word in ("string", "tuple", "none", "dict")),
            *(mismatch(word) for word in ("nothing", "two")),
            failing("function", UNSUPPORTED),
            says("and the next request is served", "x", "served x"),
        ),
    ),
    Case(
        Archive("asynchronous", "asynchronous.py"),
        (fails("a coroutine is no list", b"x", 503, INVALID),),
    ),
    Case(
        Archive("dies", "dies.py", tool=Tool.COMMAND),
        (
            says("it serves", "x", "alive"),
            fails("a process that exits says so", "exit", 500, lambda said: said.startswith(b"Worker died.")),
            says("another process takes its place", "x", "alive"),
            fails("a process that is killed says so", "signal", 500, lambda said: said.startswith(b"Worker died.")),
            says("and that one is replaced too", "x", "alive"),
        ),
    ),
)

# ---- answers in parts


def streamed(word: str) -> Ask:
    parts = "".join(json.dumps({"row": 0, "part": number}, indent=2) for number in range(3))
    return says(
        word,
        word,
        f"{word}:first;{parts}{word}:last",
        chunks=True,
        headers={"ts_stream_next": None},
        torchserve="its own header ts_stream_next reaches the client (section 15, 10)",
    )


def streamed_row(word: str) -> Ask:
    """One of two rows: nobody knows which."""

    def judge(answer: bytes) -> bool:
        numbers = [json.dumps({"row": row, "part": part}, indent=2) for row in (0, 1) for part in range(3)]
        rows = ["".join(numbers[:3]), "".join(numbers[3:])]
        return answer.decode() in [f"{word}:first;{each}{word}:last" for each in rows]

    return says(word, word, judge, chunks=True)


STREAMS = (
    Case(
        Archive("streams", "streams.py", tool=Tool.THEIRS),
        (
            streamed("a"),
            says(
                "a failure after the first part ends the connection",
                "fail",
                "fail:first;",
                chunks=True,
                ends_early=True,
            ),
            says("an answer in one part has a length", "whole", "whole", headers={"content-length": "5"}),
        ),
    ),
    Case(
        Archive("streams-two", "streams.py", config=FILL.format(rows=2)),
        (Together("each row has its own parts", (streamed_row("a"), streamed_row("b"))),),
    ),
    Case(
        Archive("generates", "generates.py"),
        (
            says(
                "what a generator yields are parts",
                "g",
                "g0;g1;g2;",
                chunks=True,
                torchserve="TorchServe knows no generators",
            ),
        ),
    ),
)

# ---- the process around them

SURROUNDINGS = (
    Case(
        Archive("chatty", "chatty.py", tool=Tool.THEIRS),
        (
            says("two megabytes of output hold up nobody", b"x", "said a lot"),
            says("nor the second time", b"x", "said a lot"),
        ),
    ),
    Case(
        Archive("writes", "writes.py", tool=Tool.THEIRS),
        (
            tells(
                "a model may write into its folder and leave it",
                b"",
                {"kept": "written by initialize", "stays_there": True},
            ),
        ),
    ),
    Case(
        Archive("helpers-of-its-own", "helpers_of_its_own.py"),
        (
            tells("a thread works for it", "thread", 42),
            tells("an executor does", "executor", [2, 4, 6]),
            says("a forked child does", "fork", "from the child"),
            tells("a pool of processes does", "process", [8, 10]),
            tells("a spawned process does", "spawn", [12]),
            says("another program imports its modules", "program", "16"),
            says("an event loop of its own runs", "loop", "from a coroutine"),
        ),
    ),
    Case(
        Archive("lazy", "lazy.py"),
        (
            tells("the first request may be slow", b"", {"first": True, "answer": 3}),
            tells("the second finds it loaded", b"", {"first": False, "answer": 3}),
        ),
    ),
    Case(
        Archive("meddles", "meddles.py"),
        (
            says("a process in disorder still answers", "x", "still here"),
            fails("and fails", "raise", 503, FAILED),
            says("and answers again", "x", "still here"),
        ),
    ),
)

# ---- the context


def is_an_id(answer: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer) is not None


def remembered(session: str, word: str, *seen: str) -> Ask:
    return tells(
        f"{session} says {word}",
        word,
        {"session": session, "seen": list(seen), "same": True},
        asked_with={"x-session": session},
    )


METRICS = {"found": True, "names": ["ModelName"]}
NOT_FOUND = "Unknown API endpoint: v2"
CONTEXTS = (
    Case(Archive("measures", "measures.py", tool=Tool.THEIRS), (tells("metrics are taken", b"", METRICS),)),
    Case(
        Archive("remembers", "remembers.py", tool=Tool.THEIRS),
        (
            remembered("one", "a", "a"),
            remembered("two", "b", "b"),
            remembered("one", "c", "a", "c"),
        ),
    ),
    Case(Archive("identified", "identified.py"), (says("the handler sees a request id", b"", is_an_id),)),
    Case(
        Archive("routed", "routed.py", tool=Tool.THEIRS),
        (
            says("there may be no path", b"", "no path"),
            says("nor behind the version", b"", "no path", path="/1.0"),
            tells("a path behind the version reaches the handler", b"", ["a", "b"], path="/1.0/v1/models"),
            says("by any method", None, "fine", path="/1.0/health", method="GET"),
            fails("a path that it does not know is not found", b"", 404, NOT_FOUND, path="/1.0/v2"),
        ),
    ),
    Case(
        Archive("describes", "describes.py", tool=Tool.THEIRS),
        (
            says("it predicts", b"a", "dog"),
            tells("it explains", b"fur", {"because": "fur"}, path="/explanations/describes"),
            tells("also by version", b"fur", {"because": "fur"}, path="/explanations/describes/1.0"),
        ),
    ),
)

BEHAVIOURS = (*BATCHES, *FAILURES, *STREAMS, *SURROUNDINGS, *CONTEXTS)
