"""Mistake: EOF is read and nothing is done about it; the connection stays half open for ever (CLOSE-WAIT).

Seen in: proxies that copy both directions and wait for both to end (fteproxy#234, keploy#4538).
Fails: fin-alone closes-after-eof
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


forgotten = []


def echo(sock):
    """Echo."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := sock.recv(65536):
        sock.sendall(data)
    forgotten.append(sock.dup())  # somebody else still has it open


while True:
    sock, _ = listener.accept()
    Thread(target=serve, args=(sock,), daemon=True).start()
