"""The statements that bring a new partition about, piece by piece, from what `likeness` says that it should be.

Text that the server has deparsed goes back to it as it came; everything else is an identifier or a literal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from tasks.partitions.likeness import BOUND_CHECK, IDENTITY_IS_INHERITED, pairs
from tasks.partitions.shape import Grant, Index, Policy, Shape, Trigger

_COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}
_TRIGGER_STATES = {"O": "ENABLE", "D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}

Statement = sql.Composed | sql.SQL


def creation(shape: Shape, like: Mapping[int, Shape], *, version: int) -> Iterator[Statement]:
    """Make the table and what it is divided into, with indexes and checks as the pattern's are.

    LIKE copies their expressions as the server has parsed them. Their text, parsed again, may come out as another
    expression that means the same (`a IN ('x', 'y')` of a varchar does), which ATTACH does not take for the parent's.
    """
    pattern = like[shape.oid]
    yield _tablespace(shape.tablespace)
    yield _create_table(shape, pattern.name, version=version)
    wanted = {each.like: each for each in shape.constraints if each.kind == "c" and each.copied}
    for check in pattern.constraints:
        if check.kind == "c" and check.name not in wanted:
            yield _drop_constraint(shape, check.name)
    # What a name is made from is in it, so that none is both an old and a new one.
    for old, check in wanted.items():
        if check.name != old:
            yield sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
                shape.name.identifier(), sql.Identifier(old), sql.Identifier(check.name)
            )
    for constraint in shape.constraints:
        if constraint.kind == "c":
            if not constraint.copied:
                yield _add_constraint(shape, constraint.name, _deparsed(constraint.definition))
            yield from _comment(
                "CONSTRAINT", sql.Identifier(constraint.name), constraint.comment, on=shape.name
            )
    yield from _columns(shape)
    yield from _statistics(shape)
    if shape.replica_identity in {"f", "n"}:
        yield _alter(
            shape, "REPLICA IDENTITY FULL" if shape.replica_identity == "f" else "REPLICA IDENTITY NOTHING"
        )
    yield from _row_security(shape)
    yield from _comment("TABLE", shape.name.identifier(), shape.comment)
    for bound, child in shape.children:
        yield from creation(child, like, version=version)
        yield sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
            shape.name.identifier(), child.name.identifier(), _deparsed(bound)
        )


def indexes(wanted: Shape, found: Shape) -> Iterator[Statement]:
    """Give the indexes that LIKE has copied their names, places and whatever else LIKE leaves out.

    What is alike but for that may change places; one that the pattern has not finished is dropped.
    """
    if wanted.indexes:
        copies: dict[tuple[object, ...], list[Index]] = defaultdict(list)
        for each in found.indexes:
            copies[_alike(each)].append(each)
        matched = [(each, there.pop(0)) for each in wanted.indexes if (there := copies[_alike(each)])]
        for left in (each for several in copies.values() for each in several):
            yield _drop_index(found, left)
        renamed = [(each, copy) for each, copy in matched if each.name != copy.name]
        # A copy's name may be the one that another is to have.
        wanted_names = {each.name for each, _ in renamed}
        names = {copy.name: copy.name for _, copy in renamed}
        for number, name in enumerate(names):
            if name in wanted_names:
                names[name] = f"upkeep_{found.oid}_{number}"
                yield _rename_index(found, name, names[name])
        for each, copy in renamed:
            yield _rename_index(found, names[copy.name], each.name)
        for each, copy in matched:
            yield from _index(wanted, each, tablespace=copy.tablespace)
    for (_, child), (_, made) in pairs(wanted, found):
        yield from indexes(child, made)


def _alike(index: Index) -> tuple[object, ...]:
    return (index.unique, index.definition, index.key, index.key_definition)


def _rename_index(shape: Shape, old: str, new: str) -> Statement:
    return sql.SQL("ALTER INDEX {} RENAME TO {}").format(
        RelationName(shape.name.schema, old).identifier(), sql.Identifier(new)
    )


def _drop_index(shape: Shape, index: Index) -> Statement:
    if index.key:
        return _drop_constraint(shape, index.name)
    return sql.SQL("DROP INDEX {}").format(RelationName(shape.name.schema, index.name).identifier())


def owners(shape: Shape, owner: str) -> Iterator[Statement]:
    """Give tables of the tree that belong to others than its creator to them."""
    if shape.owner != owner:
        yield sql.SQL("ALTER TABLE {} OWNER TO {}").format(
            shape.name.identifier(), sql.Identifier(shape.owner)
        )
    for _, child in shape.children:
        yield from owners(child, owner)


def privileges(wanted: Shape, found: Shape) -> Iterator[Statement]:
    """Take away what default privileges have given, grant what is missing."""
    for each in sorted(found.grants - wanted.grants):
        # Taken away with its grant option, and given again without it where that is all.
        yield _privilege("REVOKE {} ON TABLE {} FROM {}", found, each)
    again = {(each.grantee, each.privilege, each.column) for each in found.grants - wanted.grants}
    for each in sorted(wanted.grants):
        if each not in found.grants or (each.grantee, each.privilege, each.column) in again:
            yield _privilege(
                "GRANT {} ON TABLE {} TO {} WITH GRANT OPTION"
                if each.grantable
                else "GRANT {} ON TABLE {} TO {}",
                wanted,
                each,
            )
    for (_, child), (_, made) in pairs(wanted, found):
        yield from privileges(child, made)


def publications(shape: Shape) -> Iterator[tuple[str, Statement]]:
    """Add the tables to the publications that name the pattern's, each with the publication's name."""
    for each in shape.publications:
        columns = _list(each.columns) if each.columns else sql.SQL("")
        rows = (
            sql.SQL(" WHERE {}").format(_deparsed(_in_brackets(each.filter))) if each.filter else sql.SQL("")
        )
        yield (
            each.name,
            sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}{}{}").format(
                sql.Identifier(each.name), shape.name.identifier(), columns, rows
            ),
        )
    for _, child in shape.children:
        yield from publications(child)


def triggers(shape: Shape) -> Iterator[Statement]:
    """Create the triggers that the parent does not have; those that request refreshes are somebody else's."""
    for each in shape.triggers:
        if each.inherited or each.ours:
            continue
        yield sql.SQL("{}{}{}").format(_deparsed(each.head), shape.name.identifier(), _deparsed(each.tail))
        if each.enabled != "O":
            yield trigger_state(shape, each)
        yield from _comment("TRIGGER", sql.Identifier(each.name), each.comment, on=shape.name)
    for _, child in shape.children:
        yield from triggers(child)


def silence(shape: Shape) -> Iterator[Statement]:
    """Let no trigger of a new table take rows that are moved there for new ones."""
    if _has_triggers(shape):
        yield _alter(shape, "DISABLE TRIGGER USER")


def unsilence(shape: Shape) -> Iterator[Statement]:
    """Switch its triggers as they were."""
    if not _has_triggers(shape):
        return
    yield _alter(shape, "ENABLE TRIGGER USER")
    yield from _switched(shape)


def _has_triggers(shape: Shape) -> bool:
    own = any(not each.inherited for each in shape.triggers)
    return own or any(_has_triggers(child) for _, child in shape.children)


def _switched(shape: Shape) -> Iterator[Statement]:
    for each in shape.triggers:
        if not (each.inherited or each.ours) and each.enabled != "O":
            yield trigger_state(shape, each)
    for _, child in shape.children:
        yield from _switched(child)


def trigger_state(shape: Shape, trigger: Trigger) -> Statement:
    """Switch a trigger as the sibling's is."""
    return sql.SQL("ALTER TABLE ONLY {} {} TRIGGER {}").format(
        shape.name.identifier(), sql.SQL(_TRIGGER_STATES[trigger.enabled]), sql.Identifier(trigger.name)
    )


def foreign_keys(shape: Shape) -> Iterator[Statement]:
    """Add the foreign keys that the parent does not have; each locks the table that it refers to for a moment."""
    for each in shape.constraints:
        if each.kind == "f":
            yield _add_constraint(shape, each.name, _deparsed(each.definition))
            yield from _comment("CONSTRAINT", sql.Identifier(each.name), each.comment, on=shape.name)
    for _, child in shape.children:
        yield from foreign_keys(child)


def add_bound_check(name: RelationName, control: str, range_: Range) -> Statement:
    """The CHECK that proves to ATTACH that every row belongs there."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} IS NOT NULL AND {})").format(
        name.identifier(), sql.Identifier(BOUND_CHECK), sql.Identifier(control), within(control, range_)
    )


def drop_bound_check(name: RelationName) -> Statement:
    """When the table is attached, its bound says the same."""
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name.identifier(), sql.Identifier(BOUND_CHECK))


def within(control: str, range_: Range) -> sql.Composed:
    """The condition that a row's control column lies in a range."""
    column = sql.Identifier(control)
    sides: list[sql.Composable] = [
        sql.SQL("{} {} {}").format(column, sql.SQL(operator), sql.Literal(value))
        for operator, value in ((">=", range_.lower), ("<", range_.upper))
        if value is not None
    ]
    return sql.SQL(" AND ").join(sides or [sql.SQL("true")])


def attach(
    parent: RelationName, name: RelationName, range_: Range | None, *, key_columns: int
) -> sql.Composed:
    """ATTACH for a range, or as the default partition where there is none."""
    if range_ is None:
        bound: sql.Composable = sql.SQL("DEFAULT")
    else:
        rest = [sql.SQL("MINVALUE")] * (key_columns - 1)
        bound = sql.SQL("FOR VALUES FROM ({}) TO ({})").format(
            sql.SQL(", ").join([_side(range_.lower, "MINVALUE"), *rest]),
            sql.SQL(", ").join(
                [
                    _side(range_.upper, "MAXVALUE"),
                    *([sql.SQL("MAXVALUE")] * len(rest) if range_.upper is None else rest),
                ]
            ),
        )
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
        parent.identifier(), name.identifier(), bound
    )


def _deparsed(text: str) -> sql.SQL:
    """What the server has written itself, for the same transaction's settings."""
    return sql.SQL(text)


def _in_brackets(text: str) -> str:
    return text if text.startswith("(") and text.endswith(")") else "".join(("(", text, ")"))


def _list(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, names)))


def _alter(shape: Shape, what: str) -> Statement:
    return sql.SQL("ALTER TABLE ONLY {} {}").format(shape.name.identifier(), _deparsed(what))


def _tablespace(name: str) -> Statement:
    return sql.SQL("SET LOCAL default_tablespace = {}").format(sql.Literal(name))


def _create_table(shape: Shape, like: RelationName, *, version: int) -> Statement:
    including = ["CONSTRAINTS", "DEFAULTS", "GENERATED", "STORAGE", "COMPRESSION"]
    if shape.indexes:
        including.append("INDEXES")
    if version < IDENTITY_IS_INHERITED and any(each.identity for each in shape.columns):
        including.append("IDENTITY")
    parts: list[sql.Composable] = [
        sql.SQL("CREATE UNLOGGED TABLE" if shape.persistence == "u" else "CREATE TABLE"),
        shape.name.identifier(),
        sql.SQL("(LIKE {} {})").format(
            like.identifier(),
            sql.SQL(" ").join([sql.SQL("INCLUDING {}").format(_deparsed(x)) for x in including]),
        ),
    ]
    if shape.partition_key:
        parts.append(sql.SQL("PARTITION BY {}").format(_deparsed(shape.partition_key)))
    if shape.access_method:
        parts.append(sql.SQL("USING {}").format(sql.Identifier(shape.access_method)))
    options = [_option(each) for each in shape.options]
    options += [sql.SQL('"toast".{}').format(_option(each)) for each in shape.toast_options]
    if options:
        parts.append(sql.SQL("WITH ({})").format(sql.SQL(", ").join(options)))
    return sql.SQL(" ").join(parts)


def _option(text: str) -> sql.Composed:
    name, _, value = text.partition("=")
    return sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))


def _columns(shape: Shape) -> Iterator[Statement]:
    for each in shape.columns:
        column = sql.Identifier(each.name)
        if each.statistics >= 0:
            yield sql.SQL("ALTER TABLE ONLY {} ALTER COLUMN {} SET STATISTICS {}").format(
                shape.name.identifier(), column, sql.Literal(each.statistics)
            )
        if each.options:
            yield sql.SQL("ALTER TABLE ONLY {} ALTER COLUMN {} SET ({})").format(
                shape.name.identifier(), column, sql.SQL(", ").join([_option(o) for o in each.options])
            )
        if each.comment is not None:
            yield sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                shape.name.identifier(), column, sql.Literal(each.comment)
            )


def _add_constraint(shape: Shape, name: str, definition: sql.Composable) -> Statement:
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
        shape.name.identifier(), sql.Identifier(name), definition
    )


def _drop_constraint(shape: Shape, name: str) -> Statement:
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(shape.name.identifier(), sql.Identifier(name))


def _index(shape: Shape, index: Index, *, tablespace: str) -> Iterator[Statement]:
    name = RelationName(shape.name.schema, index.name)
    if index.tablespace != tablespace:
        yield sql.SQL("ALTER INDEX {} SET TABLESPACE {}").format(
            name.identifier(), sql.Identifier(index.tablespace or "pg_default")
        )
    if index.key:
        yield from _comment("CONSTRAINT", sql.Identifier(index.name), index.key_comment, on=shape.name)
    for position, target in index.statistics:
        yield sql.SQL("ALTER INDEX {} ALTER COLUMN {} SET STATISTICS {}").format(
            name.identifier(), sql.Literal(position), sql.Literal(target)
        )
    if index.clustered:
        yield sql.SQL("ALTER TABLE ONLY {} CLUSTER ON {}").format(
            shape.name.identifier(), sql.Identifier(index.name)
        )
    if index.replica_identity:
        yield sql.SQL("ALTER TABLE ONLY {} REPLICA IDENTITY USING INDEX {}").format(
            shape.name.identifier(), sql.Identifier(index.name)
        )
    yield from _comment("INDEX", name.identifier(), index.comment)


def _statistics(shape: Shape) -> Iterator[Statement]:
    for each in shape.statistics:
        yield sql.SQL("CREATE STATISTICS {} {} FROM {}").format(
            each.name.identifier(), _deparsed(each.kinds), shape.name.identifier()
        )
        if each.target >= 0:
            yield sql.SQL("ALTER STATISTICS {} SET STATISTICS {}").format(
                each.name.identifier(), sql.Literal(each.target)
            )
        yield from _comment("STATISTICS", each.name.identifier(), each.comment)


def _row_security(shape: Shape) -> Iterator[Statement]:
    for each in shape.policies:
        yield _policy(shape, each)
        yield from _comment("POLICY", sql.Identifier(each.name), each.comment, on=shape.name)
    if shape.row_security:
        yield _alter(shape, "ENABLE ROW LEVEL SECURITY")
    if shape.forced_row_security:
        yield _alter(shape, "FORCE ROW LEVEL SECURITY")


def _policy(shape: Shape, policy: Policy) -> Statement:
    parts = [
        sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}").format(
            sql.Identifier(policy.name),
            shape.name.identifier(),
            sql.SQL("PERMISSIVE" if policy.permissive else "RESTRICTIVE"),
            sql.SQL(_COMMANDS[policy.command]),
            sql.SQL(", ").join([_role(each) for each in policy.roles]),
        )
    ]
    if policy.using is not None:
        parts.append(sql.SQL("USING ({})").format(_deparsed(policy.using)))
    if policy.check is not None:
        parts.append(sql.SQL("WITH CHECK ({})").format(_deparsed(policy.check)))
    return sql.SQL(" ").join(parts)


def _role(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def _privilege(form: str, shape: Shape, grant: Grant) -> Statement:
    what: sql.Composable = _deparsed(grant.privilege)
    if grant.column:
        what = sql.SQL("{}{}").format(what, _list([grant.column]))
    return _deparsed(form).format(what, shape.name.identifier(), _role(grant.grantee))


def _comment(
    kind: str, object_: sql.Composable, comment: str | None, *, on: RelationName | None = None
) -> Iterator[Statement]:
    if comment is None:
        return
    if on is not None:
        object_ = sql.SQL("{} ON {}").format(object_, on.identifier())
    yield sql.SQL("COMMENT ON {} {} IS {}").format(_deparsed(kind), object_, sql.Literal(comment))


def _side(value: Any, open_: str) -> sql.Composable:
    return _deparsed(open_) if value is None else sql.Literal(value)
