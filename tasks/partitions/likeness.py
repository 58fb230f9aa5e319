"""What a new partition should be, by what another one of its set is: decided here, without a database.

`liken` gives its shape, from which `statements` makes it; `differences` says what of that is still missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.settings import HashSubpartitions, PartitionSet
from tasks.partitions.naming import Names
from tasks.partitions.shape import (
    NOT_VALID,
    PARTITIONED,
    Column,
    Constraint,
    Index,
    Policy,
    Publication,
    Shape,
    Statistics,
    Trigger,
    split,
)

# The CHECK that spares ATTACH its scan, for as long as the transaction lasts.
BOUND_CHECK = "upkeep_bound"
# From here on partitions of an identity column have its identity, and none may bring one along.
IDENTITY_IS_INHERITED = 170_000
_MODULUS = re.compile(r"modulus (\d+), remainder (\d+)")


def liken(
    pattern: Shape,
    name: RelationName,
    *,
    policy: PartitionSet,
    control: str,
    version: int,
    references: Mapping[int, RelationName],
    first: bool = False,
    default: bool = False,
) -> Shape:
    """What a new partition should be: as `pattern`, and as the policy says otherwise.

    `references`: for each partition of another set that a foreign key of the pattern refers to, that of the new range.
    `first`: there is no sibling, the pattern is the parent itself: what ATTACH brings along is left to it, and what is
    the parent's own stays the parent's. `default`: a default partition, which is not divided.

    Raises:
        PermanentError: the pattern is divided in a way that fits no other range.
    """
    if first:
        pattern = _plain(pattern)
    elif default and pattern.kind == PARTITIONED:
        pattern = _leaf(pattern)
    names = Names(((pattern.name.name, name.name),))
    if policy.subpartitions is not None and not default:
        pattern = _divided(pattern, policy.subpartitions)
    made = _renamed(pattern, name, names, control=control, version=version, references=references)
    return _with_policy(made, policy)


def refuse_incomplete(shape: Shape) -> None:
    """Stop where some hash values would find no place: rows would be refused.

    Raises:
        PermanentError: a remainder is missing.
    """
    covered = Fraction(0)
    for bound, child in shape.children:
        refuse_incomplete(child)
        if found := _MODULUS.search(bound):
            covered += Fraction(1, int(found[1]))
    if shape.partition_key.startswith("HASH") and covered != 1:
        raise PermanentError(
            f"{shape.name} would have no place for {float(1 - covered):.0%} of the hash values of its rows, "
            "as the partition that it is made like",
            remedy="Add the missing remainders to that one (CREATE TABLE … PARTITION OF … FOR VALUES WITH "
            "(MODULUS …, REMAINDER …)), or say subpartitions = … in the policy",
        )


def differences(wanted: Shape, found: Shape) -> list[str]:
    """What of a table that is not attached yet is not as wanted; what comes with ATTACH and after it is left out."""
    said = [
        f"{part} of {wanted.name}: {there}"
        for part, want, have in _compared(wanted, found)
        if want != have
        for there in _told(want, have)
    ]
    for (_, child), (_, made) in pairs(wanted, found):
        said += differences(child, made)
    return said


def _told(want: Any, have: Any) -> list[str]:
    """Of parts with names only those that differ."""
    if isinstance(want, dict) and isinstance(have, dict):
        names = sorted({*want, *have}, key=str)
        return [
            f"{name}: {have.get(name)!r} instead of {want.get(name)!r}"
            for name in names
            if want.get(name) != have.get(name)
        ]
    return [f"{have!r} instead of {want!r}"]


def tree(shape: Shape) -> list[Shape]:
    """The table and everything that it is divided into."""
    return [shape, *(each for _, child in shape.children for each in tree(child))]


# ---- what it should be ----


def _plain(parent: Shape) -> Shape:
    """A first partition, as CREATE TABLE … PARTITION OF would make it: without what is the parent's own."""
    return replace(
        parent,
        kind="r",
        access_method="",
        options=(),
        partition_key="",
        comment=None,
        row_security=False,
        forced_row_security=False,
        replica_identity="d",
        grants=frozenset(each for each in parent.grants if each.grantee == parent.owner and not each.column),
        constraints=tuple(replace(each, inherited=True) for each in parent.constraints if each.kind == "c"),
        indexes=tuple(
            replace(each, clustered=False, replica_identity=False, comment=None, key_comment=None)
            for each in parent.indexes
        ),
        triggers=(),
        policies=(),
        statistics=(),
        publications=(),
        children=(),
        columns=tuple(replace(each, comment=None) for each in parent.columns),
        beyond=(),
    )


def _leaf(pattern: Shape) -> Shape:
    """What a divided table would be if it was not, by the first table that it is divided into."""
    below = pattern
    while below.children:
        below = below.children[0][1]
    return replace(
        pattern,
        kind=below.kind,
        persistence=below.persistence,
        access_method=below.access_method,
        tablespace=below.tablespace,
        options=below.options,
        toast_options=below.toast_options,
        partition_key="",
        children=(),
    )


def _divided(pattern: Shape, wanted: HashSubpartitions) -> Shape:
    """As the policy divides it; a pattern that is divided so already stays as it is."""
    key = sql.SQL("HASH ({})").format(sql.SQL(", ").join(map(sql.Identifier, wanted.columns))).as_string()
    bounds = {
        f"FOR VALUES WITH (modulus {wanted.count}, remainder {number})": number
        for number in range(wanted.count)
    }
    if _unquoted(pattern.partition_key) == _unquoted(key) and {bound for bound, _ in pattern.children} == set(
        bounds
    ):
        return pattern
    leaf = _leaf(pattern)
    inner = replace(
        leaf,
        constraints=tuple(each for each in leaf.constraints if each.kind == "c"),
        # They come with the ATTACH to the table above.
        indexes=(),
        triggers=(),
        statistics=(),
        publications=(),
        comment=None,
    )
    return replace(
        leaf,
        kind=PARTITIONED,
        persistence="p",
        access_method="",
        options=(),
        toast_options=(),
        partition_key=key,
        replica_identity="d",
        indexes=tuple(replace(each, clustered=False, replica_identity=False) for each in leaf.indexes),
        children=tuple(
            (bound, replace(inner, name=RelationName(leaf.name.schema, f"{leaf.name.name}_{number}")))
            for bound, number in bounds.items()
        ),
    )


def _unquoted(key: str) -> str:
    return key.replace('"', "")


def _renamed(
    pattern: Shape,
    name: RelationName,
    names: Names,
    *,
    control: str,
    version: int,
    references: Mapping[int, RelationName],
    above: Mapping[str, str] | None = None,
) -> Shape:
    """`above`: what became of the checks of the table above, by their names in the pattern; None: of the parent's."""
    if pattern.partition_key.startswith("RANGE"):
        raise PermanentError(
            f"{pattern.name} is divided by ranges, which fit no other partition: {name} cannot be made like it",
            remedy="Say subpartitions = … in the policy, or create it by hand",
        )
    if pattern.kind not in {"r", PARTITIONED}:
        raise PermanentError(
            f"{pattern.name} is no ordinary table: {name} cannot be made like it",
            remedy="Create it by hand; the next one is made like that",
        )
    constraints = tuple(_constraints(pattern, names, control=control, references=references, above=above))
    checks = {each.like: each.name for each in constraints if each.kind == "c"}
    # The children's names hold the table's, so theirs are the nearer ones where both fit.
    children = []
    for bound, child in pattern.children:
        below = RelationName(name.schema, names.unique(child.name.name))
        children.append(
            (
                bound,
                _renamed(
                    child,
                    below,
                    names.below(child.name.name, below.name),
                    control=control,
                    version=version,
                    references=references,
                    above=checks,
                ),
            )
        )
    return replace(
        pattern,
        name=name,
        columns=tuple(
            replace(each, identity="" if version >= IDENTITY_IS_INHERITED else each.identity)
            for each in pattern.columns
        ),
        constraints=constraints,
        indexes=tuple(replace(each, name=names.unique(each.name)) for each in pattern.indexes),
        policies=tuple(replace(each, name=names.if_derived(each.name)) for each in pattern.policies),
        statistics=tuple(
            replace(each, name=RelationName(name.schema, names.unique(each.name.name)))
            for each in pattern.statistics
        ),
        children=tuple(children),
    )


def _constraints(
    pattern: Shape,
    names: Names,
    *,
    control: str,
    references: Mapping[int, RelationName],
    above: Mapping[str, str] | None,
) -> Iterator[Constraint]:
    for each in pattern.constraints:
        if each.kind == "c" and each.inherited:
            if above is None:
                yield each
            elif each.like in above:
                # What the table above calls its own now; its check of the sibling's range is gone with that one's.
                yield replace(each, name=above[each.like])
        elif each.kind == "c" and control not in each.columns:
            # One that the parent does not have and that is about the control column speaks of the sibling's own range.
            yield replace(each, name=names.if_derived(each.name))
        elif each.kind == "f" and not each.inherited:
            yield _referring(each, names, references)


def _referring(key: Constraint, names: Names, references: Mapping[int, RelationName]) -> Constraint:
    """A foreign key to where the new partition's rows find theirs."""
    target = references.get(key.referenced_oid)
    changed = replace(key, name=names.if_derived(key.name))
    if target is None:
        return changed
    head, tail = split(key.definition, "REFERENCES", key.referenced_quoted)
    definition = "".join((head, target.identifier().as_string(), tail))
    return replace(changed, definition=definition, referenced=target)


def _with_policy(shape: Shape, policy: PartitionSet) -> Shape:
    tablespace = shape.tablespace if policy.tablespace is None else policy.tablespace
    options, toast = shape.options, shape.toast_options
    if shape.kind != PARTITIONED:
        given = {name: _option_value(value) for name, value in policy.storage_parameters.items()}
        options = _overridden(options, {k: v for k, v in given.items() if not k.startswith("toast.")})
        toast = _overridden(
            toast, {k.removeprefix("toast."): v for k, v in given.items() if k.startswith("toast.")}
        )
    return replace(
        shape,
        tablespace=tablespace,
        options=options,
        toast_options=toast,
        # An index beside its table goes with it.
        indexes=tuple(
            replace(each, tablespace=tablespace) if each.tablespace == shape.tablespace else each
            for each in shape.indexes
        ),
        children=tuple((bound, _with_policy(child, policy)) for bound, child in shape.children),
    )


def _option_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _overridden(options: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    kept = [each for each in options if each.partition("=")[0] not in given]
    return (*kept, *("=".join(pair) for pair in given.items()))


# ---- what is missing ----


def pairs(wanted: Shape, found: Shape) -> Iterator[tuple[tuple[str, Shape], tuple[str, Shape]]]:
    """What both are divided into, side by side."""
    there = {child.name: (bound, child) for bound, child in found.children}
    for bound, child in wanted.children:
        if child.name in there:
            yield (bound, child), there[child.name]


def _compared(wanted: Shape, found: Shape) -> Iterator[tuple[str, Any, Any]]:
    for part in _COMPARED:
        if part == "access_method" and not wanted.access_method:
            continue  # the database's own
        yield part.replace("_", " "), getattr(wanted, part), getattr(found, part)
    yield "partition key", _unquoted(wanted.partition_key), _unquoted(found.partition_key)
    yield "options", set(wanted.options), set(found.options)
    yield "TOAST options", set(wanted.toast_options), set(found.toast_options)
    yield "privileges", sorted(wanted.grants), sorted(found.grants)
    yield "columns", _by_name(wanted.columns), _by_name(found.columns)
    yield "checks", _parts(_checks(wanted)), _parts(_checks(found))
    if wanted.indexes:
        yield "indexes", _by_name(wanted.indexes), _by_name(found.indexes)
    yield "triggers", _parts(_own_triggers(wanted)), _parts(_own_triggers(found))
    yield "policies", _parts(wanted.policies), _parts(found.policies)
    yield "extended statistics", _parts(wanted.statistics), _parts(found.statistics)
    yield "publications", _parts(wanted.publications), _parts(found.publications)
    yield (
        "partitions",
        {child.name: bound for bound, child in wanted.children},
        {child.name: bound for bound, child in found.children},
    )


_COMPARED = (
    "kind",
    "persistence",
    "access_method",
    "tablespace",
    "owner",
    "comment",
    "row_security",
    "forced_row_security",
    "replica_identity",
)


def _checks(shape: Shape) -> list[Constraint]:
    return [each for each in shape.constraints if each.kind == "c" and each.name != BOUND_CHECK]


def _own_triggers(shape: Shape) -> list[Trigger]:
    return [each for each in shape.triggers if not (each.inherited or each.ours)]


def _by_name(parts: Sequence[Column] | Sequence[Index]) -> dict[str, Any]:
    return {each.name: each for each in parts}


def _parts(
    parts: Sequence[Constraint | Trigger | Policy | Statistics | Publication],
) -> dict[object, object]:
    return {each.name: _comparable(each) for each in parts}


def _comparable(part: Constraint | Trigger | Policy | Statistics | Publication) -> object:
    """What can be compared of it: an expression that was sent as text may come back as one that means the same."""
    if isinstance(part, Constraint):
        return part.definition.removesuffix(NOT_VALID) if part.copied else NOT_VALID, part.comment
    if isinstance(part, Trigger):
        return replace(part, tail="")
    if isinstance(part, Policy):
        return replace(part, using=_there(part.using), check=_there(part.check))
    if isinstance(part, Statistics):
        return replace(part, kinds="")
    return replace(part, filter=_there(part.filter))


def _there(text: str | None) -> str | None:
    return None if text is None else ""
