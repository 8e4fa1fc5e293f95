"""What is logged is written by a thread; what cannot be written is counted and said."""

import threading

from ringserve.server.logs.writer import BUFFER_BYTES_MAX, Outlet, Writer


class Lines:
    """A file that takes nothing while `error` is set."""

    def __init__(self) -> None:
        self.text = b""
        self.error: OSError | None = None
        self.held = threading.Event()
        self.held.set()

    def write(self, lines: bytes) -> None:
        self.held.wait(10)
        if self.error is not None:
            raise self.error
        self.text += lines

    def close(self) -> None:
        self.text += b"(closed)"


def test_lines_come_out_in_order_and_close_waits_for_them() -> None:
    target, said = Lines(), list[str]()
    writer = Writer("test", said.append)
    outlet = writer.outlet("a.log", target)
    for number in range(1000):
        outlet.put(b"%d\n" % number)
    writer.close()
    assert target.text == b"".join(b"%d\n" % number for number in range(1000)) + b"(closed)"
    assert said == []


def test_a_failure_is_said_once_and_so_is_its_end_with_what_is_missing() -> None:
    target, said = Lines(), list[str]()
    writer = Writer("test", said.append)
    outlet = writer.outlet("a.log", target)
    target.error = OSError(28, "No space left on device")
    outlet.write(b"1\n2\n", 2, 100.0)
    outlet.write(b"3\n", 1, 100.5)
    target.error = None
    outlet.write(b"4\n", 1, 100.9)
    assert target.text == b"", "it is not tried again at once"
    outlet.write(b"5\n", 1, 101.1)
    outlet.write(b"6\n", 1, 101.2)
    assert target.text == b"5\n6\n"
    assert said == [
        "a.log cannot be written: [Errno 28] No space left on device. The server goes on and tries again.",
        "a.log is written again; 4 lines are missing in it.",
    ]
    writer.close()


def test_a_target_that_takes_nothing_holds_up_nobody_and_costs_bounded_memory() -> None:
    target, said = Lines(), list[str]()
    target.held.clear()
    writer = Writer("test", said.append)
    outlet: Outlet = writer.outlet("the console", target)
    piece = b"x" * (BUFFER_BYTES_MAX // 4 - 1) + b"\n"
    for _ in range(10):
        outlet.put(piece)
    assert outlet.lost_lines == 6
    target.held.set()
    writer.close()
    assert target.text == piece * 4 + b"(closed)"
    assert said == ["the console is written again; 6 lines are missing in it."]


def test_flush_waits_no_longer_than_it_is_told_to() -> None:
    target = Lines()
    target.held.clear()
    writer = Writer("test", lambda sentence: None)
    writer.outlet("a.log", target).put(b"1\n")
    writer.flush(0.0)
    assert target.text == b""
    target.held.set()
    writer.flush()
    assert target.text == b"1\n"
    writer.close()
