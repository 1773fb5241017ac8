"""A command that was stopped goes on to what it would have made at once, and never mixes two runs."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_json
from jrm_plugin.runs import append_records, check_settings, locked, read_records

JSON = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), min_size=1, max_size=6)


@given(records=RECORDS, data=st.data())
def test_a_file_cut_at_any_byte_goes_on_to_the_same_file(records, data):
    with TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        append_records(path, records[:2])
        append_records(path, records[2:])
        whole = path.read_bytes()
        assert read_records(path) == records
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        done = read_records(path)
        assert done == records[: len(done)]
        for record in records[len(done) :]:
            append_records(path, [record])
        assert path.read_bytes() == whole


def test_reading_leaves_a_line_that_was_cut_off_where_it_is(tmp_path):
    """Whoever looks on while a command writes must not take its half line away."""
    path = tmp_path / "records.jsonl"
    path.write_bytes('{"a": 1}\n{"ä'.encode()[:-1])  # in the middle of a character
    assert read_records(path) == [{"a": 1}]
    assert path.read_bytes() == '{"a": 1}\n{"ä'.encode()[:-1]


def test_records_are_converted_and_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    append_records(path, [{"a": 1}, {"a": 2}, {"b": 3}])
    with pytest.raises(JRMError, match="line 3 is no record of such a run"):
        read_records(path, lambda record: record["a"])
    for line in ("no JSON\n", "3\n", "\n", "\xff\n"):
        path.write_bytes(b'{"a": 1}\n' + line.encode("latin-1"))
        with pytest.raises(JRMError, match=f"{path}, line 2 is no record"):
            read_records(path)
    with pytest.raises(JRMError, match="cannot be read"):
        read_records(tmp_path)
    with pytest.raises(JRMError, match="cannot be written"):
        append_records(tmp_path, [{}])


def test_settings_must_agree(tmp_path):
    path = tmp_path / "settings.json"
    settings = {"model": "a", "sizes": (1, 2), "seed": None}
    check_settings(path, settings, results=False)
    assert not path.exists()
    with pytest.raises(JRMError, match="results of an unknown run; choose another output folder"):
        check_settings(path, settings, results=True)
    write_json(path, settings)
    check_settings(path, settings, results=True)
    with pytest.raises(JRMError) as refused:
        check_settings(path, {"model": "b", "sizes": [1, 2], "rounds": 3}, results=False)
    assert str(refused.value) == (
        f"{tmp_path} holds a run with another model, rounds; "
        "go on with the same settings, or choose another output folder."
    )
    path.write_text(json.dumps(["model"]))
    with pytest.raises(JRMError, match="unknown run"):
        check_settings(path, settings, results=False)


def _hold(path: Path, begun) -> None:
    with locked(path):
        if os.fork() == 0:  # as data loader workers are
            time.sleep(5)
            os._exit(0)
        begun.set()
        signal.pause()


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with locked(path), pytest.raises(JRMError, match=f"the end of process {os.getpid()}"), locked(path):
        pass
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    other = fork.Process(target=_hold, args=(path, begun))
    other.start()
    assert begun.wait(60)
    held = pytest.raises(JRMError, match=f"is writing to {tmp_path}; wait for the end of process {other.pid}, or")
    with held, locked(path):
        pass
    os.kill(other.pid, signal.SIGKILL)  # its worker lives on, and the lock does not
    other.join()
    with locked(path):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()
