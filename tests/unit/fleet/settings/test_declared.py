"""What the fleet runs on a schedule: the timing that tiers, jobs and scheduled entries share, and each of these."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from fleet.errors import PermanentError
from fleet.settings import Fleet, Job, Problem, Report, Scheduled, Settings, Tier, check

ENVIRON = {"UPKEEP_LENDING_URL": "postgresql://h/lending", "UPKEEP_TRADING_URL": "postgresql://h/trading"}
ONE = '[databases.lending.views."public.mv_x"]\ntier = "five_minutes"\n'
TWO = ONE + '[databases.trading.views."public.mv_y"]\ntier = "daily"\n[fleet]\nhome = "lending"\n'
JOB = "[jobs.settle]\nsql = 'SELECT public.settle()'\n"
ENTRY = "[schedule.night]\ntask = 'upkeep.refresh.all'\ncron = '0 1 * * *'\n"

Check = Callable[..., Report]


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    """Check a text as upkeep.toml."""

    def run(text: str) -> Report:
        path = tmp_path / "upkeep.toml"
        path.write_text(text)
        return check(path, ENVIRON)

    return run


def kept(report: Report) -> Settings:
    assert report.settings is not None, "\n".join(map(str, report.errors))
    return report.settings


def only(problems: tuple[Problem, ...]) -> Problem:
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


class TestJobs:
    def test_the_least_that_works(self, checked: Check) -> None:
        report = checked(ONE + JOB)
        assert report.warnings == ()
        job = kept(report).job("settle")
        assert job == Job(name="settle", database="lending", sql="SELECT public.settle()")
        assert (job.cron, job.timezone, job.jitter, job.catch_up) == (None, "UTC", timedelta(0), "latest")
        assert (job.statement_timeout, job.lock_timeout) == (timedelta(minutes=15), None)
        assert job.retries == (timedelta(seconds=5), timedelta(seconds=25), timedelta(seconds=125))
        assert (job.repeat_until_zero, job.max_batches, job.batch_pause) == (False, 10_000, timedelta(0))
        assert job.queue == "maintenance"

    def test_everything_that_can_be_said(self, checked: Check) -> None:
        report = checked(
            TWO
            + JOB
            + """
            database = "trading"
            cron = "*/5 * * * *"
            timezone = "Europe/Berlin"
            jitter = "30s"
            catch_up = "none"
            statement_timeout = "20s"
            lock_timeout = "100ms"
            retries = []
            repeat_until_zero = true
            max_batches = 50
            batch_pause = "10ms"
            queue = "refresh.slow"
            """
        )
        assert report.warnings == ()
        assert kept(report).jobs == {
            "settle": Job(
                name="settle",
                database="trading",
                sql="SELECT public.settle()",
                cron="*/5 * * * *",
                timezone="Europe/Berlin",
                jitter=timedelta(seconds=30),
                catch_up="none",
                statement_timeout=timedelta(seconds=20),
                lock_timeout=timedelta(milliseconds=100),
                retries=(),
                repeat_until_zero=True,
                max_batches=50,
                batch_pause=timedelta(milliseconds=10),
                queue="refresh.slow",
            )
        }

    @pytest.mark.parametrize(
        ("line", "key", "value", "said", "remedy"),
        [
            ("database = 'lendin'", "database", '"lendin"', "not a database", 'Did you mean "lending"?'),
            ("database = 5", "database", "5", "not a database", "lending"),
            ("cron = '* * *'", "cron", '"* * *"', "3 fields", "five fields"),
            ("cron = 5", "cron", "5", "text", "quotes"),
            ("statement_timeout = '1h'", "statement_timeout", '"1h"', "soft_time_limit = 1h", "Raise"),
            ("statement_timeout = 5", "statement_timeout", "5", "no unit", "30s"),
            ("lock_timeout = '0s'", "lock_timeout", '"0s"', "from 1ms to 10m", "bounds"),
            ("retries = ['5s', 'x']", "retries[1]", '"x"', "not a duration", "30s"),
            ("repeat_until_zero = 'yes'", "repeat_until_zero", '"yes"', "boolean", "true or false"),
            ("max_batches = 0", "max_batches", "0", "whole number from 1", "Write one"),
            ("batch_pause = '6m'", "batch_pause", '"6m"', "from 0s to 5m", "bounds"),
            ("queue = 'maintenence'", "queue", '"maintenence"', "'maintenance'", "one of these"),
            ("quue = 'archive'", "quue", '"archive"', "no such key", 'Did you mean "queue"?'),
            ("name = 'x'", "name", '"x"', "no such key", "Known"),
        ],
    )
    def test_mistake(self, checked: Check, line: str, key: str, value: str, said: str, remedy: str) -> None:
        report = checked(ONE + JOB + line)
        assert report.settings is None
        problem = only(report.errors)
        assert (problem.key, problem.value) == (f"jobs.settle.{key}", value)
        assert said in problem.message
        assert remedy in problem.remedy

    @pytest.mark.parametrize(
        ("sql", "said"),
        [("5", "text"), ("''", "empty"), ("' \t\\n'", "empty"), ("[]", "text"), ('"SELECT \\u0000"', "NUL")],
    )
    def test_what_is_no_statement(self, checked: Check, sql: str, said: str) -> None:
        sql = sql.replace("\\n", " ")
        problem = only(checked(f"{ONE}[jobs.settle]\nsql = {sql}").errors)
        assert problem.key == "jobs.settle.sql"
        assert said in problem.message
        assert problem.remedy

    def test_a_job_without_a_statement(self, checked: Check) -> None:
        problem = only(checked(ONE + "[jobs.settle]\ncron = '@daily'").errors)
        assert (problem.key, problem.message, problem.remedy) == (
            "jobs.settle.sql",
            "it is missing",
            "Add it",
        )

    def test_with_several_databases_it_must_say_which(self, checked: Check) -> None:
        problem = only(checked(TWO + JOB).errors)
        assert (problem.key, problem.value) == ("jobs.settle.database", "")
        assert "must say which" in problem.message
        assert problem.remedy == "Known: lending, trading"

    def test_without_any_database_that_is_the_only_error(self, checked: Check) -> None:
        assert only(checked(JOB).errors).key == "databases"

    @pytest.mark.parametrize("name", ["Settle", "1st", "a-b", "a" * 32, "größe", "a b"])
    def test_names(self, checked: Check, name: str) -> None:
        problem = only(checked(f"{ONE}[jobs.'{name}']\nsql = 'SELECT 1'").errors)
        assert "not a name for a job" in problem.message
        assert "31 characters" in problem.remedy

    def test_a_job_that_is_no_table(self, checked: Check) -> None:
        report = checked(ONE + "[jobs]\nsettle = 'SELECT 1'")
        assert report.errors[0].key == "jobs.settle"
        assert "must be a table" in report.errors[0].message
        assert only(checked("jobs = 5\n" + ONE).errors).key == "jobs"

    @pytest.mark.parametrize(
        ("line", "said", "remedy"),
        [
            ("timezone = 'Europe/Berlin'", "no cron", "Add cron"),
            ("jitter = '5s'", "no cron", "Add cron"),
            ("catch_up = 'none'", "no cron", "Add cron"),
            ("max_batches = 5", "once", "repeat_until_zero = true"),
            ("batch_pause = '5s'", "once", "repeat_until_zero = true"),
        ],
    )
    def test_what_has_no_effect_is_a_warning(self, checked: Check, line: str, said: str, remedy: str) -> None:
        report = checked(ONE + JOB + line)
        kept(report)
        warning = only(report.warnings)
        assert warning.key == f"jobs.settle.{line.split(maxsplit=1)[0]}"
        assert said in warning.message
        assert remedy in warning.remedy

    def test_a_timeout_longer_than_the_schedule_is_a_warning(self, checked: Check) -> None:
        warning = only(checked(ONE + JOB + "cron = '*/5 * * * *'\nstatement_timeout = '6m'").warnings)
        assert warning.key == "jobs.settle.statement_timeout"
        assert "due every 5m" in warning.message
        assert checked(ONE + JOB + "cron = '*/5 * * * *'").warnings == ()

    def test_a_database_that_has_only_jobs_is_not_idle(self, checked: Check) -> None:
        assert checked("[databases.lending]\n" + JOB).warnings == ()
        assert checked("[databases.lending]\n" + ENTRY).warnings == ()
        # Nor is one whose job has a mistake.
        assert checked("[databases.lending]\n" + JOB + "cron = 5").warnings == ()


class TestSchedule:
    def test_the_least_that_works(self, checked: Check) -> None:
        report = checked(ONE + ENTRY)
        assert report.warnings == ()
        assert kept(report).schedule == {
            "night": Scheduled(name="night", task="upkeep.refresh.all", database="lending", cron="0 1 * * *")
        }
        entry = kept(report).schedule["night"]
        assert (entry.arguments, entry.timezone, entry.jitter) == ({}, "UTC", timedelta(0))
        assert entry.catch_up == "latest"

    def test_arguments_keep_their_types(self, checked: Check) -> None:
        arguments = {"tier": "daily", "count": 3, "share": 0.5, "forced": True, "no": False, "big": 2**70}
        text = ", ".join(
            f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in arguments.items()
        )
        found = kept(checked(f"{ONE}{ENTRY}arguments = {{ {text} }}")).schedule["night"].arguments
        assert found == arguments
        assert {key: type(value) for key, value in found.items()} == {
            key: type(value) for key, value in arguments.items()
        }

    @pytest.mark.parametrize(
        ("text", "key", "value", "said", "remedy"),
        [
            ("task = 'x'", "cron", "", "missing", "Add it"),
            ("cron = '@daily'", "task", "", "missing", "Add it"),
            ("task = 5\ncron = '@daily'", "task", "5", "not the name of a task", "upkeep.refresh.all"),
            ("task = 'a b'\ncron = '@daily'", "task", '"a b"', "not the name of a task", "upkeep.refresh.all"),
            (
                "task = 'x'\ncron = '@daily'\ndatabase = 'x'",
                "database", '"x"', "not a database", "lending",
            ),
            ("task = 'x'\ncron = '@daily'\nargs = {}", "args", "{...}", "no such key", '"arguments"'),
            ("task = 'x'\ncron = '@daily'\narguments = 5", "arguments", "5", "dictionary", "a table"),
            (
                "task = 'x'\ncron = '@daily'\narguments = { a = ['b'] }",
                "arguments.a", '["b"]', "text, a number, true or false", "message",
            ),
            (
                "task = 'x'\ncron = '@daily'\narguments = { a = nan }",
                "arguments.a", "nan", "text, a number, true or false", "message",
            ),
            (
                "task = 'x'\ncron = '@daily'\narguments = { a = 2026-01-01 }",
                "arguments.a", "2026-01-01", "text, a number", "message",
            ),
            (
                "task = 'x'\ncron = '@daily'\narguments = { database = 'lending' }",
                "arguments.database", '"lending"', "beside its task", "database =",
            ),
            (
                "task = 'x'\ncron = '@daily'\narguments = { run = 5 }",
                "arguments.run", "5", "fleet itself", "Take it out",
            ),
        ],
    )  # fmt: skip
    def test_mistake(self, checked: Check, text: str, key: str, value: str, said: str, remedy: str) -> None:
        report = checked(f"{ONE}[schedule.night]\n{text}")
        assert report.settings is None
        problem = only(report.errors)
        assert (problem.key, problem.value) == (f"schedule.night.{key}", value)
        assert said in problem.message
        assert remedy in problem.remedy
        assert problem.remedy

    def test_with_several_databases_it_must_say_which(self, checked: Check) -> None:
        problem = only(checked(TWO + ENTRY).errors)
        assert problem.key == "schedule.night.database"
        assert problem.remedy == "Known: lending, trading"

    def test_names(self, checked: Check) -> None:
        problem = only(checked(ONE + ENTRY.replace("night", "Night")).errors)
        assert "not a name for a scheduled entry" in problem.message

    @pytest.mark.parametrize(("section", "meant"), [("job", "jobs"), ("schedules", "schedule")])
    def test_a_mistyped_section(self, checked: Check, section: str, meant: str) -> None:
        problem = only(checked(f"{ONE}[{section}.x]\nsql = 'SELECT 1'").errors)
        assert (problem.key, problem.remedy) == (section, f'Did you mean "{meant}"?')


class TestTiming:
    """The same in a tier, a job and a scheduled entry."""

    PLACES = (
        ("tiers.x", ONE + "[databases.lending.views.'a.b']\ntier = 'x'\n[tiers.x]\n"),
        (
            "databases.lending.tiers.x",
            ONE + "[databases.lending.views.'a.b']\ntier = 'x'\n[databases.lending.tiers.x]\n",
        ),
        ("jobs.settle", ONE + JOB),
        ("schedule.night", ONE + "[schedule.night]\ntask = 'upkeep.refresh.all'\n"),
    )

    @pytest.mark.parametrize(("place", "text"), PLACES)
    @pytest.mark.parametrize(
        ("cron", "jitter"),
        [("*/5 * * * *", "299s"), ("0 * * * *", "59m"), ("0 2 * * *", "1h"), ("0 9,10 * * *", "3599s")],
    )
    def test_a_jitter_within_the_gap(
        self, checked: Check, place: str, text: str, cron: str, jitter: str
    ) -> None:
        assert checked(f"{text}cron = '{cron}'\njitter = '{jitter}'").errors == ()

    @pytest.mark.parametrize(("place", "text"), PLACES)
    @pytest.mark.parametrize(
        ("cron", "jitter", "said", "remedy"),
        [
            ("*/5 * * * *", "5m", "every 5m at its closest", "less than 5m"),
            ("0,10 * * * *", "20m", "every 10m at its closest", "less than 10m"),
            ("0 9,10 * * *", "1h", "every 1h at its closest", "less than 1h"),
            ("0 2 * * *", "61m", "from 0s to 1h", "bounds"),
            ("0 2 * * *", "x", "not a duration", "30s"),
        ],
    )
    def test_a_jitter_that_is_too_long(
        self, checked: Check, place: str, text: str, cron: str, jitter: str, said: str, remedy: str
    ) -> None:
        problem = only(checked(f"{text}cron = '{cron}'\njitter = '{jitter}'").errors)
        assert (problem.key, problem.value) == (f"{place}.jitter", f'"{jitter}"')
        assert said in problem.message
        assert remedy in problem.remedy

    @pytest.mark.parametrize(("place", "text"), PLACES)
    def test_all_of_it_at_once(self, checked: Check, place: str, text: str) -> None:
        wrong = "cron = '60 * * * *'\ntimezone = 'Mars'\njitter = 5\ncatch_up = 'all'"
        report = checked(text + wrong)
        parts = ("cron", "timezone", "jitter", "catch_up")
        assert [problem.key for problem in report.errors] == [f"{place}.{part}" for part in parts]
        assert all(problem.value and problem.remedy for problem in report.errors)

    def test_a_tier_that_is_there_already_may_be_changed_in_part(self, checked: Check) -> None:
        text = """
        [tiers.five_minutes]
        jitter = "20s"
        [databases.lending.tiers.five_minutes]
        catch_up = "none"
        """
        tier = kept(checked(ONE + text)).databases["lending"].tiers["five_minutes"]
        assert tier == Tier(
            name="five_minutes", cron="*/5 * * * *", jitter=timedelta(seconds=20), catch_up="none"
        )

    def test_an_inherited_jitter_is_judged_by_the_new_cron(self, checked: Check) -> None:
        text = """
        [tiers.five_minutes]
        jitter = "2m"
        [databases.lending.tiers.five_minutes]
        cron = "* * * * *"
        """
        problem = only(checked(ONE + text).errors)
        assert (problem.key, problem.value) == ("databases.lending.tiers.five_minutes.jitter", '"2m"')

    def test_made_directly_it_is_validated_too(self) -> None:
        with pytest.raises(ValidationError, match="overtaken"):
            Tier(name="x", cron="* * * * *", jitter=timedelta(minutes=1))


class TestLookUps:
    def settings(self, *jobs: Job) -> Settings:
        return Settings(fleet=Fleet(home="x"), databases={}, jobs={job.name: job for job in jobs})

    def job(self, name: str, database: str = "x") -> Job:
        return Job(name=name, database=database, sql="SELECT 1")

    def test_a_job_by_its_name(self) -> None:
        assert self.settings(self.job("settle")).job("settle").name == "settle"

    @pytest.mark.parametrize(
        ("name", "remedy"),
        [
            ("setle", 'Did you mean "settle"? Else declare it in upkeep.toml under [jobs.NAME]'),
            ("x", "Known: report, settle. Else declare it in upkeep.toml under [jobs.NAME]"),
            (5, "Known: report, settle. Else declare it in upkeep.toml under [jobs.NAME]"),
            (None, "Known: report, settle. Else declare it in upkeep.toml under [jobs.NAME]"),
        ],
    )
    def test_an_unknown_one(self, name: object, remedy: str) -> None:
        with pytest.raises(PermanentError) as caught:
            self.settings(self.job("settle"), self.job("report")).job(name)
        assert caught.value.message == f"There is no job named {name!r}"
        assert caught.value.remedy == remedy

    def test_an_unknown_one_where_there_are_none(self) -> None:
        with pytest.raises(PermanentError) as caught:
            self.settings().job("settle")
        assert caught.value.remedy == "Declare it in upkeep.toml under [jobs.NAME]"

    def test_the_jobs_of_a_database_in_order(self) -> None:
        found = self.settings(self.job("b"), self.job("c", "y"), self.job("a")).jobs_in("x")
        assert [job.name for job in found] == ["a", "b"]
