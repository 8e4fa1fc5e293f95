"""What a front end must know of a model beside its signature, to speak of it as the Open Inference Protocol does."""

import msgspec


class ServedModel(msgspec.Struct, frozen=True, array_like=True):
    """`config_json` is the model's configuration as Triton writes it, b"" where nobody has declared one. `max_batch_size` is how many
    items one request may have; 0 where the model does not batch, or nobody has said. `labels` are, by output, the names of its
    classes."""

    config_json: bytes = b""
    platform: str = ""
    max_batch_size: int = 0
    labels: dict[str, list[str]] = {}
