"""From one URL of ours to Celery's settings; that they work is seen with real servers."""

from __future__ import annotations

import ssl

import pytest

from worker.broker import celery_settings


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://h:7/3", "redis://h:7/3"),
        ("redis://:p%40ss@h/1", "redis://:p%40ss@h:6379/1"),
        (
            "redis://user:secret@[::1]:7/0?health_check_interval=5",
            "redis://user:secret@[::1]:7/0?health_check_interval=5",
        ),
        ("unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2"),
        (
            "redis+sentinel://u:p@a,b:7/mine/4?sentinel_password=s",
            "sentinel://u:p@a:26379/4;sentinel://u:p@b:7/4",
        ),
    ],
)
def test_the_brokers_url(url: str, said: str) -> None:
    found = celery_settings(url, {"socket_timeout": 30})
    assert (found["broker_url"], found["result_backend"]) == (said, said)
    assert found["broker_transport_options"]["socket_timeout"] == 30
    assert "broker_use_ssl" not in found


def test_sentinels_are_told_whom_to_ask_for_and_how() -> None:
    found = celery_settings("redis+sentinel://:p@a/mine/4?sentinel_username=u&sentinel_password=s", {})
    for options in (found["broker_transport_options"], found["result_backend_transport_options"]):
        assert options == {"master_name": "mine", "sentinel_kwargs": {"username": "u", "password": "s"}}


def test_tls_asks_for_a_good_certificate_unless_told_otherwise() -> None:
    found = celery_settings("rediss://h?ssl_ca_certs=/etc/ca.pem", {})
    assert found["broker_url"] == "rediss://h:6379/0"
    assert found["broker_use_ssl"] == {"ssl_ca_certs": "/etc/ca.pem", "ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert found["redis_backend_use_ssl"] == found["broker_use_ssl"]
    lax = celery_settings("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false", {})["broker_use_ssl"]
    assert lax == {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}


def test_sentinels_with_tls_are_asked_with_it_too() -> None:
    options = celery_settings("rediss+sentinel://a/mine?ssl_ca_certs=/etc/ca.pem", {})[
        "broker_transport_options"
    ]
    assert options["sentinel_kwargs"]["ssl"] is True
    assert options["sentinel_kwargs"]["ssl_ca_certs"] == "/etc/ca.pem"
