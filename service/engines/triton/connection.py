"""The gRPC connection to one Triton server, in the clear or by TLS."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc.aio import InferenceServerClient  # type: ignore[import-untyped]

from service.engines.triton.tls import Pem, Tls

CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default a server that comes back after long is tried two minutes later.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A run that fails is tried again on another server, and not behind our back on this one.
    ("grpc.enable_retries", 0),
]


class TlsMismatch(Exception):
    """The two sides disagree about TLS; the message says on what."""


class Connection:
    """Leads to one server.

    Args:
        address: IP address and port of its gRPC service.
        host: The name that led there, which its certificate must be for.
        tls: How the two sides know each other; None where they speak in the clear.

    Attributes:
        address: The server's.
        grpc: Triton's client, once opened.
    """

    def __init__(self, address: str, host: str, tls: Tls | None) -> None:
        self.address = address
        self.grpc: Any = None
        self._host = host
        self._tls = tls
        self._pem: Pem | None = None

    async def open(self) -> None:
        """Open the connection, or open it anew if certificates were renewed since.

        Raises:
            EngineUnavailable: A certificate or key cannot be used.
        """
        pem = await asyncio.to_thread(self._tls.read) if self._tls else None
        if self.grpc and pem == self._pem:
            return
        await self.close()
        self._pem = pem
        if pem is None:
            self.grpc = InferenceServerClient(self.address, channel_args=CHANNEL)
            return
        self.grpc = InferenceServerClient(
            self.address,
            creds=grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate),
            # Certificates are for names, and the channel knows but the address.
            channel_args=[*CHANNEL, ("grpc.ssl_target_name_override", self._host)],
        )

    async def close(self) -> None:
        """Close it; what was sent and not answered is given up."""
        if self.grpc:
            await self.grpc.close()

    def meaning(self, error: Any) -> Any:
        """A TlsMismatch, if an InferenceServerException is due to one, or else the same error."""
        message, tls = error.message(), self._tls
        hung_up = "failed to connect" in message and re.search("Socket closed|reset by", message)
        if refused := re.search("CERTIFICATE_VERIFY_FAILED: ([^:]*)", message):
            why = f"triton_ca does not vouch for its certificate: {refused[1]}"
        elif "Hostname Verification Check failed" in message:
            why = f"its certificate is not for {self._host}, which triton_urls calls it"
        elif "WRONG_VERSION_NUMBER" in message:
            why = "it speaks without TLS; start it with --grpc-use-ssl=1, or leave triton_ca out"
        elif not hung_up:
            return error
        elif tls is None:
            why = "it hangs up; if it speaks TLS, set triton_ca"
        elif tls.certificate is None:
            why = "it hangs up; if it asks for a certificate, set triton_certificate and triton_key"
        else:
            why = f"it hangs up; does it trust the authority that issued {tls.certificate}?"
        return TlsMismatch(why)
