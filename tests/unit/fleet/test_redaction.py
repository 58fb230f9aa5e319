"""Redaction: every shape in which a password has been seen in a log."""

from __future__ import annotations

import pytest

from fleet import redaction

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            f"postgresql://upkeep:{SECRET}@db.example:5432/lending",
            "postgresql://upkeep:***@db.example:5432/lending",
        ),
        (f"redis://:{SECRET}@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        (f"rediss://u:a@b/{SECRET}@h", "rediss://u:***@h"),
        (f"postgresql+psycopg://u:{SECRET}@h/d is wrong", "postgresql+psycopg://u:***@h/d is wrong"),
        (
            f"'postgres://u:{SECRET}@h/d' and 'redis://:{SECRET}@h/0'",
            "'postgres://u:***@h/d' and 'redis://:***@h/0'",
        ),
        (f"host=h password={SECRET} dbname=d", "host=h password=*** dbname=d"),
        (f"host=h password='a {SECRET}' dbname=d", "host=h password=*** dbname=d"),
        (f"host=h password = '{SECRET}\\' x' dbname=d", "host=h password = *** dbname=d"),
        (
            f"postgresql:///d?user=u&password={SECRET}&sslmode=require",
            "postgresql:///d?user=u&password=***&sslmode=require",
        ),
        (f"{{'user': 'u', 'password': '{SECRET}'}}", "{'user': 'u', 'password': ***}"),
        (f'{{"password": "{SECRET}", "port": 1}}', '{"password": ***, "port": 1}'),
        (f"PGPASSWORD={SECRET} psql", "PGPASSWORD=*** psql"),
        (f"sslpassword={SECRET}", "sslpassword=***"),
        (f"client_secret: {SECRET}", "client_secret: ***"),
    ],
)
def test_text(text: str, kept: str) -> None:
    assert redaction.text(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "refreshed public.mv_portfolio_summary in 12:30:05",
        "postgresql://upkeep@db.example:5432/lending",
        "postgresql://db.example:5432/lending?sslmode=require",
        'password authentication failed for user "upkeep"',
        "http://127.0.0.1:5555/task/1",
        "mail to ops@example.com: now",
        "",
    ],
)
def test_innocent_text_is_left_alone(text: str) -> None:
    assert redaction.text(text) == text


def test_data_at_any_depth() -> None:
    event = {
        "url": f"x{SECRET}",
        "REDIS_URL": SECRET,
        "password": "",
        "database": "lending",
        "kwargs": {
            "dsn": SECRET,
            "list": [f"password={SECRET}", ("a", {"pgpassword": SECRET, "db_password": SECRET})],
        },
        "raw": f"redis://:{SECRET}@h".encode(),
        "count": 3,
    }
    shown = redaction.data(event)
    assert SECRET not in repr(shown)
    assert isinstance(shown, dict)
    assert shown["database"] == "lending"
    assert shown["count"] == 3
    assert shown["password"] == ""  # that there is none is worth knowing
    assert event["url"] == f"x{SECRET}"  # the caller's own data is not changed


@pytest.mark.parametrize(
    "key", ["password", "url", "dsn", "redis_url", "DATABASE_URL", "sql.password", "api_key", "token"]
)
def test_keys_of_secrets(key: str) -> None:
    assert redaction.names_a_secret(key)


@pytest.mark.parametrize("key", ["view", "urlencoded", "tokens", "curl", "unique_key", "passed", 5])
def test_other_keys(key: object) -> None:
    assert not redaction.names_a_secret(key)
