"""Hints: what usually causes a failure, by what was seen. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from echopair.client.mismatch import RECOGNISABLE, agreement
from echopair.text import count, printable

# An answer that begins like this comes from that kind of server; it is no echo.
SPEAKERS = (
    (rb"HTTP/\d|\s*<(!doctype |html)", "an HTTP server listens there"),
    (rb"\x15\x03[\0-\4]", "a TLS server listens there: it answered with an alert"),
    (rb"\x16\x03[\0-\4]", "a TLS server listens there: it answered with a handshake"),
    (
        rb"PROXY (TCP[46]|UNKNOWN)|\r\n\r\n\0\r\nQUIT\n",
        "a proxy sends a PROXY protocol header, and the service echoes it: turn that off in the "
        "proxy (send-proxy), or let the service read it",
    ),
    (rb"SSH-\d", "an SSH server listens there"),
    (rb"220[ -]", "a mail or FTP server listens there"),
    (rb"\+OK|\* OK", "a mail server listens there"),
    (rb"-ERR |ERROR\r\n", "a server that reads commands listens there, like Redis or memcached"),
    (rb"\xff[\xfb-\xfe]", "a Telnet server listens there: it negotiates options"),
)
PROMPT = re.compile(rb"(^|[\r\n])[^\r\n]{0,60}[>$#%:?] ?$")

ANSWERS = {
    "newline": "the service answers line by line: it answered only after a newline",
    "EOF": "the service answers only at EOF, when it has everything",
}


@dataclass(frozen=True, slots=True)
class Path:
    """What the kernel knows about the path to the service, from the connections of a case."""

    lost: int  # segments, as far as they were sent again
    segments: int  # sent, those included
    unanswered: int  # retransmissions in a row, up to now, of something not acknowledged
    segment_bytes: int  # of a full segment
    out_of_order: int  # segments that came so, on connections with room for all that may come
    large: bool  # whether a full one was sent


@dataclass(frozen=True, slots=True)
class Seen:
    """What a failed case saw.

    `sent` and `got` are the first bytes of each direction. `greeting` came before anything was sent.
    `answers_to` is what ended a silence ("newline", "EOF"). `served` of `tried` connections were
    served. `far`: answers take longer than connecting does. `late`: something took too long.
    `ended`: the service ended the connection. `echoed`: small messages came back right, as far as
    known.
    """

    sent: bytes = b""
    got: bytes = b""
    greeting: bytes = b""
    answers_to: str = ""
    served: int = 0
    tried: int = 0
    far: bool = False
    late: bool = False
    ended: bool = False
    echoed: bool = False
    path: Path | None = None


def hint(seen: Seen) -> str:
    """Return what usually causes what was seen; "" if no known pattern fits."""
    looks = (_crowded, _spoken, _greeted, _worded, _ended, _lost, _silent)
    return next(filter(None, (look(seen) for look in looks)), "")


def _crowded(seen: Seen) -> str:
    lossy = seen.path and seen.path.lost and not seen.path.unanswered
    if not 0 < seen.served < seen.tried or (seen.late and lossy):
        return ""
    if seen.ended:
        return f"a limit on the connections of one client, or of all: {seen.served:,} at once were served"
    if seen.served == 1:
        return "the server serves one connection at a time"
    return f"the server serves {seen.served:,} connections at a time, and the others wait"


def _spoken(seen: Seen) -> str:
    spoken = seen.greeting or seen.got
    for pattern, what in SPEAKERS:
        if re.match(pattern, spoken, re.IGNORECASE) and not re.match(pattern, seen.sent, re.IGNORECASE):
            return what
    if PROMPT.search(spoken) and not seen.sent.startswith(spoken):
        return f"an interpreter or a shell listens there, with a prompt: {printable(spoken[-40:])}"
    return ""


def _greeted(seen: Seen) -> str:
    return f"the service, or a proxy, speaks first: {printable(seen.greeting)}" if seen.greeting else ""


def _worded(seen: Seen) -> str:
    """Return how the service changes the text, or what it adds."""
    sent, got = seen.sent, seen.got
    same = agreement(sent, got)
    rest, start = got[same:], sent[:RECOGNISABLE]
    if len(start) < RECOGNISABLE or not rest:
        return ""
    if same and rest.lstrip(b"\r\n")[:RECOGNISABLE] == sent[same : same + RECOGNISABLE]:
        return "the service answers in lines: it adds the end of one to each answer"
    if same >= RECOGNISABLE and rest.startswith(start):
        return "bytes come back twice: a terminal echoes them, and the program, too"
    if (place := got.find(start)) > 0:
        return f"the service adds words of its own: {printable(got[:place])}"
    if got.lower() == sent[: len(got)].lower():
        return "the service changes letters to upper or lower case"
    return ""


def _ended(seen: Seen) -> str:
    if not seen.ended or seen.echoed:
        return ""
    if seen.got:
        return "the service ends a connection after one answer, or soon after"
    return "an access list, a proxy without a backend, or a service that expects TLS or a PROXY header"


def _lost(seen: Seen) -> str:
    """Return what the path does to packets."""
    path = seen.path
    if not (seen.late and path):
        return ""
    if path.unanswered and seen.echoed and path.large:
        return (
            f"small messages pass, segments of {count(path.segment_bytes, 'byte')} are "
            "retransmitted: look at the path's MTU, and at ICMP messages that are dropped"
        )
    if path.unanswered:
        return "the path drops what we send: it is retransmitted, and not acknowledged"
    if path.lost:
        return f"the path loses packets: {path.lost:,} of {count(path.segments, 'segment')} had to be sent again"
    if path.out_of_order:
        return f"packets are lost or overtaken on the way back: {count(path.out_of_order, 'segment')} came out of order"
    return ""


def _silent(seen: Seen) -> str:
    if seen.far:
        return "a proxy is near and its backend far, or the service holds every answer back"
    if seen.answers_to:
        return ANSWERS[seen.answers_to]
    if seen.late and seen.sent and not (seen.got or seen.echoed):
        return "a service that answers nothing, like discard; a process that is stopped; a proxy whose backend is away"
    return ""
