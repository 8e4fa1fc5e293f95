"""The modules of protocol/grpc are what `make proto` makes of the .proto files there."""

from pathlib import Path

import pytest

from ringserve.tools.make_proto import ENDINGS, PROTO_DIR, generate


def test_the_committed_modules_are_byte_for_byte_what_make_proto_makes(tmp_path: Path) -> None:
    made = {path.name: path.read_bytes() for path in generate(PROTO_DIR, tmp_path)}
    there = {path.name: path.read_bytes() for path in PROTO_DIR.iterdir() if path.name.endswith(ENDINGS)}
    assert sorted(made) == sorted(there), "run `make proto`"
    assert [name for name in made if made[name] != there[name]] == [], "run `make proto`"


def test_a_file_without_services_gets_no_modules_for_them(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    protos.mkdir()
    (protos / "words.proto").write_text('syntax = "proto3";\npackage words;\nmessage Word { string text = 1; }\n')
    assert sorted(path.name for path in generate(protos, tmp_path)) == ["words_pb2.py", "words_pb2.pyi"]


def test_what_protoc_refuses_is_said_with_its_words(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    protos.mkdir()
    (protos / "broken.proto").write_text('syntax = "proto3";\nmessage Word { Missing text = 1; }\n')
    with pytest.raises(RuntimeError, match=r"protoc refuses .*broken.proto:(.|\n)*\"Missing\" is not defined"):
        generate(protos, tmp_path)


def test_our_messages_live_in_one_process_with_a_client_that_defines_the_same_names() -> None:
    from tritonclient.grpc import service_pb2

    from ringserve.protocol.grpc import open_inference_pb2

    ours = open_inference_pb2.ModelInferRequest(model_name="m", id="1")
    assert ours.DESCRIPTOR.full_name == service_pb2.ModelInferRequest.DESCRIPTOR.full_name
    assert service_pb2.ModelInferRequest.FromString(ours.SerializeToString()).model_name == "m"
