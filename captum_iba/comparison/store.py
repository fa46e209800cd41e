"""Results of a comparison as they come, in SQLite: one transaction an example."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captum_iba.comparison._types import ExampleInfo, HeatMap
from captum_iba.errors import InvalidArgumentError, MissingFileError, StoreError

_TABLES = {
    "configuration": "name TEXT PRIMARY KEY, value TEXT NOT NULL",
    "examples": "key TEXT PRIMARY KEY, skipped TEXT, target TEXT, predicted TEXT, probability REAL, photo BLOB, "
    "boxes TEXT, tokens TEXT",
    "results": "key TEXT NOT NULL, method TEXT NOT NULL, failure TEXT, seconds REAL, memory REAL, metrics TEXT, "
    "map BLOB, low REAL, high REAL, is_constant INTEGER, fit_seconds REAL, PRIMARY KEY (key, method)",
}


@dataclass(frozen=True)
class MethodRecord:
    """What one method gave for one example.

    Attributes:
        failure (str): why it gave nothing; empty where it did.
        seconds (float or None): time of the attribution.
        memory (float or None): MB, most above what was in use before.
        metrics (Mapping[str, Any]): record by metric.
        heat_map (HeatMap or None): for the pictures.
        is_constant (bool): the map has one value everywhere, so that it ranks nothing.
        fit_seconds (float or None): time of the training before the first example.
    """

    failure: str = ""
    seconds: float | None = None
    memory: float | None = None
    metrics: Mapping[str, Any] | None = None
    heat_map: HeatMap | None = None
    is_constant: bool = False
    fit_seconds: float | None = None


@dataclass(frozen=True)
class ExampleRecord:
    """All that was found for one example.

    Attributes:
        info (ExampleInfo): the example.
        skipped (str): why it could not be read; empty where it could.
        methods (Mapping[str, MethodRecord]): by name.
    """

    info: ExampleInfo
    skipped: str
    methods: Mapping[str, MethodRecord]


class Store:
    """A file of results.

    Args:
        path (Path, optional): the file, made if it is not there; None keeps everything in memory.
        configuration (Mapping): what the results depend on. A file made under another one is refused.

    Raises:
        InvalidArgumentError: the file belongs to another configuration, or is no such file.
        MissingFileError: its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None, configuration: Mapping[str, object]) -> None:
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise MissingFileError(f"The folder of {str(path)!r} does not exist; create it first.")
        self.path = None if path is None else Path(path)
        try:
            self._connection = sqlite3.connect(":memory:" if path is None else path, timeout=60)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error
        try:
            with self._connection:  # refused, the file stays as it was
                self._connection.execute("BEGIN IMMEDIATE")
                self._make_tables()
                self._check(configuration)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise self._unusable(error) from error
            raise

    def _unusable(self, reason: object) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"store={str(self.path)!r} cannot be used: {reason}. Pass another file, or remove this one to start anew."
        )

    def _make_tables(self) -> None:
        there = dict(self._connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        if there and there.keys() != _TABLES.keys():
            raise self._unusable(f"it is a database of something else, with tables {', '.join(sorted(there))}")
        if there and not all(columns in there[name] for name, columns in _TABLES.items()):
            raise self._unusable("it was written by another version of captum_iba, with other columns")
        for name, columns in _TABLES.items():
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def _check(self, configuration: Mapping[str, object]) -> None:
        wanted = {name: json.dumps(value, sort_keys=True) for name, value in configuration.items()}
        found = dict(self._connection.execute("SELECT name, value FROM configuration"))
        if not found:
            self._connection.executemany("INSERT INTO configuration VALUES (?, ?)", wanted.items())
            return
        was, now = ({name: json.loads(text) for name, text in side.items()} for side in (found, wanted))
        differences = _differences("", was, now)
        if differences and not self._connection.execute("SELECT 1 FROM examples LIMIT 1").fetchone():
            # nothing was computed under the old one, which may have been a mistake
            self._connection.execute("DELETE FROM configuration")
            self._connection.executemany("INSERT INTO configuration VALUES (?, ?)", wanted.items())
        elif differences:
            raise InvalidArgumentError(
                f"store={str(self.path)!r} holds results of another configuration: {'; '.join(differences)}. Use the "
                "old arguments to go on, or another file to start anew."
            )

    def add(self, record: ExampleRecord) -> None:
        """Write an example with all its results, in one transaction."""
        info = record.info
        boxes = None if info.boxes is None else json.dumps(np.asarray(info.boxes).tolist())
        tokens = json.dumps([info.tokens, info.special]) if info.tokens else None
        with self._explained(), self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO examples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    info.key,
                    record.skipped,
                    info.target,
                    info.predicted,
                    _finite(info.probability),
                    info.photo,
                    boxes,
                    tokens,
                ),
            )
            self._connection.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_method_row(info.key, name, result) for name, result in record.methods.items()],
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"store={str(self.path)!r}: {error}. What was written before is kept; make room on the disk, or see "
                "who else uses the file, and run the same again."
            ) from error

    def keys(self) -> set[str]:
        """Keys of the examples that are done."""
        with self._explained():
            return {key for (key,) in self._connection.execute("SELECT key FROM examples")}

    def read(self) -> Iterator[ExampleRecord]:
        """All examples, in no particular order."""
        for key, skipped, target, predicted, probability, photo, boxes, tokens in self._connection.execute(
            "SELECT * FROM examples"
        ).fetchall():
            info = ExampleInfo(
                key,
                target,
                predicted,
                float("nan") if probability is None else probability,
                photo or b"",
                None if boxes is None else np.array(json.loads(boxes), dtype=np.float64).reshape(-1, 4),
                *map(tuple, [] if tokens is None else json.loads(tokens)),
            )
            rows = self._connection.execute(
                "SELECT method, failure, seconds, memory, metrics, map, low, high, is_constant, fit_seconds FROM "
                "results WHERE key = ?",
                (key,),
            )
            yield ExampleRecord(info, skipped, {row[0]: _method_record(*row[1:]) for row in rows})


def _differences(name: str, was: Any, now: Any) -> list[str]:
    """What differs, as deep inside as it can be named."""
    if was == now:
        return []
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted(was.keys() | now.keys())
        return [text for k in keys for text in _differences(f"{name}.{k}" if name else k, was.get(k), now.get(k))]
    if isinstance(was, list) and isinstance(now, list):
        gone, new = [item for item in was if item not in now], [item for item in now if item not in was]
        named = [f"{name} had {_short(item)}" for item in gone] + [f"{name} has {_short(item)} now" for item in new]
        return named or [f"{name} had another order"]
    return [f"{name} was {_short(was)}, is {_short(now)}"]


def _short(value: object) -> str:
    return json.dumps(value)[:200]


def _finite(value: float) -> float | None:
    return None if value != value else value


def _method_row(key: str, name: str, result: MethodRecord) -> tuple[object, ...]:
    image, low, high = None, None, None
    if result.heat_map is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, levels=result.heat_map.levels)
        image, low, high = buffer.getvalue(), result.heat_map.low, result.heat_map.high
    metrics = json.dumps(result.metrics or {}, allow_nan=False)
    costs = result.seconds, result.memory
    return key, name, result.failure, *costs, metrics, image, low, high, int(result.is_constant), result.fit_seconds


def _method_record(
    failure: str,
    seconds: float | None,
    memory: float | None,
    metrics: str,
    image: bytes | None,
    low: float | None,
    high: float | None,
    is_constant: int,
    fit_seconds: float | None,
) -> MethodRecord:
    heat_map = None
    if image is not None and low is not None and high is not None:
        with np.load(io.BytesIO(image)) as stored:
            heat_map = HeatMap(stored["levels"], low, high)
    return MethodRecord(failure, seconds, memory, json.loads(metrics), heat_map, bool(is_constant), fit_seconds)
