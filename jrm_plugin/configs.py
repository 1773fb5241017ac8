"""YAML configs: every key and value is checked against the dataclass that takes it, before anything is loaded."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.files import read_text

# Bounds of a config. Aliases make a few lines stand for billions of values, so values are counted as they are used.
_MOST_BYTES = 200_000
_MOST_VALUES = 20_000

# --- the file ---------------------------------------------------------------------------------------------------------


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file: texts, finite numbers, booleans, null, and lists and mappings of them.

    Raises:
        JRMError: the file cannot be read, is no YAML mapping, is larger than any config, names a key twice, or holds
            another kind of value, such as a date.
    """
    what = f"the config {path}"
    try:
        loader = yaml.SafeLoader(read_text(path, most=_MOST_BYTES))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise JRMError(f"{what} must hold keys and values, such as `model: …`.")
        _check_nodes(root, what)
        content = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise JRMError(f"{what} is no valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise JRMError(f"{what} is nested too deep; write it with fewer levels.") from None
    except JRMError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML's, of `!!int x` or the 40th of May
        raise JRMError(f"{what} holds a value that is not what it looks like ({error}); put it in quotes.") from error
    _check_plain(content, what, "")
    return content


def _check_nodes(root: yaml.Node, what: str) -> None:
    """Before anything is made of them: no key twice in one mapping, and not too many values."""
    count, nodes = 1, [root]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode):
            continue
        count += len(node.value)
        if count > _MOST_VALUES:
            raise JRMError(f"{what} holds more than {_MOST_VALUES} values, or one that holds itself; write fewer.")
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        else:
            keys = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        line = key.start_mark.line + 1
                        raise JRMError(f"{what}, line {line}: the key {key.value} is there twice; give it once.")
                    keys.add(key.value)
            nodes += [part for pair in node.value for part in pair]


def _check_plain(value: Any, what: str, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise JRMError(f"{what} has the key {key!r}{_inside(name)}, which is no text; put it in quotes.")
            _check_plain(key, what, name)
            _check_plain(item, what, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, what, name)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise JRMError(
                f"{what} has {value!r}{_inside(name)}, with a character that no text may hold; leave it out."
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise JRMError(f"{what} has {value}{_inside(name)}; give a finite number.")
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            raise JRMError(f"{what} has a number of more than 64 bits{_inside(name)}; give a smaller one.")
    elif value is not None:
        raise JRMError(f"{what} has {str(value)!r}{_inside(name)}, a {type(value).__name__}; put text in quotes.")


def _inside(name: str) -> str:
    return f" in {name}" if name else ""


# --- its keys and values ----------------------------------------------------------------------------------------------


def check_config(
    content: Mapping[str, Any],
    kinds: Sequence[type],
    what: str,
    *,
    also: Mapping[str, Any] | None = None,
    required: bool = True,
) -> dict[str, Any]:
    """The values of a mapping, each as one of the dataclasses `kinds` declares it.

    A number may be written as text (YAML takes 1e-3 for text), a truth value as `"true"`.

    Args:
        content: keys and plain values.
        kinds: dataclasses whose fields the keys are.
        what: names the mapping in errors, "the config x.yaml".
        also: further types of fields that take more than they declare, by name.
        required: whether fields without a default must be there.

    Raises:
        JRMError: a key is unknown or missing, or a value or an item of a list has another type.
    """
    types = {}
    for kind in kinds:
        hints = get_type_hints(kind)
        for field in fields(kind):
            if not field.init:
                continue
            types[field.name] = hints[field.name] | None if field.default is None else hints[field.name]
            no_default = field.default is MISSING and field.default_factory is MISSING
            if required and no_default and field.name not in content:
                raise JRMError(f"{what} has no {field.name}; give it.")
    checked = {}
    for name, value in content.items():
        if name not in types:
            near = get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(types)}."
            raise JRMError(f"{what} has the unknown key {name}; {hint if len(hint) < 400 else 'check its spelling.'}")
        expected = types[name] | also[name] if also and name in also else types[name]
        try:
            checked[name] = _as_declared(value, expected, f"{what}, {name}")
        except _WrongType:
            advice = "; put text in quotes" if str in _options(expected) and not isinstance(value, (list, dict)) else ""
            raise JRMError(
                f"{what} cannot be used: {name} must be {_in_words(expected)}, not {shortened(value)}{advice}."
            ) from None
    return checked


class _WrongType(Exception):
    pass


def _options(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _as_declared(value: Any, kind: Any, what: str) -> Any:
    options = _options(kind)
    bases = {get_origin(option) or option: option for option in options}
    if Any in options or (value is None and type(None) in options):
        return value
    if any(get_origin(option) is Literal and value in get_args(option) for option in options):
        return value
    if type(value) in bases and not isinstance(value, (list, dict)):
        return value
    if float in options and type(value) is int:
        return value
    if isinstance(value, list) and list in bases:
        (item_kind,) = get_args(bases[list]) or (Any,)
        if is_dataclass(item_kind):
            return [_mapping(item, item_kind, what) for item in value]
        if item_kind is not Any and len({isinstance(item, str) for item in value}) > 1:
            raise _WrongType  # a text beside numbers may mean either
        return [_as_declared(item, item_kind, what) for item in value]
    if isinstance(value, dict) and dict in bases:
        _, item_kind = get_args(bases[dict]) or (str, Any)
        return {key: _as_declared(item, item_kind, what) for key, item in value.items()}
    if isinstance(value, str):
        return _from_text(value, options)
    raise _WrongType


def _mapping(value: Any, kind: type, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongType
    return check_config(value, (kind,), what)


def _from_text(value: str, options: tuple) -> bool | int | float:
    if bool in options and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for number in (int, float):
        if number in options:
            try:
                result = number(value)
            except ValueError:
                continue
            if math.isfinite(result) and abs(result) < 2**63:
                return result
    raise _WrongType


def _in_words(kind: Any) -> str:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    said = []
    for option in _options(kind):
        if get_origin(option) is list or option is list:
            (item,) = get_args(option) or (Any,)
            items = {str: " of texts", int: " of whole numbers", float: " of numbers"}.get(item, "")
            said.append("a list" + (" of mappings" if is_dataclass(item) else items))
        elif get_origin(option) is dict:
            said.append("a mapping")
        elif option in words:
            said.append(words[option])
        elif isinstance(option, type) and issubclass(option, Enum) and "text" not in said:
            said.append("text")
    return " or ".join(dict.fromkeys(said)) or "left out"


def set_environment(variables: Any, what: str) -> None:
    """Sets the environment variables of a config's `env:` block."""
    if not isinstance(variables, dict):
        raise JRMError(f"{what} cannot be used: env must be a mapping of variables, not {shortened(variables)}.")
    for name, value in variables.items():
        if not name or "=" in name or not isinstance(value, (str, int, float)):
            raise JRMError(
                f"{what} cannot be used: env must give each variable a text, not {name}: {shortened(value)}."
            )
    os.environ.update({name: str(value) for name, value in variables.items()})
