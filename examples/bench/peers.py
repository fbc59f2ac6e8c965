"""The peers of the bench, each an echo server on a port of 127.0.0.1 that it prints: python peers.py KIND PORT."""

import asyncio
import sys


class Echo(asyncio.Protocol):
    """The usual: what comes in is written."""

    def connection_made(self, transport):
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data):
        """Echo."""
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """The same, received into one buffer."""

    def __init__(self):
        self.buffer = bytearray(65536)

    def connection_made(self, transport):
        """Keep the transport."""
        self.transport = transport

    def get_buffer(self, _sizehint):
        """Say where to."""
        return self.buffer

    def buffer_updated(self, count):
        """Echo."""
        self.transport.write(bytes(memoryview(self.buffer)[:count]))


async def stream_echo(reader, writer):
    """Echo with streams."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main(kind, port):
    """Serve for ever."""
    if kind.endswith("streams"):
        server = await asyncio.start_server(stream_echo, "127.0.0.1", port, backlog=65535)
    else:
        protocol = BufferedEcho if kind.endswith("buffered") else Echo
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", port, backlog=65535)
    print(f"Listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1].startswith("uvloop"):
        import uvloop

        uvloop.run(main(sys.argv[1], int(sys.argv[2])))
    else:
        asyncio.run(main(sys.argv[1], int(sys.argv[2])))
