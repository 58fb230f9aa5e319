import logging

import redis

from tests.waiting import wait_until
from upkeep_client.failing import Breaker, Reporter, reason


def test_after_an_unreachable_redis_one_caller_tries_and_the_others_do_not():
    breaker = Breaker(pause_s=0.2)
    assert not breaker.blocks()
    breaker.failed(redis.TimeoutError("Timeout reading from socket"))
    assert breaker.blocks()
    wait_until(lambda: not breaker.blocks(), 5)
    assert breaker.blocks(), "the one who tries has not come back yet"
    breaker.succeeded()
    assert not breaker.blocks()
    assert not breaker.blocks()


def test_an_answer_that_is_an_error_blocks_nobody():
    breaker = Breaker()
    breaker.failed(redis.exceptions.ReadOnlyError("You can't write against a read only replica."))
    breaker.failed(redis.exceptions.OutOfMemoryError("OOM"))
    assert not breaker.blocks()


def test_a_hundred_failures_are_one_line_and_the_next_has_their_number(caplog):
    caplog.set_level(logging.WARNING, "upkeep_client")
    reporter = Reporter("Not requested", interval_s=3600)
    for _ in range(100):
        reporter.failed("no route to host")
    assert [record.getMessage() for record in caplog.records] == [
        "Not requested (1 since the last such line): no route to host"
    ]
    reporter.flush()
    reporter.flush()
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "Not requested (99 since the last such line): no route to host"
    ]


def test_a_reason_holds_no_password():
    assert reason(redis.ConnectionError("cannot log in with s3cr3t"), ["s3cr3t"]) == "cannot log in with ***"
    assert reason(TimeoutError()) == "TimeoutError"
