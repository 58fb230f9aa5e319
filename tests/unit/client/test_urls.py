import pytest

from upkeep_client.errors import InvalidUrl
from upkeep_client.urls import parse

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "kind", "tls", "hosts", "service", "db", "username", "password"),
    [
        ("redis://h", "server", False, (("h", 6379),), None, 0, None, None),
        ("redis://h:7000/3", "server", False, (("h", 7000),), None, 3, None, None),
        ("redis://:pw@h/", "server", False, (("h", 6379),), None, 0, None, "pw"),
        ("rediss://u:p%40w%2F@h:1/0", "server", True, (("h", 1),), None, 0, "u", "p@w/"),
        ("redis://u:p@w@h", "server", False, (("h", 6379),), None, 0, "u", "p@w"),
        ("redis://[::1]:7000/1", "server", False, (("::1", 7000),), None, 1, None, None),
        ("redis+sentinel://a/main", "sentinel", False, (("a", 26379),), "main", 0, None, None),
        (
            "redis+sentinel://u:p@a:1,b:2,[::1]/main/4",
            "sentinel", False, (("a", 1), ("b", 2), ("::1", 26379)), "main", 4, "u", "p",
        ),
        ("rediss+sentinel://:p@a,b/main", "sentinel", True, (("a", 26379), ("b", 26379)), "main", 0, None, "p"),
        ("redis+cluster://a,b:7", "cluster", False, (("a", 6379), ("b", 7)), None, 0, None, None),
        ("rediss+cluster://u:p@a/0", "cluster", True, (("a", 6379),), None, 0, "u", "p"),
    ],
)  # fmt: skip
def test_a_url_in_its_parts(url, kind, tls, hosts, service, db, username, password):
    found = parse(url)
    assert (found.kind, found.tls, found.hosts, found.service, found.db) == (kind, tls, hosts, service, db)
    assert (found.username, found.password) == (username, password)


def test_a_socket_has_a_path_and_its_database_in_the_options():
    found = parse("unix://u:p@/run/redis%20x.sock?db=2")
    assert (found.kind, found.path, found.db, found.password) == ("socket", "/run/redis x.sock", 2, "p")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@h/2", "redis://***@h:6379/2"),
        ("rediss://h", "rediss://h:6379/0"),
        (f"redis://h?password={SECRET}", "redis://***@h:6379/0"),
        (f"redis+sentinel://u:{SECRET}@a,[::1]/main/1", "redis+sentinel://***@a:26379,[::1]:26379/main/1"),
        (f"redis+sentinel://a/main?sentinel_password={SECRET}", "redis+sentinel://***@a:26379/main/0"),
        (f"rediss+cluster://:{SECRET}@a,b", "rediss+cluster://***@a:6379,b:6379"),
        (f"unix://:{SECRET}@/run/r.sock", "unix://***@/run/r.sock?db=0"),
    ],
)
def test_a_url_for_people_has_no_secret(url, shown):
    found = parse(url)
    assert found.shown == shown
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"amqp://:{SECRET}@h",
        f"postgresql://u:{SECRET}@h/db",
        f"sentinel://:{SECRET}@h/main",
        f"redis://:{SECRET}@",
        f"redis://:{SECRET}@h:0",
        f"redis://:{SECRET}@h:65536",
        f"redis://:{SECRET}@h:port",
        f"redis://:{SECRET}@h/main",
        f"redis://:{SECRET}@h/0/1",
        f"redis://:{SECRET}@a,b/0",
        f"redis://:{SECRET}@[::1",
        f"redis+sentinel://:{SECRET}@a",
        f"redis+sentinel://:{SECRET}@a,/main",
        f"redis+sentinel://:{SECRET}@a/main/x",
        f"redis+cluster://:{SECRET}@a/3",
        f"unix://:{SECRET}@run/redis.sock",
        f"unix://:{SECRET}@/run/redis.sock?db=x",
    ],
)
def test_what_is_no_url_is_refused_without_quoting_it(url):
    with pytest.raises(InvalidUrl) as caught:
        parse(url)
    assert SECRET not in str(caught.value)
    assert str(caught.value).endswith(".")
