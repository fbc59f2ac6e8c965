"""Generated messages: a seeded stream in which pieces that get lost, repeated or swapped do not go unnoticed.

A message is cut into pieces of at most 64 KiB, so that a message of any size needs the memory of one piece. Every
piece of a run has a number of its own, made of its connection and its place in that connection's sequence, and the
number decides all its bytes:

    stamp (8 bytes): the number times an odd constant modulo 2**64, the strongest byte first (Knuth, TAOCP 3, 6.4); no
                     two are alike, and a stamp found in the wrong place tells its number
    filling:         a stretch of one seeded random block, starting where the number says

The block's length is a prime, so 1,048,573 pieces in a row start at different places of it, and any two of them differ
in every eight bytes that stand at the same offset. Messages shorter than a stamp have but its first bytes: of one byte
there are only 256.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, repeat
from random import Random
from struct import Struct

PIECE_SIZE = 64 * 1024  # bytes
STAMP_SIZE = 8  # bytes
PERIOD = 1_048_573  # the largest prime below 2**20
STRIDE = PIECE_SIZE + 1  # neighbours do not overlap in the block
MODULUS = 2**64
SCATTER = 0x9E3779B97F4A7C15  # odd; 2**64 divided by the golden ratio
GATHER = pow(SCATTER, -1, MODULUS)
STAMP = Struct(">Q")
PLAUSIBLE = 2**40  # pieces; no run sends more, and of arbitrary bytes one in 2**24 looks as if it had


class Payload:
    """The messages of a run over `conns` connections, `size` bytes each, the same for the same `seed`."""

    def __init__(self, size: int, seed: int, conns: int) -> None:
        source = Random(seed)
        self._size = size
        self._conns = conns
        self._salt = source.getrandbits(64)
        self._block = source.randbytes(PERIOD + min(size, PIECE_SIZE))
        self.pieces_per_message = -(-size // PIECE_SIZE)

    def pieces(self, connection: int, messages: int | None = None, *, first: int = 0) -> Iterator[bytes]:
        """Return the pieces of `messages` messages (None: without end) for connection number `connection`, from 1.

        `first` leaves out so many messages before them.
        """
        number = connection - 1 + first * self.pieces_per_message * self._conns
        turns: Iterable[object] = repeat(None) if messages is None else range(messages)
        if STAMP_SIZE < self._size <= PIECE_SIZE:
            return self._whole(number, turns)
        return self._cut(number, turns)

    def _whole(self, number: int, turns: Iterable[object]) -> Iterator[bytes]:
        """Yield messages of one piece each, as `piece` has them, in half the time: from one to the next it adds."""
        stamp, start = self._stamp(number), number * STRIDE % PERIOD
        next_stamp, next_start = self._conns * SCATTER % MODULUS, self._conns * STRIDE % PERIOD
        block, filling, pack = self._block, self._size - STAMP_SIZE, STAMP.pack
        for _ in turns:
            yield pack(stamp) + block[start : start + filling]
            stamp = (stamp + next_stamp) % MODULUS
            start = (start + next_start) % PERIOD

    def _cut(self, number: int, turns: Iterable[object]) -> Iterator[bytes]:
        """Yield messages of any size."""
        numbers = count(number, self._conns)
        for _ in turns:
            for offset in range(0, self._size, PIECE_SIZE):
                yield self.piece(next(numbers), min(PIECE_SIZE, self._size - offset))

    def _stamp(self, number: int) -> int:
        return (number * SCATTER + self._salt) % MODULUS

    def piece(self, number: int, length: int) -> bytes:
        """Return the first `length` bytes of piece `number`."""
        stamp = STAMP.pack(self._stamp(number))
        if length <= STAMP_SIZE:
            return stamp[:length]
        start = number * STRIDE % PERIOD
        return stamp + self._block[start : start + length - STAMP_SIZE]

    def locate(self, data: bytes) -> tuple[int, int] | None:
        """Return the connection and message, both from 1, of the piece that starts with `data`; None if none does."""
        if min(len(data), self._size) < STAMP_SIZE:
            return None
        number = (STAMP.unpack_from(data)[0] - self._salt) * GATHER % MODULUS
        length = min(len(data), self._size, PIECE_SIZE)
        if number >= PLAUSIBLE or self.piece(number, length) != data[:length]:
            return None
        sequence, connection = divmod(number, self._conns)
        return connection + 1, sequence // self.pieces_per_message + 1
