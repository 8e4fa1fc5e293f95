"""What makes a listener speak TLS: the context of its connections, exchanged when the certificate is.

The private key travels from the supervisor to the front ends in a memory file, whose descriptor only they get.
"""

import asyncio
import logging
import os
import resource
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringserve.server.settings import Settings

if TYPE_CHECKING:
    from ringserve.server.security.certificate import CertificateKeeper
    from ringserve.server.security.tls_connection import TlsConnection

logger = logging.getLogger("ringserve.tls")

CERTIFICATE_LOOK_S = 0.5
KEYS = ("certificate_file", "private_key_file", "keystore")
# With TLS 1.2: forward secrecy and authenticated encryption. TorchServe's two are one of these and an older one of the same client.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# Each takes 50 KB before its client has shown anything, and containers often allow a million descriptors.
HANDSHAKES_MAX = 4096


def server_context(pem: bytes) -> ssl.SSLContext:
    """`pem` holds the private key and the chain. Raises `OSError`, of which `ssl.SSLError` is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION  # a handshake is dear: one for each connection
    context.set_alpn_protocols(["http/1.1"])
    fd = in_memory(pem)
    try:
        context.load_cert_chain(f"/proc/self/fd/{fd}")  # OpenSSL reads files only
    finally:
        os.close(fd)
    return context


def in_memory(pem: bytes) -> int:
    """A descriptor of a file that has no name."""
    fd = os.memfd_create("ringserve-certificate", os.MFD_CLOEXEC)
    os.fchmod(fd, 0o600)
    with open(fd, "wb", closefd=False) as file:
        file.write(pem)
    return fd


def from_memory(fd: int) -> bytes:
    """What `in_memory` put there, from the other end."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


class Tls:
    """What the connections of a process have in common. `context` may be exchanged: those that begin then have the new one."""

    def __init__(self, context: ssl.SSLContext, handshake_s_max: float) -> None:
        self.context = context
        self.handshake_s_max = handshake_s_max
        self.handshakes: set[TlsConnection] = set()  # connections that are none of HTTP yet
        # What a client has not proved to speak TLS for must not take the descriptors of those who do.
        self.handshakes_max = min(HANDSHAKES_MAX, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))
        self.on_failed: Callable[[], None] = _nothing  # a connection has ended before it became one of HTTP

    def protocol(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """A factory like `make`, of protocols, whose connections speak TLS."""
        from ringserve.server.security.tls_connection import TlsConnection

        def made(*arguments: Any, **named: Any) -> TlsConnection:
            return TlsConnection(self, lambda: make(*arguments, **named))

        return made

    def wind_down(self, silent_s_min: float) -> int:
        """One look at the handshakes when no connection is accepted any more; returns how many are left. Those of which nothing
        has come for so long are ended."""
        for connection in list(self.handshakes):
            connection.close_if_silent(silent_s_min)
        return len(self.handshakes)


async def open_certificate(settings: Settings) -> "CertificateKeeper | None":
    """For the addresses that begin with https://, if any does, and for gRPC where that is to be encrypted. Raises `ConfigError`."""
    addresses = (settings.inference_address, settings.management_address, settings.metrics_address)
    if not any(address.tls for address in addresses) and not (settings.enable_grpc and settings.enable_grpc_ssl):
        for key in KEYS:
            if getattr(settings, key) is not None:
                logger.warning("%s is not used: no address begins with https://, and enable_grpc_ssl is not true", key)
        return None
    # Here, so that a server without TLS does not pay for it.
    from ringserve.server.security.certificate import CertificateKeeper

    return await asyncio.to_thread(CertificateKeeper, settings)


def _nothing() -> None:
    """Nobody asked."""
