"""A link: two rings, two doorbells and parcels, within one process and between two."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ringserve.shm.layout import RING_ENTRIES
from ringserve.shm.link import CHUNK_CREDITS, END_FDS, FrontLink, WorkerLink, create_link
from ringserve.shm.ring import Command, Completion
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
    command, completion = Command(0, 3, 1, 2, 128, 640), Completion(0, 3, 2, 1)
    assert front.commands.try_push(command)
    front.bell.ring()
    assert worker.listener.collect() == 1
    assert worker.commands.take() == command
    assert front.commands.taken == 1
    assert worker.completions.try_push(completion)
    worker.bell.ring()
    assert front.listener.collect() == 1
    assert front.completions.take() == completion
    assert worker.listener.collect() == 0


def test_credits_go_from_the_front_end_to_the_worker_and_are_counted(ends: Ends) -> None:
    front, worker = ends
    assert worker.credits.collect() == 0
    for _ in range(CHUNK_CREDITS):
        front.credits.ring()
    assert worker.credits.collect() == CHUNK_CREDITS
    assert (worker.credits.collect(), worker.listener.collect(), front.listener.collect()) == (0, 0, 0)


def test_a_worker_that_waits_for_credits_notices_that_its_front_end_is_gone(ends: Ends) -> None:
    front, worker = ends
    front.credits.ring()
    front.close()
    assert worker.credits.collect() == 1
    with pytest.raises(PeerGone):
        worker.credits.collect()


def test_what_one_worker_may_have_on_its_way_fits_into_the_ring() -> None:
    """Its chunks, and the two batches it may have finished: a completion never finds the ring full."""
    assert CHUNK_CREDITS + 2 <= RING_ENTRIES


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
from ringserve.shm.ring import Completion
from ringserve.shm.shm_errors import PeerGone
link = WorkerLink(tuple(map(int, sys.argv[1:])))
poller = select.poll()
poller.register(link.listener.fd, select.POLLIN)
try:
    while True:
        poller.poll()
        for _ in range(link.listener.collect()):
            command = link.commands.take()
            assert link.completions.try_push(Completion(command.sequence, command.slab, command.rows, 1, *command[4:]))
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
                assert front.commands.try_push(Command(pushed, pushed % 7, 0, pushed % 11, pushed % 13, 2**32 - 1))
                front.bell.ring()
                pushed += 1
            assert poller.poll(PATIENCE_MS), "the child fell silent"
            for _ in range(front.listener.collect()):
                echo = Completion(returned, returned % 7, returned % 11, 1, returned % 13, 2**32 - 1)
                assert front.completions.take() == echo
                returned += 1
        assert front.commands.taken == ECHOED
        front.close()
        assert child.wait(timeout=PATIENCE_MS / 1000) == 0
    finally:
        child.kill()
        child.wait()
        front.close()
