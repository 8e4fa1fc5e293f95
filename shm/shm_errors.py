"""What can go wrong in shared memory. Raised for what a peer, the machine or a dying process causes; translated once, by
the code that owns the lane."""


class ShmError(Exception):
    """Base of this folder's errors."""


class OutOfSharedMemory(ShmError):
    """The machine has no room for a segment; the message says how many bytes were asked for."""


class LayoutMismatch(ShmError):
    """The other end was built with another layout: magic, version or shape differ."""


class RingCorrupt(ShmError):
    """A doorbell counted entries that the ring does not hold."""


class PeerGone(ShmError):
    """The other end of a doorbell is closed: its process ended."""
