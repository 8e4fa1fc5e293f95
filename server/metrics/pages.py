"""All counters of a server: the pages in which its front ends count, and what versions that are gone have left behind. No counter
ever falls: not when a version is replaced, or goes and comes again, and not when a front end dies."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ringserve.server.control import ShareCounters, VersionRoute
from ringserve.server.messages import Message
from ringserve.server.metrics.counts import HTTP_COUNTS, VERSION_COUNTS, CounterPage, Counts, add_up
from ringserve.shm.shm_errors import OutOfSharedMemory

logger = logging.getLogger("ringserve.metrics")

HTTP_KEY = 0  # versions are numbered from 1
Label = tuple[str, str]  # model, version


class _Page(NamedTuple):
    label: Label
    page: CounterPage


class CounterPages:
    """In the supervisor. Raises `OutOfSharedMemory` when not even HTTP can be counted."""

    def __init__(self, front_ends: int) -> None:
        self._front_ends = front_ends
        self._http = CounterPage(front_ends, HTTP_COUNTS)
        self._pages: dict[int, _Page] = {}
        self._retired: dict[Label, Counts] = {}
        self._added_up: dict[Label, Counts] | None = None  # as long as nothing else happens

    def share(
        self,
        front_end: int,
        known: set[int],
        routes: Iterable[VersionRoute],
        send: Callable[[Message, Sequence[int]], None],
    ) -> None:
        """Tell a front end of the pages that are new to it; `known` are the keys of the others. Before the routes themselves."""
        if HTTP_KEY not in known:
            known.add(HTTP_KEY)
            send(ShareCounters(HTTP_KEY, front_end), [self._http.fd])
        for route in routes:
            if route.key not in known:
                known.add(route.key)
                fd = self._fd(route)
                if fd is not None:
                    send(ShareCounters(route.key, front_end), [fd])

    def _fd(self, route: VersionRoute) -> int | None:
        """The page of a version; None when there is no memory for one, and it goes uncounted."""
        found = self._pages.get(route.key)
        if found is None:
            try:
                page = CounterPage(self._front_ends, VERSION_COUNTS)
            except OutOfSharedMemory as error:
                logger.error("model %s version %s is not counted: %s", route.model, route.version, error)
                return None
            found = self._pages[route.key] = _Page((route.model, route.version), page)
        return found.page.fd

    def front_end_gone(self, index: int) -> None:
        """Before its successor is told of any page."""
        for page in (self._http, *(each.page for each in self._pages.values())):
            page.clear_moment(index)

    def retire(self, key: int) -> None:
        """A version is gone, and its front ends have counted all they answered. Only who has not yet taken the end of a long answer
        is missing; the page cannot wait for that: it takes descriptors, and models may be replaced all the time."""
        if key not in self._pages:
            return
        label, page = self._pages.pop(key)
        before = [self._retired[label]] if label in self._retired else []
        self._retired[label] = counts = add_up([*before, *page.parts()], VERSION_COUNTS)
        counts["waiting"] = counts["slabs"] = 0
        page.close()

    # ---- read

    def http(self) -> Counts:
        return add_up(self._http.parts(), HTTP_COUNTS)

    def of(self, key: int) -> Counts | None:
        """Of one version since it is there; None where it goes uncounted, or is gone."""
        found = self._pages.get(key)
        return None if found is None else add_up(found.page.parts(), VERSION_COUNTS)

    def versions(self) -> dict[Label, Counts]:
        """By model and version, whatever has had that name. Asked again before anything else happens, as at a scrape, it says the same."""
        if self._added_up is not None:
            return dict(self._added_up)
        added_up = self._add_up()
        with contextlib.suppress(RuntimeError):  # there is no loop, as in a test
            asyncio.get_running_loop().call_soon(self._forget_sums)
            self._added_up = added_up
        return dict(added_up)

    def _forget_sums(self) -> None:
        self._added_up = None

    def _add_up(self) -> dict[Label, Counts]:
        parts: dict[Label, list[Counts]] = {label: [counts] for label, counts in self._retired.items()}
        for label, page in self._pages.values():
            parts.setdefault(label, []).extend(page.parts())
        return {label: add_up(each, VERSION_COUNTS) for label, each in parts.items()}

    def close(self) -> None:
        for each in self._pages.values():
            each.page.close()
        self._pages.clear()
        self._http.close()
