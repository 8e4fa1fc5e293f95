"""What differs from TorchServe, step by step, and why. Steps are named by their chapter and label; beside each stands the status of
our answer, for a batch one of each row."""

UNHEARD = "defect 14: case of names, credentials and the client's own id, wrong there"
WHOLE = "defect 11: one row fails the whole batch there"
UNCLOSED = "contract 1.1, a quirk: the client's wish about its connection is not heard there"
DIES = "TorchServe fails: its worker dies of it, or the answer breaks off"
JAVA = "TorchServe fails: an exception of Java, or an error without JSON (defect 14)"
LOST = "TorchServe fails: what was sent is lost"
UNREAD = "TorchServe fails: what the client did wrong, or could do right, is a 503 that does not say so"
OURS = "RingServe decided otherwise"

PREDICT = "kserve: POST /v1/models/inside:predict"
INFER = "kservev2: POST /v2/models/inside/infer"
INSIDE = "json: POST /predictions/inside"
MORTAL = "deaths: POST /predictions/mortal"
STREAMER = "streams: POST /predictions/streamer"
DOES = "POST /predictions/does"
ECHO = "requests: POST /predictions/echo"
NO_MATRIX = '{"inputs": [{"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3]}]}'
_WITH_WORKER = "initial_workers=1&synchronous=true"

BY_REASON: dict[str, dict[str, int | list[int]]] = {
    UNHEARD: {
        f"{ECHO} a header in odd case": 200,
        f"{ECHO} a key": 200,
        f"{ECHO} a request id": 200,
    },
    WHOLE: {
        "batches: answer = 1 | answer = 2 | raise ValueError('one') | answer = 4": [200, 200, 503, 200],
        "batches: answer = 1 | answer = object() | answer = 3 | answer = 4": [200, 503, 200, 200],
    },
    UNCLOSED: {
        f"{ECHO} a closing connection": 200,
        f"{ECHO} an upgrade": 200,
    },
    DIES: {
        f"raised: {DOES} : raise PredictionException(7, 400)": 400,
        f"{STREAMER} : s(['a'], 'odd', 500); answer = 'end'": 500,
        f"{STREAMER} : s([]); answer = 'end'": 503,
        f"{STREAMER} : context.set_response_status(418); s(['a']); answer = 'end'": 418,
        f"{MORTAL} : context.set_response_header(0, 'x-a', 7)": 200,
        f"{MORTAL} : import sys; sys.exit(1)": 503,
        f"{MORTAL} : answer = '\\ud800'": 503,
    },
    JAVA: {
        f"{ECHO} the form b'=1'": 200,
        f"{ECHO} the form b'a=%zz'": 200,
        f"{ECHO} a part without a name": 400,
        f"{ECHO} another expectation": 417,
        "requests: POST /echo/predict?a=%zz": 200,
        "routes: POST /predictions/e%zzo": 404,
    },
    LOST: {
        f"{ECHO} the form b'a'": 200,
        f"{ECHO} the form b'{{\"a\": 1}}'": 200,
        f"{ECHO} a part of a part": 200,
        f"{ECHO} another boundary": 400,
        f"{ECHO} parts without an end": 400,
    },
    UNREAD: {
        f'{INSIDE} {{"instances": []}}': 200,
        f'{INSIDE} {{"other": [1]}}': 400,
        f"{INSIDE} {{broken": 400,
        f"{INSIDE} a form with data {{'instances': [1]}}": 200,
        f"{INSIDE} as bytes": 200,
        f'{PREDICT} {{"instances": []}}': 200,
        f'{PREDICT} {{"other": [1]}}': 400,
        f"{PREDICT} {{broken": 400,
        f"{PREDICT} as text/plain": 200,
        f"{INFER} {NO_MATRIX}": 400,
        f'{INFER} {{"other": []}}': 400,
        f"{INFER} {{broken": 400,
        f"{INFER} as text/plain": 200,
        f"{INFER} a tensor answered with [[1], [2]]": 503,
    },
    f"{OURS}: a generator is an answer in parts": {
        f"answers: {DOES} : answers = (x for x in ['a'])": 503,
    },
    f"{OURS}: a handler may say how long its answer is kept": {
        f"answers: {DOES} : context.set_response_header(0, 'cache-control', 'max-age=5')": 200,
    },
    f"{OURS}: an exception is no success (contract 1.8, a quirk)": {
        f"raised: {DOES} : raise PredictionException('fine', 200)": 500,
    },
    f"{OURS}: 418 has a name": {
        f"raised: {DOES} : raise PredictionException('teapot', 418)": 418,
    },
    f"{OURS}: None is no part": {
        f"{STREAMER} : s([7]); s([None]); answer = 0.5": 200,
    },
    f"{OURS}: readiness is asked here as well, by GET": {
        "routes: POST /v1/models/echo": 405,
    },
    f"{OURS}: models that nobody has, and paths, are refused in the words of the Open Inference Protocol": {
        "routes: POST /v2/models/none/infer": 404,
        "routes: POST /v2/models/echo/train": 404,
    },
    f"{OURS}: the version of an inference can be said": {
        "routes: POST /v2/models/echo/versions/2.0/infer": 200,
    },
    f"{OURS}: more handlers can be loaded": {
        f"fails: management POST /models?url=other-name.mar&{_WITH_WORKER}": 200,
        f"fails: management POST /models?url=bare.mar&{_WITH_WORKER}": 200,
        f"fails: management POST /models?url=nested.mar&{_WITH_WORKER}": 200,
    },
    f"{OURS}: an archive without its handler is the client's mistake": {
        f"fails: management POST /models?url=absent.mar&{_WITH_WORKER}": 400,
    },
}
LISTED: dict[str, tuple[str, list[int]]] = {
    step: (reason, status if isinstance(status, list) else [status])
    for reason, steps in BY_REASON.items()
    for step, status in steps.items()
}
