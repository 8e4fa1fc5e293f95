"""The doorbell carries the count, and says when the other side is gone."""

from collections.abc import Iterator

import pytest

from ringserve.shm.doorbell import Listener, Ringer, make_doorbell
from ringserve.shm.shm_errors import PeerGone

Bell = tuple[Ringer, Listener]


@pytest.fixture
def bell() -> Iterator[Bell]:
    ends = make_doorbell()
    ringer, listener = Ringer(ends.ring_fd), Listener(ends.listen_fd)
    yield ringer, listener
    ringer.close()
    listener.close()


@pytest.mark.parametrize("count", [1, 2, 8, 1000])
def test_every_ring_is_counted_once(bell: Bell, count: int) -> None:
    ringer, listener = bell
    for _ in range(count):
        ringer.ring()
    assert listener.collect() == count
    assert listener.collect() == 0


def test_a_silent_bell_counts_nothing(bell: Bell) -> None:
    assert bell[1].collect() == 0


def test_ringing_at_a_closed_door_says_the_peer_is_gone(bell: Bell) -> None:
    ringer, listener = bell
    listener.close()
    with pytest.raises(PeerGone, match="the listener closed"):
        ringer.ring()


def test_what_was_rung_before_the_end_is_counted_first(bell: Bell) -> None:
    ringer, listener = bell
    ringer.ring()
    ringer.ring()
    ringer.close()
    assert listener.collect() == 2
    for _ in range(2):  # and it stays gone
        with pytest.raises(PeerGone, match="the ringer closed"):
            listener.collect()


def test_closing_twice_does_not_close_somebody_elses_descriptor(bell: Bell) -> None:
    for end in bell:
        end.close()
        assert end.fd == -1
        end.close()
