"""When a worker is worn: by its age, or by what it has grown to."""

import pytest

from ringserve.server.recycling import HEAVY_S_MIN, why_worn
from ringserve.server.repository.sections import Recycle

MIB = 1 << 20
AGE = Recycle(max_age_s=3600)
SIZE = Recycle(max_rss_bytes=100 * MIB)


@pytest.mark.parametrize(
    ("rules", "age_s", "rss", "rss_ready", "expected"),
    [
        (Recycle(), 10**9, 10**12, 0, ""),
        (AGE, 3599.9, 10**12, 0, ""),
        (AGE, 3600, 0, 0, "it has run for 3600 s, recycle.max_age is 3600 s"),
        (SIZE, 10**9, 100 * MIB, 10 * MIB, ""),
        (SIZE, 1, 101 * MIB, 10 * MIB, "it takes 101 MiB of memory, recycle.max_rss is 100 MiB"),
        (SIZE, 10**9, 0, 10 * MIB, ""),
        (SIZE, HEAVY_S_MIN - 1, 300 * MIB, 200 * MIB, ""),
        (SIZE, HEAVY_S_MIN, 300 * MIB, 200 * MIB, "it takes 300 MiB of memory, recycle.max_rss is 100 MiB"),
    ],
)
def test_why_a_worker_is_worn(rules: Recycle, age_s: float, rss: int, rss_ready: int, expected: str) -> None:
    """One that needed too much from the start is left alone for a while: a fresh one would hardly do better."""
    assert why_worn(rules, age_s, rss, rss_ready) == expected
