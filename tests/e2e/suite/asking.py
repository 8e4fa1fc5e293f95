"""Says one row of the table to a server and judges its answer."""

import httpx

from tests.e2e.suite.cases import Ask


def wrong(client: httpx.Client, model: str, ask: Ask) -> str | None:
    """What is another thing than it should be; None where nothing is."""
    path = ask.path if ask.path.startswith("/") and not _behind(ask.path) else f"/predictions/{model}{ask.path}"
    headers = dict(ask.asked_with)
    if ask.content_type:
        headers["content-type"] = ask.content_type
    sent = {"files": list(ask.parts)} if ask.parts else {"content": ask.body}
    got = b""
    with client.stream(ask.method, path, headers=headers, **sent) as response:
        ended_early = False
        try:
            for part in response.iter_raw():
                got += part
        except (httpx.RemoteProtocolError, httpx.ReadError):
            ended_early = True
    return _difference(ask, response, got, ended_early)


def _behind(path: str) -> bool:
    """Whether a path follows the model's name: its first segment is a version."""
    return path[1:2].isdigit()


def _difference(ask: Ask, response: httpx.Response, got: bytes, ended_early: bool) -> str | None:
    shown = got[:500]
    if response.status_code != ask.status:
        return f"{ask.what}: status {response.status_code}, expected {ask.status}: {shown!r}"
    right = ask.answer(got) if callable(ask.answer) else got == ask.answer
    if not right:
        expected = "another" if callable(ask.answer) else repr(ask.answer[:500])
        return f"{ask.what}: body {shown!r}, expected {expected}"
    if ended_early != ask.ends_early:
        return f"{ask.what}: the answer {'has no end' if ended_early else 'has an end'}"
    if ask.chunks != ("transfer-encoding" in response.headers):
        return f"{ask.what}: headers {dict(response.headers)}"
    if ask.phrase is not None and response.reason_phrase != ask.phrase:
        return f"{ask.what}: phrase {response.reason_phrase!r}, expected {ask.phrase!r}"
    for name, value in ask.headers.items():
        if response.headers.get(name) != value:
            return f"{ask.what}: {name} is {response.headers.get(name)!r}, expected {value!r}"
    return None
