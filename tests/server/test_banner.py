"""The lines by which scripts and people see what a server runs with."""

from pathlib import Path

from ringserve.server.banner import banner
from ringserve.server.settings import Settings


def test_it_has_torchserves_lines_with_what_is_so() -> None:
    settings = Settings(model_store=Path("/models"), models=("a.mar", "b=c.mar"), enable_model_api=True)
    lines = banner(settings, gpus=2).splitlines()
    for line in (
        "Number of GPUs: 2",
        "Config file: N/A",
        "Inference address: http://127.0.0.1:8080",
        "Metrics address: http://127.0.0.1:8082",
        "Inference gRPC address: grpc://127.0.0.1:7070",
        "Management gRPC address: grpc://127.0.0.1:7071",
        "Model Store: /models",
        "Initial Models: a.mar,b=c.mar",
        "Default workers per model: 0",
        "Allowed Urls: []",
        "Model API enabled: true",
        f"Log dir: {Path.cwd() / 'logs'}",
    ):
        assert line in lines
    assert next(line for line in lines if line.startswith("Torchserve version: 0.12.0"))


def test_no_password_is_in_it() -> None:
    assert "s3cret" not in banner(Settings(keystore_pass="s3cret"), gpus=0)
    models = ("a=https://u:s3cret@h/a.mar?s3cret",)
    assert "s3cret" not in banner(Settings(models=models), gpus=0)
