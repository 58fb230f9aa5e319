"""URLs of several servers: taken, compared and shown server by server, never with their password."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet import redaction
from fleet.errors import ConfigurationError
from fleet.settings import check, urls

SECRET = "hunter2"
PAIR = (
    f"postgresql://upkeep:{SECRET}@db1.example:5432,db2.example:5433/lending?target_session_attrs=read-write"
)
VIEWS = """
[fleet]
home = "lending"
[databases.lending.views."a.b"]
tier = "daily"
[databases.copy.views."a.b"]
tier = "daily"
"""


@pytest.mark.parametrize(
    "url",
    [
        PAIR,
        f"host=db1.example,db2.example port=5432,5433 dbname=lending user=upkeep password={SECRET}",
        f"host=db1.example,db2.example hostaddr=10.0.0.1,10.0.0.2 port=5432 user=u password={SECRET}",
        f"postgresql://u:{SECRET}@db1,db2,db3/d?target_session_attrs=primary&load_balance_hosts=random",
    ],
)
def test_several_servers_are_taken_and_shown_without_the_password(url: str) -> None:
    parameters = urls.postgres(url)
    assert urls.has_secret(parameters)
    for shown in (
        urls.shown(parameters),
        redaction.text(url),
        redaction.text(f"cannot reach {url}: refused"),
    ):
        assert SECRET not in shown
        assert "db1" in shown
        assert "db2" in shown


@pytest.mark.parametrize(
    ("url", "said", "remedy"),
    [
        (f"postgresql://u:{SECRET}@a:1,b:2/d?port=1,2,3", "3 ports for 2 hosts", "one for each"),
        (f"host=a,b hostaddr=10.0.0.1 password={SECRET}", "1 addresses for 2 hosts", "one for each"),
        (f"postgresql://u:{SECRET}@a:1,b:x/d", "port", "postgresql://user@host"),
        (
            f"postgresql://u:{SECRET}@a,b/d?target_session_attrs=standby",
            "away from the primary",
            "read-write",
        ),
        (f"postgresql://u:{SECRET}@a,b/d?target_session_attrs=prefer-standby", "away", "read-write"),
        (f"postgresql://u:{SECRET}@a,b/d?target_session_attrs=master", "away", "read-write"),
    ],
)
def test_what_cannot_work_is_refused(url: str, said: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        urls.postgres(url)
    assert said in refused.value.message
    assert remedy in refused.value.remedy
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("host=db2.example port=5433 dbname=lending user=other", True),
        ("postgresql://db3.example:5432,db1.example:5432/lending", True),
        ("host=db1.example,db2.example port=5432,5433 dbname=lending", True),
        ("host=db2.example port=5432 dbname=lending", False),
        ("host=db1.example,db2.example port=5432,5433 dbname=trading", False),
        ("host=db2.example hostaddr=10.0.0.2 port=5433 dbname=lending", False),
    ],
)
def test_one_database_under_two_names(tmp_path: Path, other: str, same: bool) -> None:
    path = tmp_path / "upkeep.toml"
    path.write_text(VIEWS)
    report = check(path, {"UPKEEP_LENDING_URL": PAIR, "UPKEEP_COPY_URL": other})
    assert report.errors == ()
    said = [warning.message for warning in report.warnings]
    assert said == (
        ["it is the database lending once more: each view would be refreshed twice"] if same else []
    )
