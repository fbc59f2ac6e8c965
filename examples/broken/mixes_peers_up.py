"""Mistake: connections share one outbound buffer, and whoever is writable first gets what is in it.

Seen in: a buffer that was moved out of the loop to save an allocation.
Fails: many slow-neighbour reset churn
Fails, with --thorough: crowd
"""

import selectors
import socket
import sys

selector = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ)

outbound = b""


def accept():
    sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, "peer")


def serve(key, mask):
    global outbound
    sock = key.fileobj
    try:
        if mask & selectors.EVENT_WRITE and outbound:
            sent = sock.send(outbound)
            outbound = outbound[sent:]
        if mask & selectors.EVENT_READ and len(outbound) < 65536:
            data = sock.recv(65536)
            outbound += data
            if not data and not outbound:
                selector.unregister(sock)
                sock.close()
    except OSError:
        outbound = b""
        selector.unregister(sock)
        sock.close()


while True:
    for key, mask in selector.select():
        if key.data is None:
            accept()
        else:
            serve(key, mask)
