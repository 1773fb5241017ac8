"""What critics answered, kept in an SQLite file: each answer is on disk as soon as it is there.

A question is known by its key, a digest of all that is shown. It may have several answers, since one that holds no
critique is asked for again; the critique is in the last of them, or nowhere.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jrm_plugin.chat_client import summarize_usage
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique

_COLUMNS = "text, critique, repaired, fault, problem, prompt_tokens, completion_tokens, seconds"
_TABLES = f"""
CREATE TABLE IF NOT EXISTS answers (
    key TEXT, number INTEGER, stored_at REAL, {_COLUMNS}, PRIMARY KEY (key, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (reason TEXT PRIMARY KEY, count INTEGER);
"""


@dataclass(frozen=True)
class CriticAnswer:
    """An answer, and the critique that it holds or what is wrong with it.

    Attributes:
        text: what the critic wrote.
        critique: None where it holds none.
        repaired: whether its JSON had to be repaired, or taken out of other text.
        fault: in a few words what is wrong with it, the same for all answers of that kind; else empty.
        problem: what is wrong with it, in full.
        prompt_tokens, completion_tokens: None where no server says.
        seconds: it took a server to write it; None where none did.
    """

    text: str
    critique: Critique | None = None
    repaired: bool = False
    fault: str = ""
    problem: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None


class Answers:
    """The answers in a file, which is made where it is not there. Several threads may call it.

    Raises:
        JRMError: the file cannot be read or written, or is no such file.
    """

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        with self._database_errors():
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # A commit is on disk, also where the machine loses power after it.
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()

    def of(self, key: str) -> list[CriticAnswer]:
        """All answers to a question, the first first."""
        query = f"SELECT {_COLUMNS} FROM answers WHERE key = ? ORDER BY number"
        with self._lock, self._database_errors():
            rows = self._database.execute(query, (key,)).fetchall()
        return [
            CriticAnswer(text, None if critique is None else self._parsed(critique), bool(repaired), *rest)
            for text, critique, repaired, *rest in rows
        ]

    def add(self, key: str, answer: CriticAnswer) -> None:
        """Stores an answer; when this returns, it is on disk."""
        values = vars(answer) | {"critique": answer.critique and answer.critique.to_json()}
        row = [key, key, time.time(), *(values[name] for name in _COLUMNS.split(", "))]
        places = ", ".join("?" * (len(row) - 2))
        with self._lock, self._database_errors():
            self._database.execute(
                f"INSERT INTO answers SELECT ?, (SELECT count(*) FROM answers WHERE key = ?), {places}", row
            )

    def count(self, reason: str) -> None:
        """One more request that the server did not answer, for this reason."""
        query = "INSERT INTO failures VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1"
        with self._lock, self._database_errors():
            self._database.execute(query, (reason,))

    def summary(self, prices: tuple[float, float] | None) -> dict[str, Any]:
        """What all answers took, and what was wrong with some.

        Args:
            prices: of a million tokens of prompts and of answers.
        """
        with self._lock, self._database_errors():
            rows = self._database.execute("SELECT prompt_tokens, completion_tokens, seconds FROM answers").fetchall()
            faults = self._database.execute(
                "SELECT fault, count(*) FROM answers WHERE critique IS NULL GROUP BY fault ORDER BY 2 DESC"
            ).fetchall()
            failures = self._database.execute("SELECT reason, count FROM failures ORDER BY 2 DESC").fetchall()
        tokens = {
            "prompt_tokens": sum(prompt or 0 for prompt, _, _ in rows),
            "completion_tokens": sum(completion or 0 for _, completion, _ in rows),
        }
        served = [row for row in rows if row[2] is not None]
        usage = summarize_usage([seconds for *_, seconds in served], tokens, prices)
        del usage["requests"]
        return {
            "answers": len(rows),
            **usage,
            "answers_without_token_counts": sum(None in row for row in served),
            "faults_of_answers": dict(faults),
            "unanswered_requests": dict(failures),
        }

    def _parsed(self, critique: str) -> Critique:
        try:
            return Critique.parse(critique)
        except JRMError as error:
            raise JRMError(f"{self._path} holds a critique that is none: {error}") from error

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JRMError(
                f"{self._path} cannot be used ({error}); make room, or move it away to ask everything again."
            ) from error
