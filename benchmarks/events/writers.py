"""Four applications that write and ask after each write: processes of their own, which begin at one moment."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psycopg

from benchmarks.timing import percentile

WRITERS = 4
PATIENCE_S = 300.0
UPKEEP, DELAY, SINGLETON = "upkeep", "delay", "singleton"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one writer is to do; `how` it asks, `environment` what it needs for that."""

    how: str
    number: int
    events: int
    database_url: str
    broker_url: str
    database: str
    view: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """When the first write was begun and the last request was made, by the clock on the wall; the p50 of a call."""

    first: float
    last: float
    call_s: float


def together(wrote: Sequence[Wrote]) -> Wrote:
    """All of them as one."""
    return Wrote(
        first=min(each.first for each in wrote),
        last=max(each.last for each in wrote),
        call_s=percentile([each.call_s for each in wrote], 0.5),
    )


@contextmanager
def python_writers(orders: Sequence[Orders]) -> Iterator[Callable[[], Wrote]]:
    """Processes that are ready to begin; calling what comes of it lets them, and waits.

    Raises:
        RuntimeError: one of them failed, or took too long.

    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for each in orders:
        ours, theirs = context.Pipe()
        process = context.Process(target=_main, args=(theirs, each), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)

    def begin() -> Wrote:
        for pipe in pipes:
            pipe.send("begin")
        found = []
        for pipe in pipes:
            said = _hear(pipe)
            if not isinstance(said, Wrote):
                raise RuntimeError(f"a writer failed: {said}")  # noqa: TRY004 - it is what it says of its end
            found.append(said)
        return together(found)

    try:
        for pipe in pipes:
            said = _hear(pipe)
            if said != "ready":
                raise RuntimeError(f"a writer did not start: {said}")
        yield begin
    finally:
        for process in processes:
            process.kill()
            process.join()


def _hear(pipe: Connection) -> object:
    try:
        return pipe.recv() if pipe.poll(PATIENCE_S) else f"nothing in {PATIENCE_S:.0f} s"
    except EOFError:
        return "it ended without a word"


def _main(pipe: Connection, orders: Orders) -> None:
    try:
        ask = _ways(orders)
        with psycopg.connect(orders.database_url, autocommit=True, application_name="a writer") as connection:
            # Connected, imported, its script known: what a process pays once is not what a request costs.
            connection.execute("SELECT 1")
            pipe.send("ready")
            pipe.recv()
            calls = []
            first = time.time()
            last = first
            for _ in range(orders.events):
                connection.execute("INSERT INTO public.event (writer) VALUES (%s)", (orders.number,))
                began = time.perf_counter()
                ask()
                calls.append(time.perf_counter() - began)
                last = time.time()
        pipe.send(Wrote(first=first, last=last, call_s=percentile(calls, 0.5)))
    except Exception as error:  # noqa: BLE001 - told to whoever waits
        pipe.send(f"{type(error).__name__}: {error}")


def _ways(orders: Orders) -> Callable[[], object]:
    if orders.how == UPKEEP:
        from upkeep_client import Upkeep  # noqa: PLC0415 - the peers' writers have other things to import

        client = Upkeep(orders.broker_url, database=orders.database, on_error="raise")
        return lambda: client.request_refresh(orders.view)
    os.environ.update(orders.environment)
    from benchmarks.events import peer  # noqa: PLC0415 - it is configured by the environment

    task = peer.refresh if orders.how == DELAY else peer.singleton()
    return task.delay  # type: ignore[no-any-return]
