"""Pickles from the network, read without `pickle`: what a trainer's client sends, and nothing else, ever comes to be.

A pickle is a program for a small machine, and its names are functions that this program calls. This is another machine:
it knows containers, numbers, texts, bytes, PIL's images and numpy's arrays, and for each name on its list what is to be
made of it. No name is imported, nothing is called, and an instruction that is not listed ends the reading before
anything is made. `pickletools` (of the standard library) splits the bytes into instructions.

What is read stays small: as many instructions as `MAX_OBJECTS`, values no deeper than `MAX_DEPTH` and no larger than
`MAX_OBJECTS`, where an object that stands in several places counts in each; images and arrays as large as the bytes
that came for them.
"""

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jrm_plugin.errors import JRMError, reason

MAX_OBJECTS = 2**17
MAX_DEPTH = 32
MAX_ARRAY_DIMENSIONS = 8
# Python hashes a larger number to a smaller one, so that a dict of such keys could be made to take hours.
MAX_KEY = 2**31
MAX_NUMBER = 2**64

_BROKEN = "is damaged"

_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "BYTEARRAY8"}
_VALUES |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

# The names that a pickle may use, as `module name`; numpy 1 and Python 2 have other modules for some.
_IMAGE = re.compile(r"PIL\.Image Image|PIL\.(?:[A-Za-z0-9]+)ImagePlugin [A-Za-z0-9]+ImageFile")
_ARRAY_CLASS, _DTYPE = re.compile("numpy ndarray"), re.compile("numpy dtype")
_ARRAY = re.compile(r"numpy\.(?:_core|core)\.multiarray _reconstruct")
_SCALAR = re.compile(r"numpy\.(?:_core|core)\.multiarray scalar")
_BUFFER = re.compile(r"numpy\.(?:_core|core)\.numeric _frombuffer")
_BYTES = re.compile(r"_codecs encode|(?:__builtin__|builtins) (?:bytes|bytearray)")
_SET = re.compile("(?:__builtin__|builtins) (?:set|frozenset)")
_ORDERED = re.compile("collections OrderedDict")
_NAMES = (_IMAGE, _ARRAY_CLASS, _DTYPE, _ARRAY, _SCALAR, _BUFFER, _BYTES, _SET, _ORDERED)

_PLAIN = re.compile("b1|[iu][1248]|f[248]|U[1-9][0-9]{0,4}")  # dtypes: numbers and texts; no objects, no records
# Bytes of a pixel in the modes that have whole ones.
_PIXEL_BYTES = {"L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4, "YCbCr": 3, "HSV": 3}
_PIXEL_BYTES |= {"I": 4, "F": 4, "I;16": 2}


class _Refused(Exception):
    """What is wrong, as the middle of a sentence."""


class _Name(str):
    """A function or class of the list, as `module name`; it stands for itself and is never looked up."""


class _Begun:
    """What is made in two steps: the first says of which kind it is, the second what is in it."""

    def __init__(self, finish: Callable[[Any], Any]):
        self.finish, self.is_done, self.value = finish, False, None


_MARK = object()


def read_pickle(data: bytes) -> Any:
    """The value in a pickle of any protocol, made of plain containers, numbers, texts, bytes, images and arrays.

    Images are `PIL.Image.Image`s whose pixels are there; a set comes as a `set`, an `OrderedDict` as a `dict`, a
    number of numpy as Python's.

    Raises:
        JRMError: the pickle holds anything else, is damaged or cut off, or would become too large or too deep.
    """
    machine = _Machine()
    try:
        return machine.run(data)
    except _Refused as refused:
        what = str(refused)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, UnicodeError) as error:  # broken bytes
        what = f"is damaged or cut off ({reason(error)})"
    raise JRMError(
        f"the pickle {what}, near byte {machine.position}; send plain containers, numbers, texts, bytes, PIL images "
        "and arrays of numbers or texts."
    )


class _Machine:
    def __init__(self) -> None:
        self.position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # Containers are told apart by their place in memory; all are kept, so that none takes the place of another.
        self._containers: list[Any] = []
        self._extents: dict[int, tuple[int, int]] = {}  # how deep each is, and how many values it unfolds to
        self._parts: set[int] = set()  # those that are part of another: they change no more, so there are no circles
        self._arguments: set[int] = set()  # tuples that hold names or unfinished objects: they go into calls only

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            self.position = position or 0
            if count == MAX_OBJECTS:
                raise _Refused(f"has more than {MAX_OBJECTS} instructions")
            name = opcode.name
            if name == "STOP":
                return self._end(len(data))
            if name in ("PROTO", "FRAME"):
                continue
            if name in _VALUES:
                self._stack.append(_plain(argument))
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif step := _STEPS.get(name):
                step(self, argument)
            else:
                raise _Refused(f"has the instruction {name}, which nothing plain needs")
        raise _Refused("has no end")

    def _end(self, length: int) -> Any:
        if self.position + 1 != length:
            raise _Refused("goes on behind its end")
        value = self._pop()
        if self._stack:
            raise _Refused("ends with more than one value")
        self._extent_with([value])
        return value

    # -- the stack and the memo

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise _Refused(_BROKEN)
        return value

    def _pops(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _to_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _memoize(self, index: int | None) -> None:
        """The instruction `MEMOIZE` has no index; it counts."""
        if self._stack[-1] is _MARK:
            raise _Refused(_BROKEN)
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        value = self._memo[index]
        self._stack.append(value.value if isinstance(value, _Begun) and value.is_done else value)

    # -- containers

    def _new(self, container: Any, values: list[Any]) -> None:
        """A new list, dict or set on the stack, with values."""
        self._containers.append(container)
        self._extents[id(container)] = (1, 1)
        self._stack.append(container)
        if values:
            self._fill(type(container), values)

    def _tuple(self, values: list[Any]) -> None:
        made = tuple(values)
        self._containers.append(made)
        if any(isinstance(value, (_Name, _Begun, np.dtype)) for value in values):
            self._arguments.add(id(made))
        else:
            self._extents[id(made)] = self._extent_with(values)
        self._stack.append(made)

    def _fill(self, kind: type, values: list[Any]) -> None:
        """Puts values into the container on the stack."""
        container = self._stack[-1]
        if type(container) is not kind:
            raise _Refused(_BROKEN)
        self._extents[id(container)] = self._extent_with(values, container)
        if id(container) in self._parts:
            raise _Refused("changes a container that is part of another, or of itself")
        if kind is list:
            container += values
        elif kind is set:
            container.update(map(_key, values))
        elif len(values) % 2:
            raise _Refused(_BROKEN)
        else:
            container.update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def _extent_with(self, values: list[Any], container: Any = None) -> tuple[int, int]:
        """How deep and how large a container is with these values, which are part of it from now on."""
        depth, size = self._extents[id(container)] if container is not None else (1, 1)
        for value in values:
            if value is _MARK or isinstance(value, (_Name, _Begun, np.dtype)) or id(value) in self._arguments:
                raise _Refused("holds a name or an unfinished object as a value")
            value_depth, value_size = self._extents.get(id(value), (0, 1))
            if type(value) in (list, dict, set, tuple):
                self._parts.add(id(value))
            depth, size = max(depth, value_depth + 1), size + value_size
        if depth > MAX_DEPTH:
            raise _Refused(f"is nested more than {MAX_DEPTH} deep")
        if size > MAX_OBJECTS:
            raise _Refused(f"unfolds to more than {MAX_OBJECTS} values")
        return depth, size

    # -- names, and what is made of them

    def _named(self, name: str) -> None:
        if not any(pattern.fullmatch(name) for pattern in _NAMES):
            raise _Refused(f"asks for {name.replace(' ', '.', 1)[:80]!r}")
        self._stack.append(_Name(name))

    def _named_by_stack(self, _: Any) -> None:
        module, name = self._pops(2)
        if type(name) is not str or type(module) is not str:
            raise _Refused(_BROKEN)
        self._named(f"{module} {name}")

    def _call(self, _: Any) -> None:
        name, arguments = self._pops(2)
        if type(name) is not _Name or type(arguments) is not tuple:
            raise _Refused("calls what is no function")
        if _DTYPE.fullmatch(name):
            self._stack.append(_dtype(*arguments))
        elif _ARRAY.fullmatch(name):
            self._stack.append(_Begun(_array_of_state))
        elif _BUFFER.fullmatch(name):
            self._stack.append(_array(*arguments))
        elif _SCALAR.fullmatch(name):
            dtype, content = arguments
            self._stack.append(_array(content, dtype, (), "C").item())
        elif _BYTES.fullmatch(name):
            self._stack.append(_bytes(*arguments))
        elif _ORDERED.fullmatch(name) and not arguments:
            self._new({}, [])
        elif _SET.fullmatch(name) and len(arguments) == 1 and type(arguments[0]) is list:
            self._new(set(), arguments[0])
        else:
            raise _Refused("calls what is no function")

    def _object(self, _: Any) -> None:
        name, arguments = self._pops(2)
        if type(name) is not _Name or not _IMAGE.fullmatch(name) or arguments != ():
            raise _Refused("makes an object that is no image")
        self._stack.append(_Begun(_picture))

    def _build(self, _: Any) -> None:
        state, begun = self._pop(), self._stack[-1]
        if type(begun) is not _Begun or begun.is_done:
            raise _Refused("changes an object that is no new image or array")
        begun.value, begun.is_done = begun.finish(state), True
        self._stack[-1] = begun.value


def _key(value: Any) -> Any:
    """What may be a key of a dict or a member of a set: it is found there in one step."""
    if type(value) in (str, bytes, bool, type(None)) or (type(value) is int and abs(value) < MAX_KEY):
        return value
    raise _Refused("has a key that is neither text nor a small number")


def _plain(value: Any) -> Any:
    if type(value) is int and abs(value) > MAX_NUMBER:
        raise _Refused("holds a whole number of more than 64 bits")
    return bytes(value) if type(value) is bytearray else value


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine._stack.append(_MARK),
    "EMPTY_TUPLE": lambda machine, _: machine._tuple([]),
    "EMPTY_LIST": lambda machine, _: machine._new([], []),
    "EMPTY_DICT": lambda machine, _: machine._new({}, []),
    "EMPTY_SET": lambda machine, _: machine._new(set(), []),
    "TUPLE": lambda machine, _: machine._tuple(machine._to_mark()),
    "TUPLE1": lambda machine, _: machine._tuple(machine._pops(1)),
    "TUPLE2": lambda machine, _: machine._tuple(machine._pops(2)),
    "TUPLE3": lambda machine, _: machine._tuple(machine._pops(3)),
    "LIST": lambda machine, _: machine._new([], machine._to_mark()),
    "DICT": lambda machine, _: machine._new({}, machine._to_mark()),
    "FROZENSET": lambda machine, _: machine._new(set(), machine._to_mark()),
    "APPEND": lambda machine, _: machine._fill(list, machine._pops(1)),
    "APPENDS": lambda machine, _: machine._fill(list, machine._to_mark()),
    "SETITEM": lambda machine, _: machine._fill(dict, machine._pops(2)),
    "SETITEMS": lambda machine, _: machine._fill(dict, machine._to_mark()),
    "ADDITEMS": lambda machine, _: machine._fill(set, machine._to_mark()),
    "GLOBAL": _Machine._named,
    "STACK_GLOBAL": _Machine._named_by_stack,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._object,
    "BUILD": _Machine._build,
}
_STEPS |= dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine._memoize)
_STEPS |= dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._recall)


# --- images and arrays ------------------------------------------------------------------------------------------------


def _bytes(content: Any = b"", encoding: Any = None) -> bytes:
    """Bytes; as protocols below 3 spell them, text and the encoding that makes them of it."""
    if type(content) is str and encoding in ("latin1", "latin-1"):
        return content.encode("latin-1")
    if type(content) is not bytes or encoding is not None:
        raise _Refused("makes bytes of something else")
    return content


def _picture(state: Any) -> Image.Image:
    """An image of what Pillow saves of one: `[info, mode, size, palette, pixels]`, and more of a file."""
    if type(state) not in (list, tuple) or not 5 <= len(state) <= 8:
        raise _Refused("holds an image in a form that is not Pillow's")
    info, mode, size, palette, pixels = state[:5]
    whole = type(size) is tuple and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if type(mode) is not str or not whole or type(pixels) is not bytes:
        raise _Refused("holds an image in a form that is not Pillow's")
    width, height = size
    if mode not in _PIXEL_BYTES and mode != "1":
        raise _Refused(f"holds an image of the mode {mode[:20]!r}; convert it to RGB")
    expected = height * ((width + 7) // 8 if mode == "1" else width * _PIXEL_BYTES[mode])
    if len(pixels) != expected:
        raise _Refused(f"holds an image of {width}x{height} pixels with {len(pixels)} bytes instead of {expected}")
    picture = Image.frombytes(mode, size, pixels)
    if mode in ("P", "PA"):
        small = type(palette) is list and len(palette) <= 768
        if not small or not all(type(value) is int and 0 <= value <= 255 for value in palette):
            raise _Refused("holds an image whose palette is none")
        picture.putpalette(palette)
    transparency = info.get("transparency") if type(info) is dict else None
    if mode == "P" and type(transparency) in (bytes, int):  # which colours of the palette are seen through
        if not (0 <= transparency <= 255 if type(transparency) is int else len(transparency) <= 256):
            raise _Refused("holds an image whose transparency is none")
        picture.info["transparency"] = transparency
    return picture


def _dtype(name: Any, align: Any = False, copy: Any = False) -> "_Begun":
    """`numpy.dtype("f4")`, whose order of bytes is in the state that follows."""
    if type(name) is not str or not _PLAIN.fullmatch(name):
        raise _Refused(f"holds an array of {str(name)[:20]!r}, which are no plain numbers or texts")

    def finish(state: Any) -> np.dtype:
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise _Refused(_BROKEN)
        if any(part is not None for part in state[2:5]):
            raise _Refused("holds an array of records")
        return np.dtype(name).newbyteorder(state[1])

    return _Begun(finish)


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if type(content) is not bytes or not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise _Refused("holds an array in a form that is not numpy's")
    shape = (shape,) if type(shape) is int else shape
    if type(shape) is not tuple or len(shape) > MAX_ARRAY_DIMENSIONS:
        raise _Refused("holds an array in a form that is not numpy's")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise _Refused("holds an array in a form that is not numpy's")
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        shown = list(shape) if expected < 2**63 else "too many"
        raise _Refused(f"holds an array of {shown} numbers with {len(content)} bytes, which are not as many")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _array_of_state(state: Any) -> np.ndarray:
    """`(version, shape, dtype, is_fortran, bytes)`."""
    if type(state) is not tuple or len(state) != 5 or type(state[3]) is not bool:
        raise _Refused("holds an array in a form that is not numpy's")
    return _array(state[4], state[2], state[1], "F" if state[3] else "C")
