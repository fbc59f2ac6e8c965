"""What the kernel measured of a TCP connection, to tell the network from the hosts (tcp(7), TCP_INFO).

The places are those of struct tcp_info in Linux' <linux/tcp.h>, which only ever grows at its end.
"""

from __future__ import annotations

import socket
import struct

TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux
SMOOTHED_ROUND_TRIP = 68  # tcpi_rtt, microseconds; RFC 6298's SRTT
RETRANSMITS = 100  # tcpi_total_retrans, segments in the connection's life
SIZE = 104  # bytes, up to here


def kernel_figures(sock: socket.socket) -> tuple[int, int] | None:
    """Return the round-trip time in microseconds and the number of retransmits; None where the kernel does not say."""
    if TCP_INFO is None:  # pragma: no cover - not Linux
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, SIZE)
    except OSError:  # not TCP
        return None
    if len(info) < SIZE:
        return None
    (round_trip,) = struct.unpack_from("=I", info, SMOOTHED_ROUND_TRIP)
    (retransmits,) = struct.unpack_from("=I", info, RETRANSMITS)
    return round_trip, retransmits
