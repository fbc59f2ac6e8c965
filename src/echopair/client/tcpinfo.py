"""What the kernel measured of a TCP connection, to distinguish the network from the hosts (tcp(7), TCP_INFO).

The places are those of struct tcp_info in Linux' <linux/tcp.h>, which only ever grows at its end.
"""

from __future__ import annotations

import socket
import struct
import sys

TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux
UNANSWERED = 2  # tcpi_retransmits, in a row and not acknowledged so far (a byte)
SEGMENT_BYTES = 16  # tcpi_snd_mss
RETRANSMITS = 100  # tcpi_total_retrans, segments in the connection's life
LEAST_ROUND_TRIP = (
    148  # tcpi_min_rtt, microseconds; the smoothed one has the peer's delayed ACKs in it, and so its pauses
)
SEGMENTS = 156  # tcpi_data_segs_out, retransmitted ones included
REPORTED_TWICE = 216  # tcpi_dsack_dups, segments of ours that the peer got twice (RFC 2883)
OUT_OF_ORDER = 224  # tcpi_rcv_ooopack, segments that came before one that is missing
NEVER_MEASURED = 2**32 - 1
SIZE, LEAST_SIZE = 228, 160  # bytes, up to the last of these, and what Linux 4.6 has of them


def kernel_figures(sock: socket.socket) -> tuple[int, int] | None:
    """Return the least round-trip time in microseconds and the number of retransmits; None where they are not known."""
    info = _info(sock)
    if info is None:
        return None
    (retransmits,) = struct.unpack_from("=I", info, RETRANSMITS)
    (round_trip,) = struct.unpack_from("=I", info, LEAST_ROUND_TRIP)
    return None if round_trip == NEVER_MEASURED else (round_trip, retransmits)


def path_figures(sock: socket.socket) -> tuple[int, int, int, int, int] | None:
    """Return segments lost, sent, sent again in a row without an answer; bytes of a segment; segments out of order.

    Lost means sent again and not reported as received twice, because TCP also sends again segments that
    are only late (RFC 8985 7). None if they are unknown.
    """
    info = _info(sock)
    if info is None:
        return None
    retransmits, segments, segment_bytes = (
        struct.unpack_from("=I", info, place)[0] for place in (RETRANSMITS, SEGMENTS, SEGMENT_BYTES)
    )
    twice, out_of_order = (
        int.from_bytes(info[place : place + 4], sys.byteorder) for place in (REPORTED_TWICE, OUT_OF_ORDER)
    )
    return max(retransmits - twice, 0), segments, info[UNANSWERED], segment_bytes, out_of_order


def _info(sock: socket.socket) -> bytes | None:
    if TCP_INFO is None:  # pragma: no cover - not Linux
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, SIZE)
    except OSError:  # not TCP
        return None
    return info if len(info) >= LEAST_SIZE else None
