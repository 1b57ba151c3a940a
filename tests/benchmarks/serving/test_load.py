"""The client against a server whose behaviour is known to the request."""

import asyncio
import itertools
import threading
import time

import pytest

from benchmarks.serving.load import Client, Spec

HEAD = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers every second request 503 in chunks, the others 200, after `delay` seconds."""

    def __init__(self, delay):
        self.delay = delay
        self.seen = []
        self.gone = 0
        self.numbers = itertools.count()

    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.seen.append(await reader.readexactly(length))
                even = next(self.numbers) % 2 == 0
                await asyncio.sleep(self.delay)
                if even:
                    writer.write(HEAD + b"Content-Length: 5\r\n\r\nhe")
                    await writer.drain()
                    await asyncio.sleep(0)
                    writer.write(b"llo")
                else:
                    writer.write(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n")
                    writer.write(b"2\r\nno\r\n0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()


@pytest.fixture
def serve():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def start(delay=0.0):
        server = Server(delay)
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(server.serve, "127.0.0.1", 0), loop
        ).result()
        return server, listening.sockets[0].getsockname()[1]

    yield start

    async def finish():
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run_coroutine_threadsafe(finish(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 99_992)
    return str(folder)


def spec(port, images, **more):
    return Spec(port=port, path="/", form="raw", images=images, **{"seconds": 1.0, **more})


def test_a_closed_loop_counts_each_status(serve, images):
    server, port = serve()
    client = Client(spec(port, images, connections=3))
    client.closed()
    assert client.statuses.keys() == {"200", "503"}
    assert abs(client.statuses["200"] - client.statuses["503"]) <= 3
    assert len(client.latencies["200"]) == client.statuses["200"]
    assert {len(body) for body in server.seen} == {100_000}
    assert {body[0] for body in server.seen} == {0, 1, 2, 3}


def test_an_open_loop_sends_on_time_and_counts_latency_from_then(serve, images):
    server, port = serve(delay=0.2)
    client = Client(spec(port, images, rate=100.0, seconds=1.0))
    client.open()
    # Poisson's deviation of 100 is 10; one connection alone would have sent five.
    assert 50 < sum(client.statuses.values()) < 150
    assert len(server.seen) == sum(client.statuses.values())
    assert min(client.latencies["200"]) >= 0.2


def test_clients_that_leave_are_no_answers(serve, images):
    server, port = serve(delay=0.1)
    client = Client(spec(port, images, connections=4, leaving=0.5, patience=0.02))
    client.closed()
    assert client.left > 0
    assert client.sent == sum(client.statuses.values())
    assert len(server.seen) >= client.sent


def test_broken_images_are_counted_apart(serve, images):
    server, port = serve()
    client = Client(spec(port, images, connections=2, broken=0.5))
    client.closed()
    cut = sum(len(body) == 49_996 for body in server.seen)
    assert cut > 0
    assert sum(client.broken.values()) == cut


def test_a_server_that_is_not_there_gives_status_0(images):
    client = Client(spec(1, images, rate=50.0, seconds=0.2))
    started = time.monotonic()
    client.open()
    assert client.statuses.keys() <= {"0"}
    assert time.monotonic() - started < 30
