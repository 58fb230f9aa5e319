"""A TCP proxy that does to a connection what networks do: hold bytes back, delay them, refuse, cut.

It stands in front of PostgreSQL or Redis on 127.0.0.1, in a thread of the test's own process. Every change counts from
the moment that its call returns.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from worker.embedded.server import free_port

T = TypeVar("T")

CHUNK = 65_536
# Linger for no time at all: close() throws away what was not sent, and sends a RST instead of a FIN.
RESET = struct.pack("ii", 1, 0)


class Way(Enum):
    """The direction of a byte."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Cut(Enum):
    """How a connection ends: as of a process that closed it, or as of a host that knows nothing of it."""

    FIN = "FIN"
    RST = "RST"


class Proxy:
    """Passes everything on from the start; it is told otherwise by stall, delay, refuse and cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {target}", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._gates: dict[Way, asyncio.Event] = {}
        self._delay_s = 0.0
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, url: str) -> str:
        """The same URL of one server on 127.0.0.1, through the proxy."""
        parts = urlsplit(url)
        login, _, server = parts.netloc.rpartition("@")
        assert server == f"127.0.0.1:{self._target}", server
        return urlunsplit(parts._replace(netloc=f"{login}{'@' if login else ''}127.0.0.1:{self.port}"))

    def aim(self, target: int) -> None:
        """Lead new connections to another server, as a moved address does."""
        self._target = target

    def stall(self, *ways: Way) -> None:
        """Accept bytes and pass none of them on, in both directions or those that are named."""
        self._do(self._set_gates(ways or tuple(Way), passing=False))

    def delay(self, seconds: float) -> None:
        """Pass every byte on so much later; 0 is at once."""
        self._do(self._set_delay(seconds))

    def flow(self, *ways: Way) -> None:
        """Pass on what was held back and what comes, as in stall, and take new connections."""
        self._do(self._set_gates(ways or tuple(Way), passing=True))
        self._do(self._set_delay(0))
        self._do(self._listen())

    def refuse(self) -> None:
        """Take no new connection; those that are there stay."""
        self._do(self._deafen())

    def cut(self, how: Cut = Cut.RST) -> int:
        """End every connection in both directions; returns how many there were."""
        return self._do(self._cut(how))

    @property
    def connections(self) -> int:
        """How many connections lead through it."""
        return len(self._links)

    def held(self, way: Way) -> int:
        """How many bytes it holds back in a direction."""
        return sum(link.held[way] for link in list(self._links))

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=10)

    async def _open(self) -> None:
        for way in Way:
            self._gates[way] = asyncio.Event()
            self._gates[way].set()
        while self._server is None:
            self.port = free_port()
            with suppress(OSError):  # somebody was faster with the port
                await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _close(self) -> None:
        await self._deafen()
        await self._cut(Cut.RST)

    async def _set_gates(self, ways: tuple[Way, ...], *, passing: bool) -> None:
        for way in ways:
            if passing:
                self._gates[way].set()
            else:
                self._gates[way].clear()

    async def _set_delay(self, seconds: float) -> None:
        self._delay_s = seconds

    async def _cut(self, how: Cut) -> int:
        links = list(self._links)
        for link in links:
            link.task.cancel()
            link.end(how)
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)
        return len(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task, writer)
        self._links.add(link)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            link.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                for source, sink, way in (
                    (reader, far_writer, Way.TO_SERVER),
                    (far_reader, writer, Way.TO_CLIENT),
                ):
                    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                    group.create_task(self._take(link, source, waiting, way))
                    group.create_task(self._give(link, waiting, sink, way))
        except (OSError, ExceptionGroup):  # one side is gone: so is the other, without a word
            link.end(Cut.RST)
        except asyncio.CancelledError:  # cut() has said how
            pass
        else:
            for each in link.writers:
                each.close()
        finally:
            self._links.discard(link)

    async def _take(
        self,
        link: _Link,
        source: asyncio.StreamReader,
        waiting: asyncio.Queue[tuple[float, bytes]],
        way: Way,
    ) -> None:
        while True:
            data = await source.read(CHUNK)
            link.held[way] += len(data)
            waiting.put_nowait((self._loop.time() + self._delay_s, data))
            if not data:
                return

    async def _give(
        self,
        link: _Link,
        waiting: asyncio.Queue[tuple[float, bytes]],
        sink: asyncio.StreamWriter,
        way: Way,
    ) -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - self._loop.time())
            await self._gates[way].wait()
            if not data:
                sink.write_eof()
                return
            sink.write(data)
            await sink.drain()
            link.held[way] -= len(data)


class _Link:
    """One connection: the client's end, and the server's once it is there."""

    def __init__(self, task: asyncio.Task[Any], writer: asyncio.StreamWriter) -> None:
        self.task = task
        self.writers = [writer]
        self.held = dict.fromkeys(Way, 0)

    def end(self, how: Cut) -> None:
        for writer in self.writers:
            found = writer.get_extra_info("socket")
            with suppress(OSError):
                if how is Cut.RST:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                else:
                    found.shutdown(socket.SHUT_RDWR)
            writer.transport.abort()
