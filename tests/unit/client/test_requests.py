import json
import logging
import time

import pytest

from upkeep_client import MARK_SCRIPT, InvalidRequest, requests
from upkeep_client.requests import MAX_BYTES, MAX_KEYS, Request, bodies, merge, plain_body, prepare


def sent(*wanted: Request) -> list[dict[str, object]]:
    return [json.loads(body) for body in bodies(wanted)]


def test_a_view_without_anything_else_is_a_request_for_all_of_it():
    assert sent(*prepare("public.v")) == [
        {"database": "", "requests": [{"view": "public.v", "keys": None, "parameters": None}]}
    ]


def test_several_views_of_one_database_are_one_body_each_once():
    (body,) = sent(*prepare(["public.a", "public.b", "public.a"], database="shop"))
    assert body["database"] == "shop"
    assert [each["view"] for each in body["requests"]] == ["public.a", "public.b"]


def test_keys_and_parameters_are_encoded_as_the_sets_hold_them():
    (body,) = sent(*prepare("public.v", keys=["a", 1, "1", 'quote"', "ü"], parameters={"z": "x", "id": 42}))
    (request,) = body["requests"]
    assert request["keys"] == ['"a"', "1", '"1"', '"quote\\""', '"ü"']
    assert request["parameters"] == ['{"id":42,"z":"x"}']


def test_the_body_that_is_kept_is_the_one_that_would_be_made():
    assert plain_body("public.v", "shop") == bodies(prepare("public.v", database="shop"))[0]
    assert plain_body("public.v", None) == bodies(prepare("public.v"))[0]


@pytest.mark.parametrize("keys", [[], iter(()), set()])
def test_no_keys_at_all_are_all_of_them(keys):
    assert prepare("public.v", keys=keys, parameters={})[0] == Request("public.v")


@pytest.mark.parametrize(
    "view",
    [None, 7, b"public.v", ["public.v", None], [b"public.v"], {"public.v": 1}, object()],
)
def test_a_view_of_a_wrong_type_is_the_callers_mistake(view):
    with pytest.raises(InvalidRequest) as caught:
        prepare(view)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("view", ["", [], [""], "v" * 256, "public.\0", "public.\ud800", ["a.b", "x" * 300]])
def test_a_view_of_a_wrong_value_is_the_callers_mistake(view):
    with pytest.raises(InvalidRequest):
        prepare(view)


def test_the_longest_name_is_one():
    assert prepare("v" * 255)[0].view == "v" * 255


@pytest.mark.parametrize("database", ["", 3, "a:b", "redis://host", "d" * 256, "\0", "\udfff"])
def test_a_wrong_database_is_the_callers_mistake(database):
    with pytest.raises(InvalidRequest):
        prepare("public.v", database=database)


@pytest.mark.parametrize(
    "keys",
    ["abc", b"abc", 5, {"a": 1}, [None], [1.5], [True], [b"a"], [("a",)], [2**63], ["\0"], ["\ud800"]],
)
def test_wrong_keys_are_the_callers_mistake(keys):
    with pytest.raises(InvalidRequest):
        prepare("public.v", keys=keys)


def test_several_sets_of_parameters_are_one_request():
    (body,) = sent(*prepare("public.v", parameters=[{"id": 1}, {"id": 2}, {"id": 1}]))
    assert body["requests"] == [{"view": "public.v", "keys": None, "parameters": ['{"id":1}', '{"id":2}']}]


@pytest.mark.parametrize("parameters", [[], [{}], [{"id": 1}, {}], [{"id": n} for n in range(10_001)]])
def test_one_set_that_is_empty_and_too_many_of_them_mean_everything(parameters):
    assert prepare("public.v", parameters=parameters)[0] == Request("public.v")


@pytest.mark.parametrize(
    "parameters",
    [
        [("id", 1)],
        "id",
        {1: 2},
        {"id": None},
        {"id": [1]},
        {"id": {"a": 1}},
        {"id": 1.0},
        {"id": False},
        {"i d": 1},
        {"1d": 1},
        {"": 1},
        {"id\n": 1},
        {"id": "\0"},
        {"id": -(2**63) - 1},
    ],
)
def test_wrong_parameters_are_the_callers_mistake(parameters):
    with pytest.raises(InvalidRequest):
        prepare("public.v", parameters=parameters)


def test_a_mistake_is_told_without_its_value():
    with pytest.raises(InvalidRequest) as caught:
        prepare("public.v", parameters={"token": ["secret"]})
    assert "secret" not in str(caught.value)
    assert "token" in str(caught.value)


@pytest.mark.parametrize(
    "keys", [range(MAX_KEYS + 1), ["x" * (MAX_BYTES + 1)], ["x" * 1000 + str(n) for n in range(1100)]]
)
def test_too_many_keys_are_all_of_them_and_said(caplog, keys):
    (body,) = sent(*prepare("public.v", keys=keys, parameters={"id": 1}))
    assert body["requests"] == [{"view": "public.v", "keys": None, "parameters": ['{"id":1}']}]
    assert "for all keys instead" in caplog.text


def test_as_many_keys_as_there_may_be_are_sent(caplog):
    (body,) = sent(*prepare("public.v", keys=range(MAX_KEYS)))
    assert len(body["requests"][0]["keys"]) == MAX_KEYS
    assert not caplog.records


def test_the_limit_counts_for_all_views_of_a_call_together(caplog):
    (body,) = sent(*prepare(["public.a", "public.b"], keys=range(MAX_KEYS - 1)))
    first, second = body["requests"]
    assert len(first["keys"]) == MAX_KEYS - 1
    assert second["keys"] is None
    assert len(caplog.records) == 1


def test_ten_megabytes_of_keys_are_dealt_with_at_once(caplog):
    keys = [f"{n:010}" for n in range(1_000_000)]
    started = time.thread_time()
    bodies(prepare("public.v", keys=keys))
    assert time.thread_time() - started < 0.1
    assert "for all keys instead" in caplog.text


def test_merged_requests_want_all_that_any_of_them_wants():
    merged = merge(
        [
            *prepare("public.a", keys=[1, 2]),
            *prepare("public.b", keys=[1]),
            *prepare("public.a", keys=[2, 3], parameters={"id": 1}),
            *prepare("public.b"),
            *prepare("public.a", database="other", parameters={"id": 1}),
            *prepare("public.a", database="other", parameters={"id": 2}),
        ]
    )
    assert merged == [
        Request("public.a", "", ("1", "2", "3"), None),
        Request("public.b"),
        Request("public.a", "other", None, ('{"id":1}', '{"id":2}')),
    ]


def test_merged_keys_that_become_too_many_are_all_of_them(caplog):
    caplog.set_level(logging.WARNING, "upkeep_client")
    (merged,) = merge(
        [*prepare("public.v", keys=range(6000)), *prepare("public.v", keys=range(6000, 12_000))]
    )
    assert merged.keys is None
    assert len(caplog.records) == 1


def test_requests_of_two_databases_are_two_bodies():
    found = sent(Request("public.v", "a"), Request("public.v", "b"), Request("public.w", "a"))
    assert [(each["database"], len(each["requests"])) for each in found] == [("a", 2), ("b", 1)]


def test_the_limits_are_those_of_the_script():
    assert f"LARGEST_SET = {requests.MAX_KEYS} " in MARK_SCRIPT
