"""The ways to make few refreshes of many requests: ours, two of Celery's, three of BullMQ's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import psycopg
import redis

from benchmarks.clock.processes import Crew
from benchmarks.events import peer, writers
from benchmarks.events.bench import BURST, BURST_REFRESH_S, COUNTED, PROCESSES, Bench
from benchmarks.events.writers import WRITERS, Orders, Wrote, python_writers, together
from benchmarks.stage import Place, clean_environment
from upkeep_client import marking
from worker.embedded.launcher import bound_to_us

NODE_PACKAGES = ("bullmq@6.7.0", "ioredis@6.0.0", "pg@8.23.1")
BULLMQ_MODES = ("deduplication", "debounce", "keep_last")
INSTALL_S = 120.0
POLL_S = 0.02
SCRIPT = Path(__file__).with_name("bullmq.mjs")


class Contender(Protocol):
    """One way; `place` is the database that it keeps fresh."""

    place: Place

    def writing(self, events: int) -> AbstractContextManager[Callable[[], Wrote]]:
        """So many writers that are ready to begin, with so many writes of all of them together."""

    def messages(self) -> int:
        """How many messages to those who refresh were sent so far."""

    def refreshes(self) -> int:
        """How many refreshes were done so far."""

    def settled(self) -> bool:
        """Whether nothing more will come."""

    def abandon(self) -> None:
        """Drop what is left: its end would take too long to wait for."""


def _count(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None  # an aggregate
    return int(row[0])


def _lpushes(client: redis.Redis) -> int:
    """Messages sent, by the server's own account: kombu sends each with an LPUSH, and nothing else here does that."""
    found = client.info("commandstats").get("cmdstat_lpush")
    return int(found["calls"]) if isinstance(found, dict) else 0


def _orders(how: str, place: Place, broker_url: str, events: int, **environment: str) -> list[Orders]:
    return [
        Orders(
            how=how,
            number=number,
            events=events // WRITERS,
            database_url=place.owner_url,
            broker_url=broker_url,
            database=place.name,
            view=COUNTED,
            environment=environment,
        )
        for number in range(1, WRITERS + 1)
    ]


class Ours:
    """The client, the dispatcher and the worker."""

    def __init__(self, bench: Bench) -> None:
        self._broker_url = bench.broker_url
        self._broker = bench.broker
        self.place = bench.places[BURST]
        self._looking = bench.fleet(self.place)

    def writing(self, events: int) -> AbstractContextManager[Callable[[], Wrote]]:
        """The client's."""
        return python_writers(_orders(writers.UPKEEP, self.place, self._broker_url, events))

    def messages(self) -> int:
        """Bells, the reapers' among them."""
        return _lpushes(self._broker)

    def refreshes(self) -> int:
        """By the ledger."""
        return _count(self._looking, "SELECT count(*) FROM upkeep.run WHERE started_at IS NOT NULL")

    def settled(self) -> bool:
        """A mark is cleared once its run is there."""
        marks = int(self._broker.hlen(marking.marks(BURST)))
        return not marks and not _count(
            self._looking, "SELECT count(*) FROM upkeep.run WHERE finished_at IS NULL"
        )

    def abandon(self) -> None:
        """Nothing is ever left for long."""


@dataclass(kw_only=True)
class Peers:
    """What the peers share: a database, and a broker."""

    bench: Bench

    @cached_property
    def place(self) -> Place:
        """Theirs."""
        return self.bench.pausing("burst_peer", BURST_REFRESH_S)

    @cached_property
    def looking(self) -> psycopg.Connection[Any]:
        """A look into it."""
        return self.bench.owner(self.place)

    @cached_property
    def broker_url(self) -> str:
        """Theirs too."""
        return self.bench.stage.broker()

    @cached_property
    def broker(self) -> redis.Redis:
        """A look into that."""
        return self.bench.client(self.broker_url)

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """What their processes find."""
        return {peer.BROKER: self.broker_url, peer.DATABASE: self.place.owner_url}

    @cached_property
    def celery(self) -> Crew:
        """A plain Celery worker that knows both tasks."""
        folder = self.bench.stage.folder / "burst_peer"
        folder.mkdir()
        crew = Crew(
            app="benchmarks.events.peer",
            folder=folder,
            environment=clean_environment() | dict(self.environment),
        )
        self.bench.exits.callback(crew.close)
        crew.worker(peer.QUEUE, f"--concurrency={PROCESSES}", "-l", "INFO").wait_said(" ready.")
        return crew

    @cached_property
    def packages(self) -> Path:
        """A folder with BullMQ in it, which goes when the run ends.

        Raises:
            RuntimeError: npm could not install it.

        """
        folder = self.bench.stage.folder / "node"
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--silent",
            "--ignore-scripts",
            *NODE_PACKAGES,
        ]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"npm install failed: {(done.stderr or done.stdout).strip()[-300:] or done.returncode}"
            )
        shutil.copy(SCRIPT, folder)
        return folder

    def refreshes(self) -> int:
        """As they note it themselves."""
        return _count(self.looking, "SELECT count(*) FROM public.refreshed")


class OfCelery:
    """A task per write, or celery-singleton's."""

    def __init__(self, peers: Peers, how: str) -> None:
        self._peers = peers
        self._how = how
        self.place = peers.place
        # Started before anything is counted.
        self._crew = peers.celery
        self._sent = self.messages() - peers.refreshes()

    def writing(self, events: int) -> AbstractContextManager[Callable[[], Wrote]]:
        """With the task's own delay()."""
        # What was abandoned before is nobody's.
        self._sent = self.messages() - self.refreshes()
        return python_writers(
            _orders(self._how, self.place, self._peers.broker_url, events, **self._peers.environment)
        )

    def messages(self) -> int:
        """By the broker's account."""
        return _lpushes(self._peers.broker)

    def refreshes(self) -> int:
        """By their own."""
        return self._peers.refreshes()

    def settled(self) -> bool:
        """Every message has become a refresh."""
        return self.messages() - self.refreshes() <= self._sent

    def abandon(self) -> None:
        """Empty the queue, and let end what has begun."""
        broker = self._peers.broker
        broker.delete(peer.QUEUE)
        seen, since = self.refreshes(), time.monotonic()
        while time.monotonic() - since < 2.5 * BURST_REFRESH_S:
            time.sleep(POLL_S)
            if (now := self.refreshes()) != seen:
                seen, since = now, time.monotonic()


class OfBullmq:
    """One of its ways; every round has a queue of its own."""

    def __init__(self, peers: Peers, mode: str) -> None:
        self._peers = peers
        self._mode = mode
        self._round = 0
        self.place = peers.place

    @contextmanager
    def writing(self, events: int) -> Iterator[Callable[[], Wrote]]:
        """Processes of Node: a worker, and the writers."""
        self._round += 1
        processes = [self._start("work", 0, 0)]
        try:
            processes += [self._start("write", number, events // WRITERS) for number in range(1, WRITERS + 1)]
            for process in processes:
                self._line(process)

            def begin() -> Wrote:
                for process in processes[1:]:
                    assert process.stdin is not None  # a pipe
                    process.stdin.write("begin\n")
                    process.stdin.flush()
                return together([Wrote(**json.loads(self._line(process))) for process in processes[1:]])

            yield begin
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    def messages(self) -> int:
        """Jobs in every state."""
        broker = self._peers.broker
        done: Any = broker.zcard(self._key("completed"))
        failed: Any = broker.zcard(self._key("failed"))
        return int(done) + int(failed) + self._open()

    def refreshes(self) -> int:
        """As its worker notes them."""
        return self._peers.refreshes()

    def settled(self) -> bool:
        """No job is left."""
        return not self._open()

    def abandon(self) -> None:
        """The worker goes with the writers."""

    def _open(self) -> int:
        broker = self._peers.broker
        lists: list[Any] = [broker.llen(self._key(state)) for state in ("wait", "active")]
        sets: list[Any] = [broker.zcard(self._key(state)) for state in ("delayed", "prioritized")]
        return sum(int(number) for number in (*lists, *sets))

    @property
    def _queue(self) -> str:
        return f"{self._mode}-{self._round}"

    def _key(self, state: str) -> str:
        return f"bull:{self._queue}:{state}"

    def _start(self, role: str, number: int, events: int) -> subprocess.Popen[str]:
        arguments = [role, self._queue, self._mode, str(number), str(events)]
        folder = self._peers.packages
        node = shutil.which("node")
        assert node is not None  # node_is_missing has looked
        with (self._peers.bench.stage.folder / "node.log").open("a") as log:
            return subprocess.Popen(
                bound_to_us([node, str(folder / SCRIPT.name), *arguments], signal.SIGKILL),
                cwd=folder,
                env={**os.environ, **self._peers.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None  # a pipe
        said = process.stdout.readline()
        if not said:
            log = (self._peers.bench.stage.folder / "node.log").read_text(errors="replace")
            raise RuntimeError(f"Node ended without a word: {log.strip()[-500:]}")
        return said


def node_is_missing() -> str | None:
    """Why BullMQ cannot be measured here; None where it can."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not found" if missing else None
