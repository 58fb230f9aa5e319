"""The servers of a connection string, in order, as people name them."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from fleet.postgres.addresses import addresses


@pytest.mark.parametrize(
    ("conninfo", "named"),
    [
        ("", ["the local socket:5432"]),
        ("port=5433", ["the local socket:5433"]),
        ("host=a", ["a:5432"]),
        ("host=a hostaddr=10.0.0.1", ["a:5432"]),
        ("hostaddr=10.0.0.1", ["10.0.0.1:5432"]),
        ("host=a,b port=1", ["a:1", "b:1"]),
        ("host=a,b port=1,2", ["a:1", "b:2"]),
        ("host=a,b port=,2", ["a:5432", "b:2"]),
        ("hostaddr=10.0.0.1,10.0.0.2 port=1,2", ["10.0.0.1:1", "10.0.0.2:2"]),
        ("postgresql://u:p@a:1,b:2,c/d", ["a:1", "b:2", "c:5432"]),
    ],
)
def test_addresses(conninfo: str, named: list[str]) -> None:
    found = addresses(conninfo_to_dict(conninfo))
    assert [str(each) for each in found] == named


@pytest.mark.parametrize("conninfo", ["port=1,2", "host=a,b,c port=1,2", "host=a,b hostaddr=10.0.0.1"])
def test_lists_that_do_not_match(conninfo: str) -> None:
    with pytest.raises(ValueError, match="names"):
        addresses(conninfo_to_dict(conninfo))
