"""The digits example without a server: it learns, its pictures are what they say, its handler reads them."""

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # examples are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from examples.digits import build, images, train
    from examples.digits.dataset import Split, load_split, one_of_each
    from examples.digits.model import DigitNet

PICTURES = ROOT / "examples" / "digits" / "images"


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split()


@pytest.fixture(scope="module")
def network(split: Split) -> DigitNet:
    return train.train(split.training)


class _BaseHandler:
    """Stands for TorchServe's, which exists only in a worker: the handler's own two ends are what is tested."""


class _PredictionException(Exception):
    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.error_code = error_code


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    stubs: dict[str, dict[str, Any]] = {
        "ts": {},
        "ts.torch_handler": {},
        "ts.torch_handler.base_handler": {"BaseHandler": _BaseHandler},
        "ts.utils": {},
        "ts.utils.util": {"PredictionException": _PredictionException},
    }
    for name, names in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(ROOT)
    from examples.digits.digit_handler import DigitHandler

    yield DigitHandler()
    monkeypatch.delitem(sys.modules, "examples.digits.digit_handler")  # it holds the stubs


def test_training_reaches_the_promised_accuracy_on_digits_it_never_saw(split: Split, network: DigitNet) -> None:
    assert train.accuracy(network, split.held_out) >= train.ACCURACY_MIN


def test_no_held_out_picture_is_trained_on(split: Split) -> None:
    trained_on = {image.tobytes() for image in split.training.images}
    assert not trained_on & {image.tobytes() for image in one_of_each(split.held_out).images}


def test_the_shipped_pictures_are_what_the_script_draws(split: Split) -> None:
    chosen = one_of_each(split.held_out)
    assert sorted(path.name for path in PICTURES.iterdir()) == [f"{digit}.png" for digit in range(10)]
    for image, digit in zip(chosen.images, chosen.labels, strict=True):
        with Image.open(PICTURES / f"{digit}.png") as shipped:
            assert np.array_equal(np.array(shipped), np.array(images.picture(image)))


def test_the_handler_reads_every_shipped_picture_right(handler: Any, network: DigitNet) -> None:
    rows = [{"body": bytearray((PICTURES / f"{digit}.png").read_bytes())} for digit in range(10)]
    batch = handler.preprocess(rows)
    assert batch.shape == (10, 1, 8, 8)
    with torch.inference_mode():
        answers = handler.postprocess(network(batch))
    assert [answer["digit"] for answer in answers] == list(range(10))
    assert all(0.5 < answer["probability"] <= 1 for answer in answers)


def test_the_handler_takes_a_picture_under_either_of_the_names_that_clients_use(handler: Any) -> None:
    picture = (PICTURES / "7.png").read_bytes()
    rows = handler.preprocess([{"data": picture}, {"body": picture}])
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("body", [b"", b"not a picture", (PICTURES / "7.png").read_bytes()[:60]])
def test_the_handler_blames_the_client_for_a_body_that_is_no_picture(handler: Any, body: bytes) -> None:
    with pytest.raises(_PredictionException, match="not a picture") as raised:
        handler.preprocess([{"body": body}])
    assert raised.value.error_code == 400


@pytest.mark.filterwarnings(r"ignore:`torch\.jit:DeprecationWarning")  # TorchScript is what this archive is about
def test_both_saved_forms_of_the_network_agree(tmp_path: Path, network: DigitNet, split: Split) -> None:
    train.save(network, tmp_path)
    restored = DigitNet()
    restored.load_state_dict(torch.load(tmp_path / "digits.pt", weights_only=True))
    typed = torch.jit.load(str(tmp_path / "digits-typed.pt"))  # type: ignore[no-untyped-call]
    rows = train.as_batch(one_of_each(split.held_out))
    with torch.inference_mode():
        scores = typed(rows)
        assert torch.allclose(scores, torch.softmax(restored.eval()(rows), dim=1), atol=1e-6)
    assert scores.shape == (10, 10)


def test_archives_are_made_again_only_when_a_source_is_newer(tmp_path: Path) -> None:
    made, source = tmp_path / "digits.mar", tmp_path / "train.py"
    source.touch()
    assert not build.up_to_date([made], [source])
    made.touch()
    newer_ns = source.stat().st_mtime_ns + 1_000_000_000
    _set_time(made, newer_ns)
    assert build.up_to_date([made], [source])
    _set_time(source, newer_ns + 1)
    assert not build.up_to_date([made], [source])


def test_every_listed_source_of_the_archives_exists() -> None:
    assert [name for name in build.SOURCES if not (build.HERE / name).is_file()] == []


def _set_time(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))
