"""Counters in shared memory: who writes, who reads, who comes after."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from ringserve.protocol.errors import BadRequest, BodyTooLarge, OutOfResources, PredictionFailed, WorkerLost
from ringserve.server.metrics.counts import (
    HTTP_COUNTS,
    REASONS,
    VERSION_COUNTS,
    CounterPage,
    add_up,
    attach_counts,
    status_class,
)
from ringserve.shm.layout import CACHE_LINE, counter_part_at
from ringserve.shm.shm_errors import LayoutMismatch


@pytest.fixture
def page() -> Iterator[CounterPage]:
    page = CounterPage(3, VERSION_COUNTS)
    yield page
    page.close()


def test_each_front_end_writes_its_part_and_the_maker_reads_all(page: CounterPage) -> None:
    for own in (0, 2):
        part = attach_counts(os.dup(page.fd), own, VERSION_COUNTS)
        part["asked"] += np.array([own + 1, 10])
    assert [part["asked"].tolist() for part in page.parts()] == [[1, 10], [0, 0], [3, 10]]
    assert add_up(page.parts(), VERSION_COUNTS)["asked"].tolist() == [4, 20]


def test_a_successor_goes_on_where_the_dead_one_stopped_also_in_the_middle_of_a_change(page: CounterPage) -> None:
    dead = attach_counts(os.dup(page.fd), 1, VERSION_COUNTS)
    dead["asked"][0] = 5
    dead["waiting"] = 7
    dead["changing"] += 1
    page.clear_moment(1)
    assert page.parts()[1]["waiting"] == 0
    dead["changing"] += 1
    successor = attach_counts(os.dup(page.fd), 1, VERSION_COUNTS)
    successor["asked"][0] += 1
    told = page.parts()[1]
    assert told["asked"][0] == 6
    assert told["changing"] % 2 == 0


def test_a_part_that_is_for_ever_being_changed_is_read_all_the_same(page: CounterPage) -> None:
    part = attach_counts(os.dup(page.fd), 0, VERSION_COUNTS)
    part["asked"][0] = 5
    part["changing"] += 1
    assert page.parts()[0]["asked"][0] == 5


def test_memory_outlives_the_page_and_its_descriptor(page: CounterPage) -> None:
    part = attach_counts(os.dup(page.fd), 0, VERSION_COUNTS)
    page.close()
    part["asked"] += 1
    assert part["asked"].tolist() == [1, 1]


def test_a_page_of_another_kind_is_not_written_to(page: CounterPage) -> None:
    with pytest.raises(LayoutMismatch):
        attach_counts(os.dup(page.fd), 0, HTTP_COUNTS)


def test_parts_share_no_line() -> None:
    for own in range(3):
        assert counter_part_at(own, VERSION_COUNTS.itemsize) % CACHE_LINE == 0
        assert (
            counter_part_at(own + 1, VERSION_COUNTS.itemsize) - counter_part_at(own, VERSION_COUNTS.itemsize)
            >= VERSION_COUNTS.itemsize
        )


@pytest.mark.parametrize(
    ("status", "at"), [(200, 0), (299, 0), (400, 1), (413, 1), (499, 1), (300, 2), (500, 2), (507, 2), (600, 2)]
)
def test_statuses_fall_into_torchserves_three_classes(status: int, at: int) -> None:
    assert status_class(status) == at


def test_the_usual_errors_have_reasons_of_their_own() -> None:
    for error in (BadRequest, BodyTooLarge, WorkerLost, PredictionFailed, OutOfResources):
        assert error.code in REASONS


def test_of_what_was_so_last_the_newest_counts(page: CounterPage) -> None:
    for own, at_ns in ((0, 5), (1, 9), (2, 7)):
        part = attach_counts(os.dup(page.fd), own, VERSION_COUNTS)
        part["last_ns"], part["last_queue_ns"] = at_ns, 100 + own
    assert add_up(page.parts(), VERSION_COUNTS)["last_queue_ns"] == 101
