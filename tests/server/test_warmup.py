"""Samples that a model answers before anybody asks it."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, Reply, Request
from ringserve.protocol.errors import InvalidModel, OutOfResources, PredictionFailed, RingServeError
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server import warmup
from ringserve.server.repository.sections import Sample, content_type_of
from ringserve.server.warmup import STORED, WarmupRequest, samples_of, warm_up
from tests.server.worker_bench import BYTES, Model, Run, echo

TYPED = Signature((TensorSpec("x", "float32", (2,)), TensorSpec("n", "int64", ())), (TensorSpec("y", "float32", (2,)),))
ANSWER_BYTES_MAX = 6_553_500
FORM = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\npixels\r\n--cut--\r\n'


def sample(body: bytes = b"{}", content_type: str = "application/json", repeat: int = 1) -> WarmupRequest:
    return WarmupRequest("sample.json", content_type, body, repeat)


def warmed(run: Run, *samples: WarmupRequest, signature: Signature = BYTES, batch_size: int = 1) -> Model:
    model = Model(run)
    warm_up(model, signature, batch_size, ANSWER_BYTES_MAX, iter(samples))
    return model


def failure(run: Run, *samples: WarmupRequest, signature: Signature = BYTES, batch_size: int = 1) -> RingServeError:
    with pytest.raises(RingServeError) as caught:
        warmed(run, *(samples or (sample(),)), signature=signature, batch_size=batch_size)
    return caught.value


def raises(error: BaseException) -> Run:
    def run(batch: Batch) -> None:
        raise error

    return run


class TestRunning:
    @pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 3), (8, [1, 1, 1, 8, 8, 8])])
    def test_one_row_and_a_full_batch_as_often_as_the_sample_says(self, batch_size: int, batches: list[int]) -> None:
        assert warmed(echo, sample(repeat=3), batch_size=batch_size).batches == batches

    def test_a_handler_sees_a_sample_as_it_sees_a_request(self) -> None:
        seen: list[Request] = []

        def run(batch: Batch) -> None:
            seen.extend(Request(each.request_id, each.headers, list(each.parts)) for each in batch.requests)
            assert [bytes(each.parts[0].data) for each in batch.requests] == [b'{"a": 1}'] * batch.rows
            echo(batch)

        warmed(run, sample(b'{"a": 1}'), batch_size=3)
        assert len(seen) == 4
        for request in seen:
            assert request.headers == {
                "content-type": "application/json",
                "content-length": "8",
                "explain": "False",
                "url_path": "",
            }
            assert [(part.name, part.content_type) for part in request.parts] == [("body", "application/json")]

    def test_a_form_is_taken_apart_as_the_front_end_does(self) -> None:
        def run(batch: Batch) -> None:
            (part,) = batch.requests[0].parts
            assert (part.name, part.content_type, bytes(part.data)) == ("image", "image/png", b"pixels")
            echo(batch)

        warmed(run, sample(FORM, "multipart/form-data; boundary=cut"))

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (json.dumps({"x": [1, 2], "n": 3}).encode(), "application/json"),
            (np.array([1, 2], "<f4").tobytes() + np.array(3, "<i8").tobytes(), "application/octet-stream"),
        ],
        ids=["json", "raw"],
    )
    def test_a_typed_model_gets_arrays(self, body: bytes, content_type: str) -> None:
        def run(batch: Batch) -> None:
            assert batch.inputs["x"].tolist() == [[1, 2]] * batch.rows
            assert batch.inputs["n"].tolist() == [3] * batch.rows
            batch.outputs["y"][:] = 0

        model = warmed(run, sample(body, content_type, 2), signature=TYPED, batch_size=4)
        assert model.batches == [1, 1, 4, 4]

    def test_answers_of_any_length_are_read(self) -> None:
        def run(batch: Batch) -> None:
            batch.replies[:] = [Reply(b"x" * (warmup.ANSWER_BYTES + 1))] * batch.rows

        warmed(run, sample(), batch_size=3)

    def test_a_model_that_streams_finds_a_reader(self) -> None:
        """More chunks than may ever be on their way."""

        def run(batch: Batch) -> None:
            for _ in range(20):
                assert batch.control.stream([Reply(b"part")] * batch.rows)
            echo(batch)

        assert warmed(run, sample(), batch_size=2).batches == [1, 2]

    def test_without_samples_nothing_runs_and_nothing_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        assert warmed(echo).batches == []
        assert caplog.text == ""


class TestFailing:
    @pytest.mark.parametrize(
        ("run", "kind", "said"),
        [
            (raises(ValueError("x")), PredictionFailed, "Prediction failed"),
            (raises(SystemExit(0)), PredictionFailed, "Prediction failed"),
            (raises(OutOfResources("Out of resources")), OutOfResources, "Out of resources"),
            (lambda batch: None, PredictionFailed, "number of batch response mismatched, expect: 1, got: 0."),
        ],
    )
    def test_the_error_names_the_sample_and_keeps_its_kind(
        self, run: Run, kind: type[RingServeError], said: str
    ) -> None:
        error = failure(run)
        assert error.message == f"Warm-up with sample.json failed: {said}"
        assert isinstance(error, kind)

    def test_an_answer_with_an_errors_status_is_a_failure(self) -> None:
        def run(batch: Batch) -> None:
            batch.replies[:] = [Reply(b"no such label", "text/plain", 422)] * batch.rows

        assert failure(run).message.endswith("failed: it was answered with status 422: no such label")

    def test_an_answer_over_the_limit_is_a_failure(self) -> None:
        def run(batch: Batch) -> None:
            batch.replies[:] = [Reply(b"x" * (ANSWER_BYTES_MAX + 1))]

        assert "max_response_size" in failure(run).message

    def test_a_model_that_only_fails_in_a_full_batch_fails(self) -> None:
        def run(batch: Batch) -> None:
            if batch.rows > 1:
                raise ValueError("one at a time")
            echo(batch)

        assert warmed(run, sample()).batches == [1]
        assert failure(run, batch_size=4).message == "Warm-up with sample.json failed: Prediction failed"

    def test_a_sample_that_is_not_what_a_typed_model_declares_says_what_is(self) -> None:
        error = failure(echo, sample(b"[1]"), signature=TYPED)
        assert error.message == (
            "Warm-up with sample.json failed:"
            " Body: expected a JSON object with the inputs x, n, got a list of a number."
        )

    def test_a_stream_that_breaks_is_a_failure(self) -> None:
        def run(batch: Batch) -> None:
            batch.control.stream([PredictionFailed("half way")])
            echo(batch)

        assert failure(run).message.endswith("half way")


class TestGathering:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> Path:
        folder = tmp_path / STORED
        folder.mkdir(parents=True)
        return folder

    def gathered(self, model_dir: Path, *configured: Sample, **config: Any) -> list[WarmupRequest]:
        return list(samples_of(model_dir, configured, config))

    def test_those_of_the_configuration_come_first_and_then_the_stored_ones_by_name(
        self, tmp_path: Path, stored: Path
    ) -> None:
        (tmp_path / "cat.jpg").write_bytes(b"cat")
        for name in ("b.json", "a.txt", "c", ".hidden"):
            (stored / name).write_text(name)
        found = self.gathered(
            tmp_path, Sample(None, b"{}", "application/json", 2), Sample("cat.jpg", b"", "image/jpeg", 3)
        )
        assert found == [
            WarmupRequest("warmup[0]", "application/json", b"{}", 2),
            WarmupRequest("warmup[1], cat.jpg", "image/jpeg", b"cat", 3),
            WarmupRequest("MAR-INF/warmup/a.txt", "text/plain", b"a.txt", 1),
            WarmupRequest("MAR-INF/warmup/b.json", "application/json", b"b.json", 1),
            WarmupRequest("MAR-INF/warmup/c", "application/octet-stream", b"c", 1),
        ]

    def test_an_empty_list_in_the_configuration_leaves_the_stored_ones_out(self, tmp_path: Path, stored: Path) -> None:
        (stored / "a.txt").write_text("a")
        assert self.gathered(tmp_path, warmup=[]) == []
        assert len(self.gathered(tmp_path, warmup=None)) == 1

    def test_a_model_without_any_has_none(self, tmp_path: Path) -> None:
        assert self.gathered(tmp_path) == []

    @pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "a/../../b"])
    def test_a_file_outside_of_the_archive_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidModel, match=r"^warmup\[0\], .*: expected a path inside the model's folder"):
            self.gathered(tmp_path, Sample(name))

    @pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, os.mkfifo], ids=["none", "folder", "pipe"])
    def test_what_is_no_file_is_refused_at_once(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        make(tmp_path / "x.json")
        with pytest.raises(InvalidModel, match=r"^Warm-up with warmup\[0\], x\.json failed: expected a file"):
            self.gathered(tmp_path, Sample("x.json"))

    def test_a_file_that_is_too_long_is_refused(
        self, tmp_path: Path, stored: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(warmup, "SAMPLE_BYTES_MAX", 3)
        (stored / "a.txt").write_bytes(b"123")
        assert len(self.gathered(tmp_path)) == 1
        (stored / "a.txt").write_bytes(b"1234")
        with pytest.raises(InvalidModel, match=r"MAR-INF/warmup/a\.txt failed: expected at most 3 bytes, got more\."):
            self.gathered(tmp_path)

    def test_too_many_are_refused(self, tmp_path: Path, stored: Path) -> None:
        for number in range(65):
            (stored / str(number)).touch()
        with pytest.raises(InvalidModel, match=r"^MAR-INF/warmup: expected at most 64 samples, got 65$"):
            self.gathered(tmp_path)

    def test_each_is_read_when_its_turn_comes(self, tmp_path: Path) -> None:
        """Sixty-four of the longest would not fit into memory together."""
        samples: Iterator[WarmupRequest] = samples_of(tmp_path, [Sample(None, b"1"), Sample("absent")], {})
        assert next(samples).body == b"1"

    @pytest.mark.parametrize(
        ("name", "content_type"),
        [
            ("a.json", "application/json"),
            ("deep/CAT.JPG", "image/jpeg"),
            ("a.png", "image/png"),
            ("a.webp", "image/webp"),
            ("a.txt", "text/plain"),
            ("a.bin", "application/octet-stream"),
            ("a.json.gz", "application/octet-stream"),
            ("a", "application/octet-stream"),
            ("a.unheard-of", "application/octet-stream"),
        ],
    )
    def test_the_extension_says_what_a_file_is(self, name: str, content_type: str) -> None:
        assert content_type_of(name) == content_type
