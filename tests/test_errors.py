"""Whatever a library raises of something that was given becomes one sentence; what is no fault of it stays as it is."""

import pytest

from jrm_plugin.errors import JRMError, as_jrm_error, reason, shortened


class PanicException(BaseException):
    """As the one that tokenizers' own language raises."""


class OutOfMemoryError(RuntimeError):
    """As torch's, of a GPU."""


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(5, "EIO"), ValueError(), RecursionError("deep"), PanicException("no")]
)
def test_it_becomes_a_sentence_with_its_reason(error):
    with pytest.raises(JRMError) as raised, as_jrm_error("row 3 cannot be read"):
        raise error
    assert str(raised.value) == f"row 3 cannot be read: {reason(error)}."
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [JRMError("mine."), MemoryError(), OutOfMemoryError(), KeyboardInterrupt(), LookupError()]
)
def test_it_stays_as_it_is(error):
    with pytest.raises(type(error)) as raised, as_jrm_error("row 3 cannot be read", but=(LookupError,)):
        raise error
    assert raised.value is error


def test_reasons_and_values_are_one_short_line():
    assert reason(KeyError("a")) == "KeyError: 'a'" and reason(ValueError("two\nlines.")) == "two lines"
    assert reason(TypeError()) == "TypeError" and len(reason(ValueError("x" * 1000))) == 300
    assert shortened([1]) == "[1]" and len(shortened("x" * 1000)) == 101
