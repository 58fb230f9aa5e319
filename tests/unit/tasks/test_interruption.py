"""When a signal becomes an exception, and when it waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tasks import interruption
from tasks.interruption import (
    CANCEL,
    STOP,
    TIME_IS_UP,
    Cancelled,
    Interrupted,
    SoftTimeLimitExceeded,
    Stopped,
    behind,
    heard,
    interruptible,
    uninterrupted,
)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pool child; that a signal between deliveries is ignored there does not concern the tests' process."""
    monkeypatch.setattr(interruption._state, "listening", True)


@pytest.fixture
def delivery(listening: None) -> Iterator[None]:
    with heard():
        yield


@pytest.mark.parametrize(
    ("number", "kind"), [(STOP, Stopped), (CANCEL, Cancelled), (TIME_IS_UP, SoftTimeLimitExceeded)]
)
@pytest.mark.usefixtures("delivery")
def test_work_is_interrupted_at_once(number: signal.Signals, kind: type[Interrupted]) -> None:
    went_on = []

    def work() -> None:
        signal.raise_signal(number)
        went_on.append(True)

    with pytest.raises(kind, match=kind.reason):
        interruptible(work)
    assert not went_on


def test_psycopg_cancels_a_statement_for_it() -> None:
    """Its wait() cancels for a KeyboardInterrupt or a SystemExit and for nothing else."""
    assert issubclass(Interrupted, KeyboardInterrupt)


@pytest.mark.usefixtures("delivery")
def test_the_ledger_is_kept_first() -> None:
    signal.raise_signal(STOP)  # not in the work: nothing happens yet
    with pytest.raises(Stopped):
        interruptible(lambda: pytest.fail("began"))
    signal.raise_signal(STOP)
    # Told once, it is not told again while its end is written.
    assert interruptible(lambda: 1) == 1


@pytest.mark.usefixtures("delivery")
def test_what_is_done_as_a_whole_within_the_work() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(STOP)
            steps.append("whole")
            assert interruptible_again() == "nested"
        steps.append("after")

    def interruptible_again() -> str:
        with pytest.raises(Stopped):
            interruptible(lambda: steps.append("began"))
        return "nested"

    interruptible(work)
    assert steps == ["whole", "after"]


@pytest.mark.usefixtures("delivery")
def test_what_was_heard_meanwhile_is_raised_at_the_end_of_the_whole() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(STOP)
            steps.append("whole")
        steps.append("after")

    with pytest.raises(Stopped):
        interruptible(work)
    assert steps == ["whole"]


@pytest.mark.usefixtures("delivery")
def test_the_first_one_counts() -> None:
    signal.raise_signal(TIME_IS_UP)
    signal.raise_signal(STOP)
    with pytest.raises(SoftTimeLimitExceeded):
        interruptible(lambda: None)


@pytest.mark.usefixtures("delivery")
def test_an_exception_that_python_has_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "RAISE_AGAIN_S", 0.0)

    def work() -> None:
        with suppress(Stopped):
            signal.raise_signal(STOP)
        signal.raise_signal(STOP)
        pytest.fail("went on")

    with pytest.raises(Stopped):
        interruptible(work)


def test_outside_of_a_delivery_the_signals_are_somebody_elses(listening: None) -> None:
    calls = []
    before = signal.signal(TIME_IS_UP, lambda *_: calls.append("theirs"))
    try:
        with heard():
            signal.raise_signal(TIME_IS_UP)
            assert calls == []
        signal.raise_signal(TIME_IS_UP)
        assert calls == ["theirs"]
        # What was for one delivery is not for the next.
        with heard():
            assert interruptible(lambda: "done") == "done"
    finally:
        signal.signal(TIME_IS_UP, before)


def test_nothing_is_heard_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solo pool works in the main process, whose signals are Celery's; a thread can set no handler."""
    before = signal.getsignal(STOP)
    with heard():
        assert signal.getsignal(STOP) is before
    monkeypatch.setattr(interruption._state, "listening", True)
    found = []

    def other() -> None:
        with heard():
            found.append(signal.getsignal(STOP))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]


def fail_on_the_way_out() -> None:
    try:
        raise Stopped
    finally:
        raise OSError("a rollback that failed")


def test_an_error_on_the_way_out_is_recognised() -> None:
    with pytest.raises(OSError, match="rollback") as failed:
        fail_on_the_way_out()
    assert isinstance(behind(failed.value), Stopped)
    assert behind(OSError()) is None
