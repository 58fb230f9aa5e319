"""Settings: what may be said, and that every mistake is named, all of them at once, no secret with them."""

from __future__ import annotations

import copy
import pickle
import random
import tomllib
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fleet.errors import ConfigurationError, PermanentError
from fleet.names import RelationName
from fleet.settings import (
    ConfigurationErrors,
    Database,
    Fleet,
    Problem,
    Queues,
    Report,
    Settings,
    Tier,
    View,
    check,
    load,
)
from fleet.settings.reading import Reader

SECRET = "hunter2"
URL = f"postgresql://upkeep:{SECRET}@db.example/lending"
ENVIRON = {"UPKEEP_LENDING_URL": URL}
MINIMAL = """
[databases.lending.views."public.mv_x"]
tier = "five_minutes"
"""
FULL = """
[fleet]
home = "lending"
redis_url = "redis://cache.example:6380/2"
keep_skipped = "2d"
keep_runs = "30d"

[tiers.five_minutes]
timezone = "Europe/Berlin"

[tiers.nightly]
cron = "@daily"
jitter = "10m"
catch_up = "none"

[databases.lending]
url_env = "LENDING_DSN"
max_parallel_refreshes = 3
lock_timeout = "250ms"

[databases.lending.views."public.mv_x"]
tier = "five_minutes"
statement_timeout = "30s"
retries = ["1s", "10s"]
allow_blocking = true
max_skip = "0s"
timezone = "America/New_York"
queue = "refresh.slow"

[databases.lending.views.'"Odd Schema"."Größe ""x"" y"']
tier = "nightly"
retries = []

[databases.trading]
url = "host=db.example dbname=trading user=upkeep"

[databases.trading.tiers.daily]
cron = "0 2 * * *"
timezone = "America/New_York"

[databases.trading.views."public.mv_y"]
tier = "daily"

[jobs.settle]
database = "trading"
sql = "SELECT public.settle()"
cron = "*/5 * * * *"
timezone = "Europe/Berlin"
jitter = "30s"
catch_up = "none"
statement_timeout = "20s"
lock_timeout = "100ms"
retries = ["2s"]
repeat_until_zero = true
max_batches = 50
batch_pause = "10ms"
queue = "refresh.slow"

[schedule.all_at_night]
task = "upkeep.refresh.all"
database = "lending"
cron = "0 1 * * *"
timezone = "America/New_York"
jitter = "1h"
catch_up = "none"
arguments = { requested_by = "the night", count = 3, share = 0.5, forced = true }

[queues]
concurrency = 8
max_tasks_per_child = 50
max_memory_per_child_mb = 512
soft_time_limit = "2h"
time_limit = "3h"
result_expires = "6h"
"""

Check = Callable[..., Report]


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    """Check a text as upkeep.toml."""

    def run(text: str | bytes, environ: dict[str, str] | None = None) -> Report:
        path = tmp_path / "upkeep.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        report = check(path, ENVIRON if environ is None else environ)
        assert SECRET not in f"{report} {report!r}"
        return report

    return run


def only(problems: tuple[Problem, ...]) -> Problem:
    assert len(problems) == 1, "\n".join(map(str, problems))
    return problems[0]


class TestWhatIsRead:
    def test_the_least_that_works(self, checked: Check) -> None:
        report = checked(MINIMAL)
        assert (report.errors, report.warnings) == ((), ())
        settings = report.settings
        assert settings is not None
        assert settings.fleet == Fleet(home="lending")
        assert settings.fleet.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
        assert settings.home is settings.database("lending")
        lending = settings.databases["lending"]
        assert lending.url.get_secret_value() == URL
        assert (lending.max_parallel_refreshes, lending.lock_timeout) == (2, timedelta(seconds=5))
        assert {tier.name: (tier.cron, tier.timezone) for tier in lending.tiers.values()} == {
            "five_minutes": ("*/5 * * * *", "UTC"),
            "fifteen_minutes": ("*/15 * * * *", "UTC"),
            "daily": ("0 6 * * *", "UTC"),
        }
        view = lending.views[RelationName("public", "mv_x")]
        assert view == View(name=RelationName("public", "mv_x"), tier="five_minutes")
        assert view.retries == (timedelta(seconds=5), timedelta(seconds=25), timedelta(seconds=125))
        assert (view.statement_timeout, view.max_skip) == (timedelta(minutes=15), timedelta(hours=1))
        assert (view.allow_blocking, view.timezone, view.queue) == (False, None, "refresh")
        assert settings.queues == Queues()
        assert (
            settings.queues.visibility_timeout > settings.queues.time_limit > settings.queues.soft_time_limit
        )

    def test_everything_that_can_be_said(self, checked: Check) -> None:
        report = checked(FULL, {"LENDING_DSN": URL, "UPKEEP_REDIS_URL": f"rediss://:{SECRET}@r.example/1"})
        assert (report.errors, report.warnings) == ((), ())
        settings = report.settings
        assert settings is not None
        assert settings.fleet.redis_url.get_secret_value() == f"rediss://:{SECRET}@r.example/1"
        assert (settings.fleet.keep_skipped, settings.fleet.keep_runs) == (
            timedelta(days=2),
            timedelta(days=30),
        )
        lending, trading = settings.databases["lending"], settings.databases["trading"]
        assert (lending.max_parallel_refreshes, lending.lock_timeout) == (3, timedelta(milliseconds=250))
        assert lending.tiers["five_minutes"].cron == "*/5 * * * *"  # only its zone was changed
        assert lending.tiers["five_minutes"].timezone == "Europe/Berlin"
        assert lending.tiers["daily"].cron == "0 6 * * *"
        assert trading.tiers["daily"].cron == "0 2 * * *"
        assert trading.tiers["nightly"].cron == "@daily"
        view = lending.view("public.mv_x")
        assert view.retries == (timedelta(seconds=1), timedelta(seconds=10))
        assert (view.allow_blocking, view.timezone, view.queue) == (True, "America/New_York", "refresh.slow")
        assert view.max_skip == timedelta(0)
        assert lending.view('"Odd Schema"."Größe ""x"" y"').retries == ()
        assert settings.queues.time_limit == timedelta(hours=3)
        assert settings.queues.max_memory_per_child_kib == 512 * 1024

    @pytest.mark.parametrize(
        ("lines", "delay", "max_wait"),
        [
            ("", timedelta(seconds=1), timedelta(seconds=10)),
            ('delay = "100ms"', timedelta(milliseconds=100), timedelta(seconds=10)),
            ('delay = "20s"', timedelta(seconds=20), timedelta(seconds=200)),
            ('delay = "1m"\nmax_wait = "1m"', timedelta(minutes=1), timedelta(minutes=1)),
        ],
    )
    def test_a_view_waits_for_ten_delays_at_most_unless_it_says_otherwise(
        self, checked: Check, lines: str, delay: timedelta, max_wait: timedelta
    ) -> None:
        settings = checked(f"{MINIMAL}{lines}\n", {"UPKEEP_LENDING_URL": URL}).settings
        assert settings is not None
        (view,) = settings.database("lending").views.values()
        assert (view.delay, view.max_wait) == (delay, max_wait)

    def test_a_hard_limit_follows_the_soft_one(self, checked: Check) -> None:
        settings = checked(MINIMAL + '[queues]\nsoft_time_limit = "3h"').settings
        assert settings is not None
        assert settings.queues.time_limit == timedelta(hours=3, minutes=5)

    @pytest.mark.parametrize(
        "url", [URL, "postgres:///d", f"host=h dbname=d password={SECRET}", "postgresql://a,b:5433/d"]
    )
    def test_urls_that_libpq_takes(self, checked: Check, url: str) -> None:
        settings = checked(MINIMAL, {"UPKEEP_LENDING_URL": url}).settings
        assert settings is not None
        assert settings.databases["lending"].url.get_secret_value() == url

    def test_the_variable_wins_over_the_file(self, checked: Check) -> None:
        text = MINIMAL + '[databases.lending]\nurl = "postgresql://old.example/d"'
        in_file, in_environment = checked(text, {}).settings, checked(text).settings
        assert in_file is not None
        assert in_environment is not None
        assert in_file.databases["lending"].url.get_secret_value() == "postgresql://old.example/d"
        assert in_environment.databases["lending"].url.get_secret_value() == URL

    def test_a_byte_order_mark_and_windows_lines(self, checked: Check) -> None:
        assert checked(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()).settings is not None


class TestOneMistakeOneProblem:
    """Each mistake is one error, with its key, its value, and a remedy."""

    @pytest.mark.parametrize(
        ("text", "key", "value", "said", "remedy"),
        [
            ("[fleet]\nhom = 1", "fleet.hom", "1", "no such key", 'Did you mean "home"?'),
            ("[fleet]\nhome = 'x'", "fleet.home", '"x"', "not a database", "lending"),
            ("[fleet]\nhome = 5", "fleet.home", "5", "not a database", "lending"),
            ("[fleet]\nkeep_runs = '1h'", "fleet.keep_runs", '"1h"', "from 1d", "bounds"),
            ("[fleet]\nredis_url = 'http://x'", "fleet.redis_url", "***", "not a URL of Redis", "redis://"),
            ("[fleet]\nredis_url = 5", "fleet.redis_url", "***", "a URL is text", "quotes"),
            (
                "[fleet]\nredis_url = 'redis://h:x/0'",
                "fleet.redis_url",
                "***",
                "not a URL of Redis",
                "host or port",
            ),
            ("[fleet]\nredis_url = 'redis://h/x'", "fleet.redis_url", "***", "not a URL of Redis", "number"),
            (
                "[fleet]\nredis_url = 'redis:///0'",
                "fleet.redis_url",
                "***",
                "not a URL of Redis",
                "host or port",
            ),
            (
                "[fleet]\nredis_url = 'redis+sentinel://h'",
                "fleet.redis_url",
                "***",
                "not a URL of Redis",
                "mymaster",
            ),
            (
                "[fleet]\nredis_url = 'redis+cluster://h'",
                "fleet.redis_url",
                "***",
                "cannot be a Redis Cluster",
                "redis+sentinel://",
            ),
            ("[fleet]\ncache_url = 'http://h'", "fleet.cache_url", "***", "not a URL of Redis", "redis://"),
            (
                "[fleet]\ncache_url = 'redis+cluster://u:hunter2@h'",
                "fleet.cache_url",
                "redis+cluster://***@h:6379",
                "does not belong in the file",
                "UPKEEP_CACHE_URL",
            ),
            (
                "[fleet]\nredis_url = 'redis://:hunter2@h/0'",
                "fleet.redis_url",
                "redis://***@h:6379/0",
                "does not belong in the file",
                "UPKEEP_REDIS_URL",
            ),
            ("[queue]\nconcurrency = 2", "queue", "{...}", "no such key", 'Did you mean "queues"?'),
            (
                "[views.'public.mv_z']\ntier = 'daily'",
                "views",
                "{...}",
                "no such key",
                "belong to a database",
            ),
            ("[queues]\nconcurrency = 0", "queues.concurrency", "0", "from 1 to 256", "Write one"),
            ("[queues]\nconcurrency = '4'", "queues.concurrency", '"4"', "whole number", "Write one"),
            ("[queues]\nconcurrency = true", "queues.concurrency", "true", "whole number", "Write one"),
            ("[queues]\nconcurrency = 1.5", "queues.concurrency", "1.5", "whole number", "Write one"),
            ("[queues]\ntime_limit = '5m'", "queues.time_limit", '"5m"', "soft_time_limit", "longer"),
            ("[queues]\nsoft_time_limit = 'x'", "queues.soft_time_limit", '"x"', "not a duration", "30s"),
            (
                "[queues]\nsoft_time_limit = '10m'",
                'databases.lending.views."public.mv_x".statement_timeout',
                '"15m"',
                "queues.soft_time_limit = 10m",
                "Raise",
            ),
            (
                "[tiers.five_minutes]\ncron = '0 0 30 2 *'",
                "tiers.five_minutes.cron",
                '"0 0 30 2 *"',
                "never fires",
                "exists",
            ),
            (
                "[tiers.five_minutes]\ncron = '* * *'",
                "tiers.five_minutes.cron",
                '"* * *"',
                "3 fields",
                "five fields",
            ),
            ("[tiers.five_minutes]\ncron = 5", "tiers.five_minutes.cron", "5", "text", "quotes"),
            ("[tiers.nightly]", "tiers.nightly.cron", "", "missing", "Add"),
            (
                "[tiers.Nightly]\ncron = '@daily'",
                "tiers.Nightly",
                "",
                "not a name for a tier",
                "small letter",
            ),
            ("[tiers.daily]\ntimezone = 'Mars'", "tiers.daily.timezone", '"Mars"', "no time zone", "IANA"),
            (
                "[tiers.daily]\ntimezone = 'Europe/Belrin'",
                "tiers.daily.timezone",
                '"Europe/Belrin"',
                "no time",
                "Europe/Berlin",
            ),
            ("[tiers.daily]\ntimezone = 'utc '", "tiers.daily.timezone", '"utc "', "no time zone", ""),
            (
                "[tiers.daily]\ntimezone = 'europe/berlin'",
                "tiers.daily.timezone",
                '"europe/berlin"',
                "no time",
                "Europe/Berlin",
            ),
            ("[tiers.daily]\ntimezone = 'America'", "tiers.daily.timezone", '"America"', "no time zone", ""),
            (
                "[tiers.daily]\ntimezone = '../zone'",
                "tiers.daily.timezone",
                '"../zone"',
                "no time zone",
                "IANA",
            ),
            (
                "[tiers.daily]\ntimezone = 'localtime'",
                "tiers.daily.timezone",
                '"localtime"',
                "no time zone",
                "",
            ),
            ("[tiers.daily]\ntimezone = 2", "tiers.daily.timezone", "2", "text", "quotes"),
            (
                "[databases.lending]\nlock_timeout = 5",
                "databases.lending.lock_timeout",
                "5",
                "no unit",
                "30s",
            ),
            (
                "[databases.lending]\nlock_timeout = '0s'",
                "databases.lending.lock_timeout",
                '"0s"',
                "from 1ms",
                "bounds",
            ),
            (
                "[databases.lending]\nmax_parallel_refreshes = 33",
                "databases.lending.max_parallel_refreshes",
                "33",
                "from 1 to 32",
                "Write",
            ),
            (
                "[databases.lending]\nurl_env = 'NOT_SET'",
                "databases.lending.url_env",
                '"NOT_SET"',
                "NOT_SET is not set",
                "export",
            ),
            (
                "[databases.lending]\nurl_env = 'postgresql://u:hunter2@h/d'",
                "databases.lending.url_env",
                "***",
                "name of a variable",
                "UPKEEP_LENDING_URL",
            ),
            (
                "[databases.lending]\nurl_env = 'UPKEEP_CONFIG'",
                "databases.lending.url_env",
                '"UPKEEP_CONFIG"',
                "of its own",
                "another",
            ),
            (
                "[databases.lending]\nurl = 'postgresql://h/d'\nurl_env = 'X'",
                "databases.lending.url_env",
                "",
                "exclude each other",
                "Keep one",
            ),
            (
                "[databases.lending]\npassword = 'hunter2'",
                "databases.lending.password",
                "***",
                "no such key",
                "Known",
            ),
            ("[databases.lending]\nname = 'x'", "databases.lending.name", '"x"', "no such key", "Known"),
            (
                "[databases.lending.tiers.daily]\ncorn = 'x'",
                "databases.lending.tiers.daily.corn",
                '"x"',
                "no such key",
                '"cron"',
            ),
        ],
    )
    def test_mistake(self, checked: Check, text: str, key: str, value: str, said: str, remedy: str) -> None:
        report = checked(MINIMAL + text)
        assert report.settings is None
        problem = only(report.errors)
        assert (problem.key, problem.value) == (key, value)
        assert said in problem.message
        assert remedy in problem.remedy
        assert problem.remedy

    @pytest.mark.parametrize(
        ("line", "key", "value", "said"),
        [
            ("tier = 'five_minute'", "tier", '"five_minute"', "no such tier"),
            ("tier = 5", "tier", "5", "string"),
            ("statement_timeout = 30", "statement_timeout", "30", "no unit"),
            ("statement_timeout = '0s'", "statement_timeout", '"0s"', "from 1s to 7d"),
            ("retries = '5s'", "retries", '"5s"', "tuple"),
            ("retries = ['5s', 'x']", "retries[1]", '"x"', "not a duration"),
            ("retries = ['5s', ['1s']]", "retries[1]", '["1s"]', "not text"),
            ('retries = ["1s"' + ', "1s"' * 10 + "]", "retries", "", "at most 10"),
            ("allow_blocking = 'yes'", "allow_blocking", '"yes"', "boolean"),
            ("allow_blocking = 1", "allow_blocking", "1", "boolean"),
            ("max_skip = '31d'", "max_skip", '"31d"', "from 0s to 30d"),
            ("timezone = 'Nowhere/Land'", "timezone", '"Nowhere/Land"', "no time zone"),
            ("queue = 'slow'", "queue", '"slow"', "refresh"),
            ("delay = '0s'", "delay", '"0s"', "from 1ms to 1h"),
            ("delay = 1", "delay", "1", "no unit"),
            ("delay = '20s'\nmax_wait = '10s'", "max_wait", '"10s"', "shorter than delay = 20s"),
            ("max_wait = '2d'", "max_wait", '"2d"', "from 1ms to 1d"),
            ("on_write = 1", "on_write", "1", "boolean"),
            ("cascade = 'yes'", "cascade", '"yes"', "boolean"),
            ("invalidates = 'lp'", "invalidates", '"lp"', "tuple"),
            ("invalidates = ['a b']", "invalidates[0]", '"a b"', "a tag is text"),
            ("invalidates = ['lp:{1}']", "invalidates[0]", '"lp:{1}"', "names in its braces"),
            ("invalidates = ['']", "invalidates[0]", '""', "a tag is text"),
            ("teir = 'daily'", "teir", '"daily"', "no such key"),
            ("name = 'public.mv_z'", "name", '"public.mv_z"', "no such key"),
        ],
    )
    def test_mistake_in_a_view(self, checked: Check, line: str, key: str, value: str, said: str) -> None:
        text = '[databases.lending.views."public.mv_x"]\n' + line
        if not line.startswith("tier"):
            text += '\ntier = "daily"'
        problem = only(checked(text).errors)
        assert problem.key == f'databases.lending.views."public.mv_x".{key}'
        assert problem.value.startswith(value)
        assert said in problem.message
        assert problem.remedy

    def test_an_unknown_tier_lists_the_known_ones(self, checked: Check) -> None:
        problem = only(checked('[databases.lending.views."a.b"]\ntier = "five_minute"').errors)
        assert problem.remedy == 'Did you mean "five_minutes"? Known: daily, fifteen_minutes, five_minutes'
        assert str(problem) == (
            'databases.lending.views."a.b".tier = "five_minute": there is no such tier. '
            'Did you mean "five_minutes"? Known: daily, fifteen_minutes, five_minutes.'
        )

    def test_a_tier_with_a_mistake_is_known_all_the_same(self, checked: Check) -> None:
        report = checked('[databases.lending.views."a.b"]\ntier = "x"\n[tiers.x]\ncron = "bad"')
        assert only(report.errors).key == "tiers.x.cron"

    def test_a_tier_of_another_database_is_unknown(self, checked: Check) -> None:
        text = """
        [fleet]
        home = "lending"
        [databases.lending.views."a.b"]
        tier = "own"
        [databases.trading]
        url = "postgresql://h/trading"
        [databases.trading.tiers.own]
        cron = "@daily"
        [databases.trading.views."a.b"]
        tier = "own"
        """
        assert only(checked(text).errors).key == 'databases.lending.views."a.b".tier'

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("mv_x", "schema-qualified"),
            ("a.b.c", "schema-qualified"),
            ("a.b; DROP TABLE x", "schema-qualified"),
            ("", "schema"),
        ],
    )
    def test_names_of_views(self, checked: Check, name: str, said: str) -> None:
        problem = only(checked(f'[databases.lending.views."{name}"]\ntier = "daily"').errors)
        assert problem.key.startswith("databases.lending.views.")
        assert said in problem.message
        assert problem.remedy

    def test_a_name_that_was_not_quoted(self, checked: Check) -> None:
        problem = only(checked('[databases.lending.views.public.mv_x]\ntier = "daily"').errors)
        assert problem.key == "databases.lending.views.public"
        assert '[databases.lending.views."public.mv_x"]' in problem.remedy

    def test_one_view_under_two_names(self, checked: Check) -> None:
        text = """
        [databases.lending.views."public.MV_x"]
        tier = "daily"
        [databases.lending.views.'"public"."mv_x"']
        tier = "daily"
        """
        problem = only(checked(text).errors)
        assert "the same view as" in problem.message
        assert "public.MV_x" in problem.message

    @pytest.mark.parametrize("name", ["Lending", "1st", "a-b", "a" * 32, "größe", "a b"])
    def test_names_of_databases(self, checked: Check, name: str) -> None:
        text = f'[databases."{name}"]\nurl = "postgresql://h/d"\nviews."a.b".tier = "daily"'
        assert "not a name for a database" in only(checked(text).errors).message

    @pytest.mark.parametrize("text", ["", "[databases]", "[fleet]\n[queues]"])
    def test_no_database(self, checked: Check, text: str) -> None:
        assert only(checked(text).errors).key == "databases"

    def test_several_databases_and_no_home(self, checked: Check) -> None:
        text = MINIMAL + "[databases.trading]\nurl = 'postgresql://h/t'"
        problem = only(checked(text).errors)
        assert (problem.key, problem.value) == ("fleet.home", "")
        assert "lending, trading" in problem.remedy

    @pytest.mark.parametrize("section", ["fleet", "databases", "tiers", "queues"])
    def test_a_section_that_is_no_table(self, checked: Check, section: str) -> None:
        report = checked(f"{section} = 5\n" + (MINIMAL if section != "databases" else ""))
        assert report.errors[0].key == section
        assert "must be a table" in report.errors[0].message

    def test_a_database_whose_variable_is_taken(self, checked: Check) -> None:
        problem = only(checked('[databases.redis.views."a.b"]\ntier = "daily"', {}).errors)
        assert (problem.key, problem.value) == ("databases.redis.url_env", '"UPKEEP_REDIS_URL"')


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            (f"mysql://u:{SECRET}@h/d", "scheme mysql://"),
            (f"postgresql+psycopg://u:{SECRET}@h/d", "scheme postgresql+psycopg://"),
            (f"postgresql://u:{SECRET}@h:99999/d", "port"),
            (f"postgresql://u:{SECRET}@h:port/d", "port"),
            (f"postgresql://u:{SECRET}@h/d?nonsense={SECRET}", "URI query parameter"),
            (f"postgresql://u:{SECRET}@[h/d", "not a connection string"),
            (f"hots=h password={SECRET}", "invalid connection option"),
            (f"{SECRET}", "missing"),
            (f"password='{SECRET}", "unterminated quoted string"),
            (f'password="{SECRET} "x" y', "missing"),
            ("   ", "empty"),
        ],
    )
    def test_refused_without_being_quoted(self, checked: Check, url: str, said: str) -> None:
        problem = only(checked(MINIMAL, {"UPKEEP_LENDING_URL": url}).errors)
        assert (problem.key, problem.value) == ("UPKEEP_LENDING_URL", "***")
        assert said in problem.message
        assert "postgresql://" in problem.remedy

    @pytest.mark.parametrize("environ", [{}, {"UPKEEP_LENDING_URL": ""}])
    def test_no_url_at_all(self, checked: Check, environ: dict[str, str]) -> None:
        problem = only(checked(MINIMAL, environ).errors)
        assert (problem.key, problem.value) == ("databases.lending.url_env", '"UPKEEP_LENDING_URL"')
        assert "UPKEEP_LENDING_URL is" in problem.message
        assert "export UPKEEP_LENDING_URL=" in problem.remedy

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://u:{SECRET}@h/d",
            f"host=h password={SECRET}",
            f"postgresql://h/d?password={SECRET}",
            f"host=h sslpassword={SECRET}",
        ],
    )
    def test_a_password_in_the_file(self, checked: Check, url: str) -> None:
        problem = only(checked(MINIMAL + f'[databases.lending]\nurl = "{url}"', {}).errors)
        assert problem.key == "databases.lending.url"
        assert "host=h" in problem.value
        assert "does not belong in the file" in problem.message
        assert "UPKEEP_LENDING_URL" in problem.remedy

    def test_a_bad_redis_url_in_the_environment(self, checked: Check) -> None:
        problem = only(checked(MINIMAL, {**ENVIRON, "UPKEEP_REDIS_URL": f"reddis://:{SECRET}@h"}).errors)
        assert (problem.key, problem.value) == ("UPKEEP_REDIS_URL", "***")


class TestWarnings:
    def test_a_declared_tier_that_nobody_uses(self, checked: Check) -> None:
        nightly, daily = (
            "[tiers.nightly]\ncron = '@daily'",
            "[databases.lending.tiers.daily]\ncron = '@daily'",
        )
        report = checked(f"{MINIMAL}{nightly}\n{daily}")
        assert [warning.key for warning in report.warnings] == [
            "databases.lending.tiers.daily",
            "tiers.nightly",
        ]
        assert report.settings is not None

    def test_a_timeout_longer_than_the_tier(self, checked: Check) -> None:
        text = '[databases.lending.views."a.b"]\ntier = "five_minutes"\nstatement_timeout = "6m"'
        warning = only(checked(text).warnings)
        assert warning.key == 'databases.lending.views."a.b".statement_timeout'
        assert "due every 5m" in warning.message

    def test_the_default_timeout_is_nobodys_mistake(self, checked: Check) -> None:
        assert checked(MINIMAL).warnings == ()

    def test_a_database_without_views(self, checked: Check) -> None:
        assert only(checked("[databases.lending]").warnings).key == "databases.lending.views"

    def test_one_database_under_two_names(self, checked: Check) -> None:
        text = """
        [fleet]
        home = "lending"
        [databases.lending.views."a.b"]
        tier = "daily"
        [databases.copy]
        url = "host=db.example port=5432 dbname=lending user=other"
        [databases.copy.views."a.b"]
        tier = "daily"
        """
        warning = only(checked(text).warnings)
        assert warning.key == "databases.copy.url"
        assert "lending" in warning.message

    def test_warnings_come_with_errors(self, checked: Check) -> None:
        report = checked("[databases.lending]\nx = 1")
        assert len(report.errors) == len(report.warnings) == 1


def test_all_mistakes_are_reported_together(checked: Check) -> None:
    text = """
    view = 1
    [fleet]
    home = "lnding"
    [tiers.x]
    cron = "60 * * * *"
    [databases.lending]
    lock_timeout = 5
    [databases.lending.views."public.mv_x"]
    tier = "five_minute"
    retries = ["5s", 3, "x"]
    queue = "slow"
    [databases.lending.views.mv_y]
    timezone = "Mars"
    [queues]
    concurrency = 0
    """
    assert [problem.key for problem in checked(text, {}).errors] == [
        "view",
        "fleet.home",
        "queues.concurrency",
        "tiers.x.cron",
        'databases.lending.views."public.mv_x".tier',
        'databases.lending.views."public.mv_x".retries[1]',
        'databases.lending.views."public.mv_x".retries[2]',
        'databases.lending.views."public.mv_x".queue',
        "databases.lending.views.mv_y",
        "databases.lending.views.mv_y.tier",
        "databases.lending.views.mv_y.timezone",
        "databases.lending.url_env",
        "databases.lending.lock_timeout",
    ]


class TestFiles:
    def test_syntax_errors_have_line_and_column(self, checked: Check) -> None:
        problem = only(checked("[fleet]\nhome = lending").errors)
        assert "line 2, column 8" in problem.message

    def test_not_text(self, checked: Check) -> None:
        assert "not UTF-8" in only(checked(b"\xff\xfe\x00").errors).message

    def test_not_there(self, tmp_path: Path) -> None:
        assert "no such file" in only(check(tmp_path / "nothing.toml", {}).errors).message
        assert "cannot be read" in only(check(tmp_path, {}).errors).message
        environ = {"UPKEEP_CONFIG": str(tmp_path / "nothing.toml")}
        assert "no such file" in only(check(None, environ).errors).message

    def test_the_order_of_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def write(path: Path, tasks: int) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(MINIMAL + f"[queues]\nconcurrency = {tasks}")
            return path

        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        environ = {**ENVIRON, "HOME": str(tmp_path / "home")}
        problem = only(check(None, environ).errors)
        assert problem.key == "upkeep.toml"
        assert "home" in problem.message
        write(tmp_path / "home" / ".config" / "upkeep" / "upkeep.toml", 5)
        assert load(None, environ).queues.concurrency == 5
        write(tmp_path / "xdg" / "upkeep" / "upkeep.toml", 4)
        environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
        assert load(None, environ).queues.concurrency == 4
        write(tmp_path / "here" / "upkeep.toml", 3)
        assert load(None, environ).queues.concurrency == 3
        environ["UPKEEP_CONFIG"] = str(write(tmp_path / "named.toml", 2))
        assert load(None, environ).queues.concurrency == 2
        given = write(tmp_path / "given.toml", 1)
        assert load(given, environ).queues.concurrency == 1
        assert load(given, environ).path == given

    def test_the_environment_of_the_process_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "upkeep.toml").write_text(MINIMAL)
        monkeypatch.setenv("UPKEEP_CONFIG", str(tmp_path / "upkeep.toml"))
        monkeypatch.setenv("UPKEEP_LENDING_URL", URL)
        assert load().databases["lending"].url.get_secret_value() == URL


def test_load_refuses_with_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "upkeep.toml"
    path.write_text(MINIMAL + "[queues]\nconcurrency = 0\nx = 1")
    with pytest.raises(ConfigurationError) as caught:
        load(path, {})
    error = caught.value
    assert isinstance(error, ConfigurationErrors)
    assert len(error.problems) == 3
    first, *lines = str(error).splitlines()
    assert first == f"{path} has 3 errors:"
    assert [line.strip() for line in lines] == [str(problem) for problem in error.problems]
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, str(again)) == (error.problems, str(error))


class TestSettingsAsObjects:
    @pytest.fixture
    def settings(self, checked: Check) -> Settings:
        environ = {"LENDING_DSN": URL, "UPKEEP_REDIS_URL": f"redis://:{SECRET}@h/0"}
        settings = checked(FULL, environ).settings
        assert settings is not None
        return settings

    def test_no_secret_in_any_form_of_text(self, settings: Settings) -> None:
        for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
            assert SECRET not in shown

    def test_frozen(self, settings: Settings) -> None:
        with pytest.raises(ValidationError):
            settings.fleet.home = "trading"  # type: ignore[misc]
        with pytest.raises(ValidationError):
            settings.databases["lending"].views[RelationName("public", "mv_x")].tier = "daily"  # type: ignore[misc]

    def test_look_ups_that_fail_name_what_there_is(self, settings: Settings) -> None:
        lending = settings.database("lending")
        with pytest.raises(PermanentError, match=r"lendin.*Did you mean"):
            settings.database("lendin")
        with pytest.raises(PermanentError, match="There is no database named 5"):
            settings.database(5)
        with pytest.raises(PermanentError, match="There is no tier of the database lending named"):
            lending.tier("hourly")
        with pytest.raises(PermanentError, match=r"public.mv_xx is not managed.*Did you mean public.mv_x"):
            lending.view("public.mv_xx")
        with pytest.raises(PermanentError, match="schema-qualified"):
            lending.view("x; DROP TABLE y")
        with pytest.raises(PermanentError):
            lending.view(None)
        with pytest.raises(PermanentError, match=r"…"):
            settings.database("x" * 10_000)

    def test_views_of_a_tier_in_order(self) -> None:
        names = [RelationName("b", "x"), RelationName("a", "y"), RelationName("a", "x")]
        database = Database(
            name="d", url=SecretStr(URL), views={name: View(name=name, tier="daily") for name in names}
        )
        assert [view.name for view in database.views_in("daily")] == sorted(names)
        assert database.views_in("five_minutes") == ()

    def test_made_directly_they_are_validated_too(self) -> None:
        with pytest.raises(ValidationError, match="never fires"):
            Tier(name="x", cron="0 0 30 2 *")
        with pytest.raises(ValidationError) as caught:
            Fleet(home="x", redis_url=SECRET, keep_runs="1h")  # type: ignore[arg-type]
        assert SECRET not in str(caught.value)

    def test_defaults_are_not_shared(self) -> None:
        one, other = (Database(name=name, url=SecretStr(URL)) for name in ("a", "b"))
        assert one.tiers == other.tiers
        assert one.tiers is not other.tiers


def test_whatever_is_written_is_judged(checked: Check) -> None:
    """Any value anywhere, replaced by junk: never an exception, never a secret, always errors or settings."""
    rng = random.Random(4)
    junk: list[Any] = [
        *(0, -1, 1.5, float("nan"), 10**30, True, date(2026, 1, 1)),
        *("", "x", "\x00", "a" * 500, f"postgresql://u:{SECRET}@h/d", f"password={SECRET}"),
        *([], ["x", {}], {}, {"x": {"y": 1}}, {"": ""}),
    ]
    document = tomllib.loads(FULL)

    def places(table: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = []
        for key, value in table.items():
            found.append((*path, key))
            if isinstance(value, dict):
                found += places(value, (*path, key))
        return found

    everywhere = places(document)
    environ = {"LENDING_DSN": URL}
    for _ in range(600):
        changed = copy.deepcopy(document)
        for place in rng.sample(everywhere, rng.randrange(1, 4)):
            table: Any = changed
            for key in place[:-1]:
                table = table.get(key, {}) if isinstance(table, dict) else {}
            if isinstance(table, dict):
                if rng.random() < 0.3:
                    key = rng.choice(["tier", "cron", "url", "x", "views", "Größe", "password"])
                    table[key] = rng.choice(junk)
                else:
                    table[place[-1]] = rng.choice(junk)
        report = Reader(environ).read(changed, None)
        assert (report.settings is None) == bool(report.errors)
        for problem in (*report.errors, *report.warnings):
            assert SECRET not in str(problem), changed
            assert problem.key
            assert problem.message
            assert problem.remedy
            assert len(problem.value) <= 80
