"""The pair of the failover tests: the standby follows, a tail can be lost, and the promoted one is another timeline."""

from __future__ import annotations

import psycopg
import pytest

from tests import servers
from tests.standby import streaming_pair, timeline
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM public.t ORDER BY n")]


@pytest.mark.postgres
def test_a_tail_is_lost_and_the_old_primary_can_follow() -> None:
    with streaming_pair() as pair:
        database = servers.create_database(pair.primary)
        here, there, both = database.url, pair.alone(database.url), pair.url(database.url)
        with database.connect() as connection:
            connection.execute("CREATE TABLE public.t (n int)")
            connection.execute("INSERT INTO public.t VALUES (1)")
            pair.wait_caught_up()
            assert rows(there) == [1]
            assert pair.standby.in_recovery()
            pair.part()
            connection.execute("INSERT INTO public.t VALUES (2)")
        assert (rows(there), rows(both)) == ([1], [1, 2])
        pair.fail_over()
        assert (rows(there), rows(both)) == ([1], [1])
        assert timeline(pair.standby) == 2
        with psycopg.connect(both, autocommit=True) as connection:
            connection.execute("INSERT INTO public.t VALUES (3)")
        # Failed back: where the primary was is a standby now.
        with pair.follow() as again:
            wait_until(lambda: rows(here) == [1, 3], 20)
            assert again.in_recovery()
            assert rows(both) == [1, 3]
            again.promote()
            assert timeline(again) == 3
