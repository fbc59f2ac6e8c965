"""Mistake: the server says something first; an echo has nothing to say of its own (RFC 862).

Seen in: services behind a banner, PROXY protocol headers sent to a server that does not know them.
Fails: basic silent fin-alone
Fails, with --check-skip basic: silent edges first-bytes lengths every-byte byte-by-byte pipelined burst volume \
    first-echo latency idle life many fin-alone closes-after-eof half-close half-close-slow slow-reader before-reading \
    slow-neighbour urgent dropped reset churn crowd
"""

import socket
import sys
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)


def serve(sock):
    """Serve one connection."""
    try:
        echo(sock)
    except OSError:
        pass
    finally:
        sock.close()


def echo(sock):
    """Echo."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"Welcome to the echo service\r\n")
    while data := sock.recv(65536):
        sock.sendall(data)


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
