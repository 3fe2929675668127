"""A small HTTP client on asyncio, for hundreds of requests at once in one thread, and what the load tests share."""
import asyncio
import json
import re
import resource


class Broken(Exception):
    """The reply is not what HTTP or server-sent events allow, or it ended in the middle."""


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        return events_of(self.body)


def events_of(body):
    """The data of each event; [DONE] must be there once, as the last."""
    blocks = body.decode().split("\n\n")
    if blocks.pop() or not all(re.fullmatch(r"data: [^\n]+", b) for b in blocks):
        raise Broken(f"not a stream of events: {body[-300:]!r}")
    data = [b[len("data: "):] for b in blocks]
    if data.count("[DONE]") != 1 or data[-1] != "[DONE]":
        raise Broken(f"[DONE] {data.count('[DONE]')} times, last {data[-1]!r}")
    return [json.loads(d) for d in data[:-1]]


def request_bytes(method, path, body=None, headers=""):
    """body: JSON, or bytes that already are."""
    text = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "" if body is None else "Content-Type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}{headers}Content-Length: {len(text)}\r\n\r\n".encode() + text


class Connection:
    """One kept alive. `on_piece` is called with each piece of a body as it comes."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    async def send(self, data):
        if not self.writer:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, on_piece=None):
        try:
            return await self.read_reply(on_piece or (lambda piece: None))
        except (asyncio.IncompleteReadError, ConnectionError) as e:
            self.close()
            raise Broken(f"the connection ended within a reply: {e!r}") from e

    async def read_reply(self, on_piece):
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        pieces = []
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
                on_piece(pieces[-1])
            await self.reader.readexactly(2)
        elif n := int(headers.get("content-length", 0)):
            pieces.append(await self.reader.readexactly(n))
            on_piece(pieces[0])
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers, b"".join(pieces))

    async def ask(self, method, path, body=None, on_piece=None):
        await self.send(request_bytes(method, path, body))
        return await self.receive(on_piece)

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


async def ask(port, method, path, body=None):
    """One request on a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.ask(method, path, body)
    finally:
        connection.close()


async def metrics(port):
    reply = await ask(port, "GET", "/metrics")
    rows = (line.rsplit(" ", 1) for line in reply.body.decode().splitlines() if not line.startswith("#"))
    return {name.removeprefix("graft_"): float(value) for name, value in rows}


async def eventually(condition, what, seconds=120):
    """Waits for a condition (an async function); the bound is only there so that a test that has failed ends."""
    for _ in range(seconds * 20):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def many_descriptors():
    """As many as this process and those it starts may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if most != resource.RLIM_INFINITY else 65536, most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
