"""The cases of parity_cases.py, asked over REST (binary and JSON) and over gRPC; the answers without either."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ringserve.protocol.datatypes import BYTES, DTYPES, join_elements, split_elements
from tests.e2e.parity_cases import Case

CLIENT_S_MAX = 60.0
# What a gRPC code is as a status of HTTP.
HTTP = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Said(NamedTuple):
    """An answer: outputs as (name, datatype, shape, bytes), or an error's sentence."""

    status: int
    error: str = ""
    id: str = ""
    model: str = ""
    version: str = ""
    parameters: Mapping[str, object] = {}
    outputs: tuple[tuple[str, str, tuple[int, ...], bytes], ...] = ()


Ask = Callable[[Case, Mapping[str, object]], Said]


class Both:
    """Clients of one server."""

    def __init__(self, url: str, address: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=CLIENT_S_MAX, trust_env=False)
        self._channel = grpc.insecure_channel(address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._sequences = itertools.count(1000)
        self.forms: Mapping[str, Ask] = {"binary": self.binary, "JSON": self.json, "gRPC": self.grpc}

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    def ask(self, form: str, case: Case) -> Said:
        """What is said to the last request of a case. The requests of a sequence get a number that no other has."""
        number = next(self._sequences)
        for each in (*case.before, case):
            parameters = dict(each.parameters)
            if each.model == "oldest":
                parameters.setdefault("sequence_id", number)
            answer = self.forms[form](each, parameters)
            if each is not case:
                assert answer.status == 200, (case.title, each.title, answer)
        return answer._replace(error=answer.error.replace(f"sequence {number}", "sequence N"))

    # ---- REST

    def binary(self, case: Case, parameters: Mapping[str, object]) -> Said:
        inputs = [
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": each.shape,
                "parameters": {"binary_data_size": len(each.data)},
            }
            for each in case.inputs
        ]
        head = self._head(case, {**parameters, "binary_data_output": True}, inputs, binary=True)
        body = head + b"".join(each.data for each in case.inputs)
        response = self._http.post(
            _path(case), content=body, headers={"inference-header-content-length": str(len(head))}
        )
        if response.status_code != 200:
            return _refusal(response)
        length = int(response.headers.get("inference-header-content-length", len(response.content)))
        said, tail = orjson.loads(response.content[:length]), memoryview(response.content)[length:]
        outputs = []
        for each in said["outputs"]:
            size = each["parameters"]["binary_data_size"]
            outputs.append((each["name"], each["datatype"], tuple(each["shape"]), bytes(tail[:size])))
            tail = tail[size:]
        assert not tail
        return _answer(said, outputs)

    def json(self, case: Case, parameters: Mapping[str, object]) -> Said:
        inputs = [
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": each.shape,
                "data": _elements(each.datatype, each.data),
            }
            for each in case.inputs
        ]
        response = self._http.post(_path(case), content=self._head(case, parameters, inputs, binary=False))
        if response.status_code != 200:
            return _refusal(response)
        said = orjson.loads(response.content)
        outputs = [
            (each["name"], each["datatype"], tuple(each["shape"]), _bytes(each["datatype"], each["data"]))
            for each in said["outputs"]
        ]
        return _answer(said, outputs)

    @staticmethod
    def _head(case: Case, parameters: Mapping[str, object], inputs: Any, *, binary: bool) -> bytes:
        outputs = [
            {
                "name": name,
                "parameters": {"binary_data": binary} | ({"classification": classes} if classes else {}),
            }
            for name, classes in case.outputs
        ]
        return orjson.dumps({"id": case.id, "parameters": parameters, "inputs": inputs, "outputs": outputs})

    # ---- gRPC

    def grpc(self, case: Case, parameters: Mapping[str, object]) -> Said:
        request = service_pb2.ModelInferRequest(model_name=case.model, model_version=case.version, id=case.id)
        for each in case.inputs:
            request.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
            request.raw_input_contents.append(each.data)
        for name, classes in case.outputs:
            output = request.outputs.add(name=name)
            if classes:
                output.parameters["classification"].int64_param = classes
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        for name, value in parameters.items():
            setattr(request.parameters[name], kinds[type(value)], value)
        try:
            response = self._stub.ModelInfer(request, timeout=CLIENT_S_MAX)
        except grpc.RpcError as error:
            return Said(HTTP[error.code().name], error.details() or "")
        given = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.parameters.items()}
        assert len(response.raw_output_contents) == len(response.outputs)
        outputs = tuple(
            (each.name, each.datatype, tuple(each.shape), raw)
            for each, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        )
        return Said(200, "", response.id, response.model_name, response.model_version, given, outputs)


def _path(case: Case) -> str:
    version = f"/versions/{case.version}" if case.version else ""
    return f"/v2/models/{case.model}{version}/infer"


def _refusal(response: httpx.Response) -> Said:
    assert response.headers["content-type"] == "application/json"
    return Said(response.status_code, response.json()["error"])


def _answer(said: Mapping[str, Any], outputs: list[tuple[str, str, tuple[int, ...], bytes]]) -> Said:
    named = said["model_name"], said["model_version"]
    return Said(200, "", said.get("id", ""), *named, said.get("parameters", {}), tuple(outputs))


def _elements(datatype: str, data: bytes) -> list[Any]:
    if datatype == BYTES:
        return [each.decode() for each in split_elements(data)]
    return list(np.frombuffer(data, DTYPES[datatype]).tolist())


def _bytes(datatype: str, elements: list[Any]) -> bytes:
    if datatype == BYTES:
        return join_elements(each.encode() for each in elements)
    return np.array(elements, DTYPES[datatype]).tobytes()
