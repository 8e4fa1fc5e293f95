"""How much memory processes take. The server looks itself; this is for those who import it."""

import logging
from typing import TextIO

import psutil

LOGGER = logging.getLogger("ringserve.model")


def get_cpu_usage(pid: str | int) -> int:
    """The resident bytes of a process; 0 for one that is gone."""
    try:
        return int(psutil.Process(int(pid)).memory_info().rss)
    except (psutil.Error, ValueError):
        LOGGER.exception("Failed get process for pid: %s", pid)
        return 0


def check_process_mem_usage(stdin: TextIO) -> None:
    """Say how much each of the processes takes whose numbers are in the first line, between commas."""
    for pid in stdin.readline().strip().split(","):
        if pid:
            LOGGER.info("%s:%d", pid, get_cpu_usage(pid))
