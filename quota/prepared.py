"""Statements of the hot path: compiled once, then run on the driver's own cursor.

SQLAlchemy takes 40 to 60 microseconds around each statement that SQLite runs in five, and a job needs dozens of them. A
`Prepared` is a Core statement like any other, made once beside the code that uses it; only the way to the driver is
shorter. It runs in the connection's transaction, on both engines, and raises the same errors.
"""

from __future__ import annotations

import itertools
import operator
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from sqlalchemy import ClauseElement, Connection, Table, insert
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import ExpandedState, SQLCompiler

Values = Mapping[str, Any]
"""What a statement is run with, by the names of its `bindparam`s."""

_NOTHING: Values = {}
_ROWS_AT_ONCE = 2000
_listeners: list[Callable[[str], None]] = []


class Prepared:
    """One statement with named parameters; `lists` names its expanding ones, which take lists of any length.

    Rows come back as named tuples of the columns' Python types. Make it once, at import: making one is slow.
    """

    def __init__(self, statement: ClauseElement, *, lists: Sequence[str] = ()) -> None:
        self._statement = statement
        self._lists = tuple(lists)
        self._columns: list[str] | None = None
        self._shapes: dict[Any, _Shape] = {}

    @classmethod
    def insert(cls, table: Table, columns: Iterable[str]) -> Prepared:
        """An INSERT of these columns; it answers no generated key."""
        prepared = cls(insert(table).inline())
        prepared._columns = list(columns)
        return prepared

    def all(self, connection: Connection, values: Values = _NOTHING) -> list[Any]:
        """Every row that the statement answers."""
        shape, cursor = self._run(connection, values)
        rows = cursor.fetchall()
        fixes = shape.fixes
        if fixes is None:
            fixes = shape.find_fixes(cursor.description)
        if fixes:
            for number, row in enumerate(rows):
                cells = list(row)
                for place, fix in fixes:
                    cells[place] = fix(cells[place])
                rows[number] = cells
        return list(map(shape.make, rows))

    def cells(self, connection: Connection, values: Values = _NOTHING) -> Iterator[tuple[Any, ...]]:
        """Rows as the driver has them, one by one: for very many rows of plain numbers and texts."""
        shape, cursor = self._run(connection, values)
        if shape.fixes is None:
            shape.find_fixes(cursor.description)
        assert not shape.fixes, "the driver has these values as something else"
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield from rows

    def one_or_none(self, connection: Connection, values: Values = _NOTHING) -> Any:
        """The one row that the statement answers, or None."""
        rows = self.all(connection, values)
        assert len(rows) <= 1, "the statement answers one row at most"
        return rows[0] if rows else None

    def one(self, connection: Connection, values: Values = _NOTHING) -> Any:
        """The one row that the statement answers."""
        rows = self.all(connection, values)
        assert len(rows) == 1, "the statement answers one row"
        return rows[0]

    def change(self, connection: Connection, values: Values = _NOTHING) -> int:
        """How many rows the statement wrote."""
        count: int = self._run(connection, values)[1].rowcount
        return count

    def change_all(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Run it for each of `rows`, which name the same parameters, none of them a list."""
        if len(rows) == 1:
            self._run(connection, rows[0])
            return
        shape = self._shape(connection.dialect, rows[0])
        cursor = _driver(connection).cursor()
        parameters = [shape.parameters(values) for values in rows]
        if _listeners:
            _tell(shape.sql)
        try:
            cursor.executemany(shape.sql, parameters)
        except _driver_error(connection) as error:
            _raise(connection, error, shape.sql, parameters)

    def _run(self, connection: Connection, values: Values) -> tuple[_Shape, Any]:
        # few calls on this path: they are most of what a statement costs here
        shape = None if self._lists else self._shapes.get(connection.dialect.name)
        if shape is None:
            shape = self._shape(connection.dialect, values)
        parameters = shape.parameters(values)
        if _listeners:
            _tell(shape.sql)
        try:
            return shape, _driver(connection).execute(shape.sql, parameters)
        except _driver_error(connection) as error:
            _raise(connection, error, shape.sql, parameters)

    def _shape(self, dialect: Dialect, values: Values) -> _Shape:
        key: Any = dialect.name
        for name in self._lists:
            key = (key, _size(len(values[name])))
        shape = self._shapes.get(key)
        if shape is None:
            # two threads may both compile it the first time: either result serves
            compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
            assert isinstance(compiled, SQLCompiler)
            padded = {name: _padded(values[name]) for name in self._lists}
            state = compiled.construct_expanded_state({**values, **padded})
            shape = self._shapes[key] = _Shape(compiled, state, self._lists)
        return shape


class _Shape:
    """A statement as one dialect runs it with lists of one size."""

    def __init__(self, compiled: SQLCompiler, state: ExpandedState, lists: Sequence[str]) -> None:
        assert not state.processors, "parameters go to the driver as they are"
        self.sql: str = state.statement
        # a list that is part of the statement is constant like its other values
        members = {name: tuple(state.parameter_expansion[name]) for name in lists}
        expanded = set(itertools.chain.from_iterable(members.values()))
        required = {name for name, bind in compiled.binds.items() if bind.required}
        constants = {
            name: value
            for name, value in state.parameters.items()
            if name not in expanded and name not in required and name not in (compiled.column_keys or ())
        }
        self.parameters = _binder(state.positiontup, constants, members)
        """What the driver takes, of the statement's values: a tuple in the order of the marks, or a mapping by name."""
        self._columns = compiled._result_columns
        self._dialect = compiled.dialect
        # the names are the statement's, which no type checker can read
        row: Any = namedtuple("Row", [column.keyname for column in self._columns])  # type: ignore[misc]
        self.make = partial(tuple.__new__, row)
        """A named tuple of cells; `_make` would be the same with a check."""
        self.fixes: list[tuple[int, Callable[[Any], Any]]] | None = None
        """Columns that come as something else than they are, as a truth comes as 0 or 1 from SQLite."""

    def find_fixes(self, description: Any) -> list[tuple[int, Callable[[Any], Any]]]:
        """Set `fixes` from what the driver's cursor says of its first rows."""
        fixes: list[tuple[int, Callable[[Any], Any]]] = []
        for place, (column, told) in enumerate(zip(self._columns, description, strict=True)):
            kind = column.type.dialect_impl(self._dialect)
            fix = kind.result_processor(self._dialect, told[1])
            if fix is not None:
                fixes.append((place, fix))
        self.fixes = fixes
        return fixes


def _binder(
    order: Sequence[str] | None, constants: Values, members: dict[str, tuple[str, ...]]
) -> Callable[[Values], Any]:
    """How a statement's values become the driver's parameters, in as few steps as this statement needs.

    `order`: names in the order of the marks, None where the driver takes names. `members`: the names that stand for
    each list's items, two for an item that is a pair.
    """
    pick = _picker(order)
    if not members:
        return pick if not constants else lambda values: pick({**constants, **values})

    def bind(values: Values) -> Any:
        merged = {**constants, **values}
        for name, names in members.items():
            items = merged[name]
            if len(names) == 1:
                merged[names[0]] = items[0]
                continue
            items = _padded(items)
            if items and isinstance(items[0], tuple):
                items = itertools.chain.from_iterable(items)
            merged.update(zip(names, items, strict=True))
        return pick(merged)

    return bind


def _picker(order: Sequence[str] | None) -> Callable[[Values], Any]:
    if order is None:
        return _as_given
    if len(order) > 1:
        return operator.itemgetter(*order)
    return lambda values: tuple([values[name] for name in order])


def _as_given(values: Values) -> Any:
    return values


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Tell `listener` each statement that runs through here, which SQLAlchemy's events do not; of every database."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def run_text(connection: Connection, sql: str) -> None:
    """Run a statement without parameters or rows, such as BEGIN or SAVEPOINT."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql)
    except _driver_error(connection) as error:
        _raise(connection, error, sql, ())
    cursor.close()


def _size(count: int) -> int:
    """The next power of two: so a statement has few shapes."""
    return count if count < 3 else 1 << (count - 1).bit_length()


def _padded(items: Sequence[Any]) -> Sequence[Any]:
    """The list in its size: a value named twice asks for nothing more."""
    missing = _size(len(items)) - len(items)
    return [*items, *itertools.repeat(items[-1], missing)] if missing else items


def _driver(connection: Connection) -> Any:
    """The driver's own connection: no event is missed, SQLAlchemy has none for making a cursor."""
    assert connection.in_transaction(), "the statement belongs to a transaction"
    return connection.connection.dbapi_connection


def _driver_error(connection: Connection) -> type[Exception]:
    """What the driver raises; asked only when something was raised."""
    kind: type[Exception] = connection.dialect.loaded_dbapi.Error
    return kind


def _tell(sql: str) -> None:
    for listener in _listeners:
        listener(sql)


def _raise(connection: Connection, error: Any, sql: str, parameters: Any) -> NoReturn:
    """Raise what SQLAlchemy would: its error around the driver's; a connection that is lost is not used again."""
    dialect = connection.dialect
    lost = dialect.is_disconnect(error, connection.connection.driver_connection, None)
    if lost:
        connection.invalidate(error)
    raise DBAPIError.instance(
        sql,
        parameters,
        error,
        _driver_error(connection),
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=dialect,
    ) from error
