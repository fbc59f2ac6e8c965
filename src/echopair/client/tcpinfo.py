"""What the kernel measured of a TCP connection, to tell the network from the hosts (tcp(7), TCP_INFO).

The places are those of struct tcp_info in Linux' <linux/tcp.h>, which only ever grows at its end.
"""

from __future__ import annotations

import socket
import struct

TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux
RETRANSMITS = 100  # tcpi_total_retrans, segments in the connection's life
LEAST_ROUND_TRIP = (
    148  # tcpi_min_rtt, microseconds; the smoothed one has the peer's delayed ACKs in it, and so its pauses
)
NEVER_MEASURED = 2**32 - 1
SIZE = 152  # bytes, up to here (Linux 4.6)


def kernel_figures(sock: socket.socket) -> tuple[int, int] | None:
    """Return the least round-trip time in microseconds and the number of retransmits; None where they are not known."""
    if TCP_INFO is None:  # pragma: no cover - not Linux
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, SIZE)
    except OSError:  # not TCP
        return None
    if len(info) < SIZE:
        return None
    (retransmits,) = struct.unpack_from("=I", info, RETRANSMITS)
    (round_trip,) = struct.unpack_from("=I", info, LEAST_ROUND_TRIP)
    return None if round_trip == NEVER_MEASURED else (round_trip, retransmits)
