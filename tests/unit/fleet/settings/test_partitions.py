"""Policies of partitioned tables and of retention, as upkeep.toml declares them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.settings import Problem, Report, Settings, check
from fleet.settings.partitions import DEFAULT_PATTERNS, PartitionSet, Retention, fields_of
from fleet.spans import Span

ENVIRON = {"UPKEEP_BANK_URL": "postgresql://h/bank"}
NAME = RelationName("public", "t")
HEAD = '[databases.bank.partitions."public.t"]\n'
KEEPS = '[databases.bank.retention."public.t"]\n'

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


def test_the_least_that_works(checked: Check) -> None:
    report = checked(HEAD)
    assert report.warnings == ()
    policy = kept(report).database("bank").partition_set("public.t")
    assert (policy.name, policy.column, policy.interval, policy.timezone) == (NAME, None, "month", "UTC")
    assert (policy.hot, policy.warm, policy.cold) == (Span(months=13), Span(months=36), Span(months=84))
    assert (policy.premake, policy.partition_name) == (3, "{table}_y{year}m{month}")
    assert (policy.default, policy.archive, policy.archive_schema) == ("none", "schema", "archive")
    assert (policy.subpartitions, policy.hold, policy.legal_holds, policy.companions) == (None, None, (), ())
    assert policy.lock_budget == timedelta(milliseconds=200)


def test_everything_that_can_be_said(checked: Check) -> None:
    report = checked(
        HEAD
        + """
        column = "id"
        interval = "quarter"
        timezone = "America/Sao_Paulo"
        epoch = "milliseconds"
        epoch_start = 2015-01-01
        epoch_shift = 22
        premake = 2
        partition_name = "tx_{year}_{quarter}"
        subpartitions = { columns = ["transaction_id"], count = 8 }
        default = "drain"
        tablespace = "fast"
        storage_parameters = { fillfactor = 90, autovacuum_enabled = true }
        archive = "schema"
        archive_schema = "warm"
        archive_tablespace = "slow"
        hot = "1 year"
        warm = "12 quarters"
        cold = "7 years"
        hold = "status = 'pending'"
        legal_holds = [{ from = 2024-01-01, to = 2024-02-01, reason = "case 4711" }]
        companions = ["public.meta", "audit.log"]
        lock_budget = "100ms"
        """
    )
    assert report.warnings == ()
    policy = kept(report).database("bank").partition_set(NAME)
    assert policy.subpartitions is not None
    assert (policy.subpartitions.columns, policy.subpartitions.count) == (("transaction_id",), 8)
    assert (policy.epoch, policy.epoch_start, policy.epoch_shift) == ("milliseconds", date(2015, 1, 1), 22)
    (hold,) = policy.legal_holds
    assert (hold.from_, hold.to, hold.reason) == (date(2024, 1, 1), date(2024, 2, 1), "case 4711")
    assert policy.companions == (RelationName("public", "meta"), RelationName("audit", "log"))
    assert (policy.warm, policy.lock_budget) == (Span(months=36), timedelta(milliseconds=100))


@pytest.mark.parametrize("interval", DEFAULT_PATTERNS)
def test_every_interval_has_names_of_its_own(interval: str) -> None:
    policy = PartitionSet.model_validate({"name": NAME, "interval": interval, "hot": "3 years"})
    assert policy.partition_name == DEFAULT_PATTERNS[interval]


@pytest.mark.parametrize(
    ("said", "key", "message", "remedy"),
    [
        ("premake = 0", "premake", "whole number from 1", "Write"),
        ("premake = true", "premake", "whole number", "Write"),
        ("premake = 14", "hot", "shorter than premake = 14 months", "smaller premake"),
        ('hot = "2 months"', "hot", "shorter than premake", "longer"),
        ('hot = "37 months"', "warm", "warm before they are hot no longer", "37 months"),
        ('warm = "85 months"', "cold", "cold before they are warm", "85 months"),
        ('hot = "a while"', "hot", "no span", "13 months"),
        ("hot = 13", "hot", "no span", "13 months"),
        ('interval = "fortnight"', "interval", "", ""),
        ('timezone = "Europe/Berln"', "timezone", "no time zone", "Europe/Berlin"),
        ('epoch = "minutes"', "epoch", "", ""),
        ("epoch_shift = 22", "epoch_shift", "no number", "milliseconds"),
        ("epoch_start = 2015-01-01T00:00:00Z", "epoch_start", "not a date", "without quotes"),
        ('partition_name = "{table}_{year}"', "partition_name", "share names", "{month}"),
        ('partition_name = "{table}_{year}{month}{hour}"', "partition_name", "{hour}", "{iso_year}"),
        ('partition_name = "{table_{year}{month}"', "partition_name", "braces", ""),
        ('partition_name = "{year}{month}}"', "partition_name", "braces", ""),
        ("partition_name = 5", "partition_name", "is text", "quotes"),
        (f'partition_name = "{"x" * 130}{{year}}{{month}}"', "partition_name", "no name", "shorter"),
        ('subpartitions = { columns = ["a"], count = 1 }', "subpartitions.count", "whole number from 2", ""),
        ("subpartitions = { columns = [], count = 8 }", "subpartitions.columns", "", ""),
        ('default = "keep"', "default", "", ""),
        ('hold = ""', "hold", "empty", "condition"),
        (
            'legal_holds = [{ from = 2024-02-01, to = 2024-02-01, reason = "x" }]',
            "legal_holds[0].to",
            "ends before",
            "day after",
        ),
        ("legal_holds = [{ from = 2024-01-01, to = 2024-02-01 }]", "legal_holds[0].reason", "", ""),
        ('companions = ["meta"]', "companions[0]", "schema-qualified", "schema.view"),
        ('companions = ["public.t"]', "companions", "the table itself", "Take it out"),
        ('lock_budget = "10s"', "lock_budget", "from 10ms to 5s", ""),
        ('archive_schema = "public"', "archive_schema", "kept itself", "another"),
        ("premaek = 3", "premaek", "", "premake"),
    ],
)
def test_refused_with_the_key_and_a_remedy(
    checked: Check, said: str, key: str, message: str, remedy: str
) -> None:
    problem = only(checked(HEAD + said + "\n").errors)
    assert problem.key.startswith('databases.bank.partitions."public.t"')
    assert key.rsplit(".", maxsplit=1)[-1].split("[", maxsplit=1)[0] in problem.key, problem.key
    assert message in problem.message, problem
    assert remedy in problem.remedy, problem


def test_a_name_without_its_quotes(checked: Check) -> None:
    problem = only(checked("[databases.bank.partitions.public.t]\npremake = 3\n").errors)
    assert 'databases.bank.partitions."public.t"' in problem.remedy


def test_two_archives_in_one_place(checked: Check) -> None:
    other = HEAD.replace("public.t", "audit.t")
    problem = only(checked(HEAD + other).errors)
    assert "public.t has its archive in archive.t too" in problem.message
    assert checked(HEAD + other + 'archive = "none"\n').errors == ()


def test_an_archive_that_is_another_table_with_a_policy(checked: Check) -> None:
    other = HEAD.replace("public.t", "archive.t") + 'archive = "none"\n'
    assert "archive.t, a table that is kept itself" in only(checked(other + HEAD).errors).message


def test_a_tablespace_for_nothing(checked: Check) -> None:
    report = checked(HEAD + 'archive = "none"\narchive_tablespace = "slow"\n')
    assert "nothing is archived" in only(report.warnings).message


def test_the_same_table_twice(checked: Check) -> None:
    problem = only(
        checked(HEAD + '[databases.bank.partitions.\'"public"."t"\']\n' + 'archive = "none"\n').errors
    )
    assert "same table" in problem.message


def test_an_unknown_policy(checked: Check) -> None:
    with pytest.raises(PermanentError, match=r"public\.tt") as raised:
        kept(checked(HEAD)).database("bank").partition_set("public.tt")
    assert "public.t" in raised.value.remedy


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [("{table}_y{year}", ["table", "year"]), ("plain", []), ("", []), ("{a}{b}c", ["a", "b"])],
)
def test_the_fields_of_a_pattern(pattern: str, fields: list[str]) -> None:
    assert fields_of(pattern) == fields


@pytest.mark.parametrize("pattern", ["{", "}", "{a", "a}", "{a}}", "{{a}", "{a{b}}"])
def test_braces_that_do_not_match(pattern: str) -> None:
    with pytest.raises(ValueError):
        fields_of(pattern)


class TestRetention:
    RULE = KEEPS + 'years = 7\narchive_after_months = 13\nframework = "SOX"\n'

    def test_a_rule_that_the_policy_keeps(self, checked: Check) -> None:
        report = checked(HEAD + self.RULE)
        assert report.warnings == ()
        assert kept(report).database("bank").retention[NAME] == Retention(
            name=NAME, years=7, archive_after_months=13, framework="SOX"
        )

    def test_nobody_enforces_it(self, checked: Check) -> None:
        assert any("nothing enforces this" in each.message for each in checked(self.RULE).warnings)

    @pytest.mark.parametrize(
        ("policy", "rule", "message", "remedy"),
        [
            ('cold = "6 years"', "", "SOX wants 7 years", 'cold = "7 years"'),
            ('hot = "12 months"', "", "archives after 1 year", 'hot = "13 months"'),
            (
                "",
                ("archive_after_months = 13", "archive_after_months = 85"),
                "later than they may be kept",
                "84",
            ),
            ("", ("years = 7", "years = 0"), "whole number from 1", ""),
            ("", ('framework = "SOX"', 'framework = ""'), "empty", ""),
        ],
    )
    def test_contradictions(
        self, checked: Check, policy: str, rule: tuple[str, str] | str, message: str, remedy: str
    ) -> None:
        text = self.RULE.replace(*rule) if rule else self.RULE
        problems = checked(f"{HEAD}{policy}\n{text}").errors
        assert any(message in each.message and remedy in each.remedy for each in problems), problems

    def test_kept_longer_than_it_must_be(self, checked: Check) -> None:
        report = checked(HEAD + 'cold = "10 years"\n' + self.RULE)
        assert "longer than SOX asks for" in only(report.warnings).message
