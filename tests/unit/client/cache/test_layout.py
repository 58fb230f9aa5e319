from datetime import timedelta

import pytest
from redis.crc import key_slot

from upkeep_client import InvalidRequest
from upkeep_client.cache.layout import Layout, Tag, fill, names

VALUES = ["42", "a}b", "}", "{", "{}", "%", "ü", " ", "a:b", "}{", "x" * 500]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("template", ["lp:{id}", "{id}", "{id}:{id}", "a{id}b"])
def test_all_keys_of_a_tag_are_in_one_slot(template, value):
    layout, tag = Layout(), Tag(template, ttl=1, id=value)
    slots = {
        key_slot(key.encode())
        for key in (layout.tag(tag.concrete), layout.dying(tag.concrete), layout.generation(tag.concrete))
    }
    assert len(slots) == 1


def test_different_values_are_different_tags():
    found = [fill("lp:{id}", {"id": value}) for value in VALUES]
    assert len(set(found)) == len(VALUES)
    assert fill("lp:{id}", {"id": "a}b"}) == "lp:a%7Db"
    assert fill("lp:{id}", {"id": "a%7Db"}) != fill("lp:{id}", {"id": "a}b"})


@pytest.mark.parametrize(
    ("template", "found"),
    [("dashboard", ()), ("lp:{id}", ("id",)), ("{a}:{b}:{a}", ("a", "b")), ("{_x1}", ("_x1",))],
)
def test_names_of_a_template(template, found):
    assert names(template) == found


@pytest.mark.parametrize(
    "template", ["", "lp:{}", "lp:{1}", "lp:{", "}", "a b", "a\n", "x" * 201, None, 3, "{a-b}"]
)
def test_what_is_no_template_is_refused(template):
    with pytest.raises(InvalidRequest):
        names(template)


@pytest.mark.parametrize(
    ("template", "parameters"),
    [("lp:{id}", {}), ("lp:{id}", {"id": None}), ("lp:{id}", {"id": True}), ("lp:{id}", {"id": 1, "x": 2}),
     ("dashboard", {"id": 1}), ("{id}", {"id": ""})],
)  # fmt: skip
def test_a_tag_takes_exactly_its_parameters(template, parameters):
    with pytest.raises(InvalidRequest):
        Tag(template, ttl=1, **parameters)


@pytest.mark.parametrize("ttl", [0, -1, 0.0001, True, "60", None, float("nan"), float("inf"), timedelta(0)])
def test_a_ttl_is_a_time(ttl):
    with pytest.raises(InvalidRequest):
        Tag("dashboard", ttl=ttl)


def test_a_ttl_may_be_a_timedelta():
    assert Tag("dashboard", ttl=timedelta(minutes=5)).ttl_ms == Tag("dashboard", ttl=300).ttl_ms == 300_000


@pytest.mark.parametrize("prefix", ["", "a{b", "a}", "a b", 3])
def test_a_prefix_without_braces(prefix):
    with pytest.raises(InvalidRequest):
        Layout(prefix)
