"""The counters of all versions over their lives."""

import os
from collections.abc import Sequence

from ringserve.server.control import ShareCounters, VersionRoute
from ringserve.server.messages import Message
from ringserve.server.metrics.counts import HTTP_COUNTS, VERSION_COUNTS, Counts, attach_counts
from ringserve.server.metrics.pages import CounterPages


def route(key: int, version: str = "1.0") -> VersionRoute:
    return VersionRoute(key, "m", version, True, 1, 0, False, 100, 0)


class FrontEnd:
    """One that attaches every page it is sent."""

    def __init__(self, pages: CounterPages, index: int = 0) -> None:
        self._pages = pages
        self._index = index
        self._known: set[int] = set()
        self.parts: dict[int, Counts] = {}
        self.told = 0

    def hear(self, *routes: VersionRoute) -> None:
        self._pages.share(self._index, self._known, routes, self._send)

    def _send(self, message: Message, fds: Sequence[int]) -> None:
        assert isinstance(message, ShareCounters)
        self.told += 1
        kind = VERSION_COUNTS if message.key else HTTP_COUNTS
        self.parts[message.key] = attach_counts(os.dup(fds[0]), message.own, kind)

    def count(self, key: int, requests: int) -> None:
        self.parts[key]["asked"][0] += requests


def asked(pages: CounterPages) -> dict[tuple[str, str], int]:
    return {label: int(counts["asked"][0]) for label, counts in pages.versions().items()}


def test_a_front_end_is_told_of_each_page_once() -> None:
    pages = CounterPages(2)
    front_end = FrontEnd(pages, 1)
    front_end.hear()
    front_end.hear(route(1), route(2, "2.0"))
    front_end.hear(route(1), route(2, "2.0"))
    assert (front_end.told, sorted(front_end.parts)) == (3, [0, 1, 2])
    pages.close()


def test_front_ends_add_up_and_a_successor_adds_to_what_the_dead_one_counted() -> None:
    pages = CounterPages(2)
    first, second = FrontEnd(pages, 0), FrontEnd(pages, 1)
    for front_end in (first, second):
        front_end.hear(route(1))
        front_end.count(1, 5)
        front_end.parts[1]["waiting"] = 3
        front_end.parts[0]["connections"] = 2
    pages.front_end_gone(0)
    successor = FrontEnd(pages, 0)
    successor.hear(route(1))
    successor.count(1, 1)
    assert asked(pages) == {("m", "1.0"): 11}
    assert pages.versions()["m", "1.0"]["waiting"] == 3
    assert pages.http()["connections"] == 2
    pages.close()


def test_a_version_that_goes_and_comes_again_goes_on_counting() -> None:
    pages = CounterPages(1)
    front_end = FrontEnd(pages)
    for key, requests in ((1, 5), (2, 7), (3, 1)):
        front_end.hear(route(key))
        front_end.count(key, requests)
        before = asked(pages)
        pages.retire(key)
        assert asked(pages) == before
    assert asked(pages) == {("m", "1.0"): 5 + 7 + 1}
    pages.retire(99)  # nobody ever counted it
    pages.close()


def test_what_is_so_at_the_moment_goes_with_a_version_and_so_do_its_descriptors() -> None:
    pages = CounterPages(1)
    before = os.listdir("/proc/self/fd")
    front_end = FrontEnd(pages)
    front_end.hear(route(1))
    front_end.parts[1]["waiting"] = 9
    front_end.parts.clear()
    pages.retire(1)
    assert pages.versions()["m", "1.0"]["waiting"] == 0
    assert len(os.listdir("/proc/self/fd")) == len(before)
    pages.close()
