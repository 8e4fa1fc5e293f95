"""The lines of a version told a second time, without any care for speed: what test_lines.py compares with."""

from dataclasses import dataclass

from ringserve.server.scheduling.rules import NS_OF_US, Scheduling


@dataclass
class Request:
    """`late` says in which order the times of the late ones were found to be over; 0: its time is not."""

    number: int
    level: int
    items: int
    key: str
    arrived_ns: int
    expires_ns: int
    late: int = 0


class Reference:
    """`choose` answers with the numbers of requests, with a time, or with None."""

    def __init__(self, rules: Scheduling, items_max: int) -> None:
        self.rules = rules
        self.items_max = items_max
        self.waiting: list[Request] = []
        self._late = 0

    def is_full(self, level: int) -> bool:
        most = self.rules.policy_of(level).queue_size_max
        return most > 0 and sum(each.level == level for each in self.waiting) >= most

    def expire(self, now_ns: int) -> list[int]:
        over = [each for each in self.waiting if 0 < each.expires_ns <= now_ns and not each.late]
        refused = []
        for each in sorted(over, key=lambda request: (request.expires_ns, request.number)):
            if self.rules.policy_of(each.level).delays:
                self._late += 1
                each.late = self._late
            else:
                refused.append(each.number)
                self.waiting.remove(each)
        return refused

    def choose(self, now_ns: int, *, ahead: bool) -> list[int] | int | None:
        line = sorted(self.waiting, key=lambda each: (each.level, each.late, each.number))
        if not line:
            return None
        if not self.rules.batches:
            return [line[0].number]
        prefixes = [line[:count] for count in range(1, len(line) + 1)]
        fitting = [each for each in prefixes if self._fit(each)]
        longest = fitting[-1]
        preferred = [size for size in self.rules.preferred_batch_sizes if size <= self.items_max] or [self.items_max]
        exact = [each for each in fitting if _items(each) in preferred]
        if not exact and _items(longest) > max(preferred):
            exact = [each for each in fitting if _items(each) < max(preferred)]
        delay_ns = self.rules.queue_delay_us_max * NS_OF_US
        wait_until_ns = min(each.arrived_ns for each in longest) + delay_ns
        in_time = not delay_ns or now_ns < wait_until_ns
        if exact and in_time:
            return [each.number for each in exact[-1]]
        done = len(longest) < len(line) or _items(longest) >= max(preferred)
        if not done and ahead:
            return None
        if not done and delay_ns and in_time:
            return wait_until_ns
        return [each.number for each in longest]

    def _fit(self, requests: list[Request]) -> bool:
        return len(requests) == 1 or (_items(requests) <= self.items_max and len({each.key for each in requests}) == 1)


def _items(requests: list[Request]) -> int:
    return sum(each.items for each in requests)
