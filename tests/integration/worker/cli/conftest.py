"""The command in this process, a configuration for it, and a small system of views."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PYTHONPATH
from tests.servers import Database
from tests.waiting import wait_until
from worker import cli

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO public.t SELECT i, i % 7 FROM generate_series(1, 50) AS i;
CREATE MATERIALIZED VIEW public.base AS SELECT id, n FROM public.t ORDER BY id;
CREATE UNIQUE INDEX base_key ON public.base (id);
CREATE MATERIALIZED VIEW public.top AS
    SELECT n, count(*) AS rows FROM public.base GROUP BY n ORDER BY n WITH NO DATA;
CREATE UNIQUE INDEX top_key ON public.top (n);
ANALYZE;
"""
VIEWS = {"public.base": "five_minutes", "public.top": "daily"}


@dataclass(frozen=True, kw_only=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


@dataclass
class Upkeep:
    """`upkeep(...)` runs the command here; `process(...)` really."""

    config: Path
    environment: dict[str, str]
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Said:
        self.capsys.readouterr()
        code = cli.run(words)
        captured = self.capsys.readouterr()
        return Said(code=code, out=captured.out, err=captured.err)

    def process(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    def write(self, text: str) -> None:
        self.config.write_text(text, encoding="utf-8")


COMMAND = [sys.executable, "-c", "import worker.cli; worker.cli.main()"]


def config(views: dict[str, str], name: str = "kept") -> str:
    lines = [
        "[fleet]",
        f'home = "{name}"',
        f"[databases.{name}]",
        'url_env = "UPKEEP_KEPT_URL"',
        "[queues]",
        "concurrency = 2",
    ]
    for view, tier in views.items():
        lines += [f"[databases.{name}.views.{json.dumps(view)}]", f'tier = "{tier}"']
    return "\n".join(lines) + "\n"


@pytest.fixture
def system(upkeep_database: Database) -> Database:
    """A migrated database with two views, one on the other; the second is not populated."""
    upkeep_database.connect().execute(SCHEMA)
    return upkeep_database


@pytest.fixture
def upkeep_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], redis_url: str
) -> Callable[..., Upkeep]:
    """Makes the command with a configuration for a database's URL."""

    def make(url: str, views: dict[str, str] | None = None) -> Upkeep:
        path = tmp_path / "upkeep.toml"
        path.write_text(config(VIEWS if views is None else views), encoding="utf-8")
        environment = {
            "UPKEEP_CONFIG": str(path),
            "UPKEEP_KEPT_URL": url,
            "UPKEEP_REDIS_URL": redis_url,
            "PYTHONPATH": PYTHONPATH,
        }
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("COLUMNS", raising=False)
        return Upkeep(config=path, environment=environment, capsys=capsys)

    return make


@pytest.fixture
def upkeep(system: Database, upkeep_with: Callable[..., Upkeep]) -> Upkeep:
    """The command, configured for the small system."""
    return upkeep_with(system.url)


@pytest.fixture
def worker(upkeep: Upkeep, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker of this fleet, ready."""
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--concurrency", "2"],
            env={**os.environ, **upkeep.environment},
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or "ready" in log.read_text(),
                timeout=60,
                message=lambda: f"a ready worker: {log.read_text()[-2000:]}",
            )
            assert process.poll() is None, log.read_text()[-4000:]
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
