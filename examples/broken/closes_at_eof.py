"""Mistake: the connection is closed when EOF is read, with bytes still owed.

Seen in: the tutorials; ncat before 7.96 (nmap/nmap#962); lima#5329, sing#97.
Fails: half-close-slow
"""

import selectors
import socket
import sys
from types import SimpleNamespace

LIMIT = 8 * 1024 * 1024  # bytes owed to a peer, before reading pauses

selector = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ)


def accept():
    sock, address = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(
        sock, selectors.EVENT_READ | selectors.EVENT_WRITE, SimpleNamespace(address=address, outbound=b"")
    )


def serve(key, mask):
    sock, peer = key.fileobj, key.data
    try:
        if mask & selectors.EVENT_READ and len(peer.outbound) < LIMIT:
            data = sock.recv(65536)
            if not data:  # "the client has gone"; but it has only stopped sending
                selector.unregister(sock)
                sock.close()
                return
            peer.outbound += data
        if mask & selectors.EVENT_WRITE and peer.outbound:
            sent = sock.send(peer.outbound)
            peer.outbound = peer.outbound[sent:]
    except OSError:
        selector.unregister(sock)
        sock.close()


while True:
    for key, mask in selector.select():
        if key.data is None:
            accept()
        else:
            serve(key, mask)
