"""TLS in front of a real Redis: not every build of the server speaks it, so that a proxy of the test's own does."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from contextlib import suppress

import pytest
import redis

from upkeep_client import AsyncUpkeep, RequestNotSent, Upkeep

PATIENT = 10.0

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-keyout", "key.pem", "-out", "cert.pem",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def tls_port(certificate, redis_server):
    """Takes TLS and passes on what is in it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    loop = asyncio.new_event_loop()
    tasks = set()

    async def copy(reader, writer):
        with suppress(OSError, ssl.SSLError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def take(reader, writer):
        tasks.add(asyncio.current_task())
        there, back = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async def listen():
        return await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)

    async def end(server):
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    yield server.sockets[0].getsockname()[1]
    asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def url(tls_port, redis_url):
    return f"rediss://127.0.0.1:{tls_port}/{redis_url.rpartition('/')[2]}"


def test_a_request_through_tls(url, certificate, marks):
    with Upkeep(f"{url}?ssl_ca_certs={certificate}/cert.pem", on_error="raise", timeout=PATIENT) as client:
        assert client.request_refresh("public.v") is True

    async def run():
        async with AsyncUpkeep(
            f"{url}?ssl_ca_certs={certificate}/cert.pem", on_error="raise", timeout=PATIENT
        ) as client:
            return await client.request_refresh("public.w")

    assert asyncio.run(run()) is True
    assert set(marks.of()) == {"public.v", "public.w"}


def test_a_server_that_nobody_vouches_for_is_not_told_anything(url, marks):
    with Upkeep(url, on_error="raise", timeout=PATIENT) as client:
        with pytest.raises(RequestNotSent, match="certificate verify failed") as caught:
            client.request_refresh("public.v")
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert marks.of() == {}


def test_a_server_without_tls_is_not_told_anything(redis_url, marks):
    url = redis_url.replace("redis://", "rediss://")
    with Upkeep(url, on_error="raise", timeout=1) as client, pytest.raises(RequestNotSent):
        client.request_refresh("public.v")
    assert marks.of() == {}
