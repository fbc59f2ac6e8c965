"""Mistake: send() is taken to have sent everything; what the kernel did not take is lost.

Seen in: Python's own selectors example ("hope it won't block"): 5,096 of 16,777,216 bytes came back.
Fails: half-close-slow slow-reader before-reading
Fails, with --thorough: back-pressure
"""

import selectors
import socket
import sys

selector = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ)


def accept():
    sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(sock, selectors.EVENT_READ, "peer")


def serve(key):
    sock = key.fileobj
    try:
        data = sock.recv(65536)
        if data:
            sock.send(data)  # returns how many bytes it took, and nobody looks
            return
    except BlockingIOError:
        return  # it took none
    except OSError:
        pass
    selector.unregister(sock)
    sock.close()


while True:
    for key, _ in selector.select():
        if key.data is None:
            accept()
        else:
            serve(key)
