"""Mistake: an address may have 20 connections, and what comes beyond that is accepted and closed.

Seen in: limits against floods, which many clients behind one NAT meet, too.
Fails: many
"""

import socket
import sys
from threading import Thread

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), backlog=128)
print("Listening on {}:{}".format(*listener.getsockname()), flush=True)

connections = {}


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
    while data := sock.recv(65536):
        sock.sendall(data)


def is_open(sock):
    """Say whether a connection is in use, and not about to be closed."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


while True:
    sock, (host, _) = listener.accept()
    theirs = connections[host] = [other for other in connections.get(host, ()) if is_open(other)]
    if len(theirs) >= 20:
        sock.close()
        continue
    theirs.append(sock)
    Thread(target=serve, args=(sock,), daemon=True).start()
