"""Which device a handler made from `BaseHandler` gets of what its worker was given."""

import logging

import pytest
import torch

from ringserve.backends.ts.utils.model_loading import pick_device


@pytest.mark.parametrize(
    ("cuda", "gpu_id", "device", "warned"),
    [(True, 2, "cuda:2", False), (True, None, "cpu", False), (False, 2, "cpu", True), (False, None, "cpu", False)],
)
def test_the_gpu_of_the_worker_is_used_where_torch_can(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cuda: bool,
    gpu_id: int | None,
    device: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert pick_device(gpu_id) == torch.device(device)
    assert bool(caplog.records) == warned
