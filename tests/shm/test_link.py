"""A link: two rings, two doorbells and parcels, within one process and between two."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringserve.shm.layout import RING_ENTRIES
from ringserve.shm.link import END_FDS, FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Entry
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import PeerGone, RingCorrupt

Ends = tuple[FrontLink, WorkerLink]
PATIENCE_MS = 30_000
ECHOED = 10_000


@pytest.fixture
def ends() -> Iterator[Ends]:
    fds = create_link()
    front, worker = FrontLink(fds.front), WorkerLink(fds.worker)
    yield front, worker
    front.close()
    worker.close()


def parcel_of(text: bytes) -> Segment:
    parcel = Segment.create(len(text))
    parcel.view[:] = text
    return parcel


def test_a_command_and_its_completion_pass_each_other(ends: Ends) -> None:
    front, worker = ends
    assert front.commands.try_push(Entry(0, 3, 2))
    front.bell.ring()
    assert worker.listener.collect() == 1
    assert worker.commands.take() == Entry(0, 3, 2)
    assert front.commands.taken == 1
    assert worker.completions.try_push(Entry(0, 3, 2, 1))
    worker.bell.ring()
    assert front.listener.collect() == 1
    assert front.completions.take() == Entry(0, 3, 2, 1)
    assert worker.listener.collect() == 0


def test_parcels_arrive_in_the_order_they_were_sent(ends: Ends) -> None:
    front, worker = ends
    for sender, receiver in ((front, worker), (worker, front)):
        for n in range(20):
            parcel = parcel_of(b"parcel %d" % n)
            sender.send_parcel(parcel)
            parcel.close()  # the one on its way keeps the memory
        for n in range(20):
            received = receiver.receive_parcel()
            assert bytes(received.view) == b"parcel %d" % n
            received.close()


def test_a_parcel_sent_before_the_end_still_arrives(ends: Ends) -> None:
    front, worker = ends
    parcel = parcel_of(b"last words")
    worker.send_parcel(parcel)
    parcel.close()
    worker.close()
    received = front.receive_parcel()
    assert bytes(received.view) == b"last words"
    received.close()
    with pytest.raises(PeerGone, match="none came"):
        front.receive_parcel()


def test_a_parcel_that_was_announced_and_not_sent_is_not_waited_for(ends: Ends) -> None:
    front, _ = ends
    with pytest.raises(RingCorrupt, match="not sent"):
        front.receive_parcel()


def test_a_closed_end_is_noticed_by_everything(ends: Ends) -> None:
    front, worker = ends
    worker.close()
    parcel = parcel_of(b"undeliverable")
    with pytest.raises(PeerGone):
        front.bell.ring()
    with pytest.raises(PeerGone):
        front.listener.collect()
    with pytest.raises(PeerGone):
        front.send_parcel(parcel)
    parcel.close()


def test_a_link_leaves_no_descriptor_behind() -> None:
    before = set(os.listdir("/proc/self/fd"))
    fds = create_link()
    assert len(fds.front) == len(fds.worker) == END_FDS
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2 * END_FDS
    fds.close()
    assert set(os.listdir("/proc/self/fd")) == before
    fds = create_link()
    front, worker = FrontLink(fds.front), WorkerLink(fds.worker)
    front.close()
    worker.close()
    del front, worker  # the cursors keep the mapping, and mmap its own descriptor, as long as the ends live
    assert set(os.listdir("/proc/self/fd")) == before


ECHO = """
import select, sys
from ringserve.shm.link import WorkerLink
from ringserve.shm.shm_errors import PeerGone
link = WorkerLink(tuple(map(int, sys.argv[1:])))
poller = select.poll()
poller.register(link.listener.fd, select.POLLIN)
try:
    while True:
        poller.poll()
        for _ in range(link.listener.collect()):
            assert link.completions.try_push(link.commands.take())
            link.bell.ring()
except PeerGone:
    pass
"""


@pytest.mark.process
def test_ten_thousand_entries_come_back_in_order_from_another_process() -> None:
    """The doorbells' counts alone say what there is to take, on both sides."""
    fds = create_link()
    command = [sys.executable, "-P", "-c", ECHO, *map(str, fds.worker)]
    child = subprocess.Popen(command, pass_fds=fds.worker)
    for fd in fds.worker:
        os.close(fd)
    front = FrontLink(fds.front)
    poller = select.poll()
    poller.register(front.listener.fd, select.POLLIN)
    pushed = returned = 0
    try:
        while returned < ECHOED:
            while pushed < ECHOED and pushed - returned < RING_ENTRIES:
                assert front.commands.try_push(Entry(pushed, pushed % 7, pushed % 11, pushed % 13))
                front.bell.ring()
                pushed += 1
            assert poller.poll(PATIENCE_MS), "the child fell silent"
            for _ in range(front.listener.collect()):
                assert front.completions.take() == Entry(returned, returned % 7, returned % 11, returned % 13)
                returned += 1
        assert front.commands.taken == ECHOED
        front.close()
        assert child.wait(timeout=PATIENCE_MS / 1000) == 0
    finally:
        child.kill()
        child.wait()
        front.close()
