"""Chat templates: programs of somebody else's checkpoint, run within bounds.

transformers runs them in a sandbox that keeps them from files and attributes, but not from loops that take years or a
text of many gigabytes. Here every value that a template computes is limited in size and charged to a budget of work,
and only filters and methods remain whose result is not much larger than what they are given. Within these bounds a
template renders as `apply_chat_template` does.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from transformers import PreTrainedTokenizerBase

from jrm_plugin.errors import JRMError

LONGEST = 2**16  # characters of a template, of a text that it makes, or items of a list with all that is in it
WORK = 200_000  # values computed and turns of loops in one rendering; 64 characters or items are one more
_PER_UNIT = 64

_FILTERS = "length count trim string items list first last default d upper lower safe int float abs reverse sort unique"
_FILTERS += " selectattr rejectattr select reject map min max dictsort"
_TEXT_METHODS = "startswith endswith split rsplit strip lstrip rstrip lower upper title capitalize removeprefix find"
_TEXT_METHODS += " removesuffix replace index count partition rpartition splitlines isdigit isspace isalpha"
_METHODS = {str: frozenset(_TEXT_METHODS.split()), dict: frozenset(("items", "keys", "values", "get"))}
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block, nodes.EvalContextModifier)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
) -> str:
    """What the tokenizer's chat template makes of a conversation.

    Raises:
        JRMError: there is no template, or it fails or goes beyond the bounds.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not isinstance(source, str) or len(source) > LONGEST:
        raise JRMError(f"the tokenizer's chat template must be a text of at most {LONGEST} characters.")
    try:
        return (
            _Environment()
            .from_string(source)
            .render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **tokenizer.special_tokens_map,
            )
        )
    except Exception as error:  # a template raises whatever its expressions raise
        line = " ".join(str(error).split())[:200].rstrip(".")
        raise JRMError(f"the tokenizer's chat template cannot be used: {line or type(error).__name__}.") from error


class _Environment(ImmutableSandboxedEnvironment):
    """For one rendering: it holds what is left of the budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self):
        # Not optimized: constants are computed while rendering, within the budget.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        own = {"bounded": self.bounded, "turns": self.turns, "join": self._join, "tojson": _to_json}
        self.filters = {name: self.filters[name] for name in _FILTERS.split()} | own
        self.filters["replace"] = lambda text, *arguments: self.call(None, str(text).replace, *arguments)
        self.globals = {"range": self.globals["range"], "namespace": Namespace} | {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form[:64]),
        }
        self.left = WORK

    def charge(self, size: int) -> None:
        if size > LONGEST:
            raise TemplateRuntimeError(f"a value is larger than {LONGEST} characters or items")
        self.left -= 1 + size // _PER_UNIT
        if self.left < 0:
            raise TemplateRuntimeError("it computes without an end")

    def bounded(self, value: Any) -> Any:
        """The value, which is not too large, all that is in it included."""
        size, inside = 0, [value]
        while inside and size <= LONGEST:
            item = inside.pop()
            size += len(item) if isinstance(item, (str, range)) else 1
            if isinstance(item, dict):
                inside += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple)):
                inside += item
            elif isinstance(item, Namespace):
                inside += item._Namespace__attrs.values()
            elif isinstance(item, int) and abs(item) > 2**63:
                raise TemplateRuntimeError("a number is too large")
        self.charge(size)
        return value

    def turns(self, items: Iterable, text_of_a_turn: int) -> Iterator:
        for item in items:
            self.charge(text_of_a_turn)
            yield item

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Bounds().visit(super()._parse(source, name, filename))

    def call(self, context: Any, function: Callable, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(function, "__self__", None)
        self.bounded([text if isinstance(text, str) else None, *args, *kwargs.values()])
        if getattr(function, "__name__", None) == "replace" and isinstance(text, str):
            self.charge((len(text) + 1) * max(1, len(str(args[1])) if len(args) > 1 else 1))
        return function(*args, **kwargs) if context is None else super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" or (operator in "*%" and not numbers):
            raise TemplateRuntimeError(f"{operator} of these values is not allowed")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is no method of `_METHODS`: a width in it makes a text of any length."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = isinstance(obj, (LoopContext, Namespace)) or attr in _METHODS.get(type(obj), ())
        return allowed and super().is_safe_attribute(obj, attr, value)

    def _join(self, values: Iterable, separator: str = "", attribute: str | None = None) -> str:
        texts = [str(value if attribute is None else self.getitem(value, attribute)) for value in values]
        self.charge(sum(map(len, texts)) + len(separator) * len(texts))
        return separator.join(texts)


class _Bounds(NodeTransformer):
    """Puts every value that is computed, and every turn of a loop, through the environment's budget."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, _REFUSED) or (isinstance(node, nodes.For) and node.recursive):
            raise TemplateRuntimeError(f"{type(node).__name__.lower()} is not allowed")
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.iter = _filtered(node.iter, "turns", nodes.Const(text))
        elif isinstance(node, nodes.AssignBlock):
            node.filter = node.filter or _filtered(None, "bounded")
        elif isinstance(node, nodes.CallBlock):
            node.call = node.call.node  # must be the call itself
        elif isinstance(node, nodes.Concat) and len(node.nodes) > _PER_UNIT:
            raise TemplateRuntimeError(f"~ joins more than {_PER_UNIT} texts")
        stored = getattr(node, "ctx", "load") != "load" or isinstance(
            node, (nodes.NSRef, nodes.Slice, nodes.TemplateData)
        )
        return _filtered(node, "bounded") if isinstance(node, nodes.Expr) and not stored else node


def _filtered(node: nodes.Expr | None, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=getattr(node, "lineno", 1))


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple | None = None,
    sort_keys: bool = False,
) -> str:
    indent = None if indent is None else max(0, min(int(indent), 8))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateRuntimeError(message)
