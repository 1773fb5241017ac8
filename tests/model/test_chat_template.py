"""Chat templates render as transformers renders them, within bounds of work and size."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from jrm_plugin.errors import JRMError
from jrm_plugin.model.chat_template import render

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]


class Template:
    """What `render` takes of a tokenizer."""

    def __init__(self, chat_template):
        self.chat_template, self.special_tokens_map = chat_template, {"eos_token": "<end>"}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if loop.first %}S\n{% endif %}{{ m.role }}:{% for b in m.content %}"
        "{% if b.type == 'image' %}<I>{% else %}{{ b.text }}{% endif %}{% endfor %}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}",
        "{%- set ns = namespace(n=0, t='') %}{%- for m in messages[::-1] %}{%- set ns.n = ns.n + loop.index0 + 1 %}"
        "{%- set ns.t = ns.t ~ m['role'] %}{%- endfor %}{{ ns.n }}{{ ns.t | upper }}{{ messages | tojson }}",
        "{% macro f(c, d=false) %}[{{ c }}{{ d }}]{% endmacro %}{{ f(3) }}{{ f('x', true) }}{{ messages|length - 1 }}",
        "{% set b %}block{% endset %}{{ b | trim }}{{ 'abc'.replace('b', 'zz') }}{{ 'a,b'.split(',')[-1] }}"
        "{{ messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('-') }}",
        "{% for k, v in messages[0] | items %}{{ k }}{% if v is defined and v is iterable %}!{% endif %}{% endfor %}"
        "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i * 2 ~ 'x' }}{% endfor %}",
        "{% macro f() %}({{ caller(4) }}){% endmacro %}{% call(z) f() %}{{ z }}{% endcall %}"
        "{{ tools is none }}{% generation %}g{% endgeneration %}{% if messages[0].role.startswith('us') %}Y{% endif %}",
    ],
)
def test_a_template_renders_as_transformers_renders_it(template):
    theirs = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, eos_token="<end>")
    assert render(Template(template), MESSAGES, add_generation_prompt=True) == theirs[0][0]


LOOP = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3, "computes without an end"),
        (LOOP + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "a value is larger than"),
        (LOOP + "{% set ns.x = ns.x + ns.x %}{% endfor %}", "a value is larger than"),
        (LOOP + "{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}", "a value is larger than"),
        (LOOP + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}", "a value is larger than"),
        (LOOP + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}", "a value is larger than"),
        (
            "{% set x %}{% for i in range(60000) %}" + "y" * 60000 + "{% endfor %}{% endset %}",
            "computes without an end",
        ),
        ("{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(100) }}", "without an end"),
        ("{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}", "for is not allowed"),
        ("{{ 'x' * 9999999999 }}", r"\* of these values"),
        ("{{ 10 ** 10 ** 10 }}", r"\*\* of these values"),
        ("{{ '%9999999999d' % 1 }}", "% of these values"),
        ("{{ '{:9999999999}'.format(1) }}", "attribute 'format' .* is unsafe"),
        ("{{ (5).to_bytes(9999999999, 'big') }}", "attribute 'to_bytes' .* is unsafe"),
        ("{{ 'a' | center(9999999999) }}", "No filter named 'center'"),
        ("{{ lipsum(100000) }}", "'lipsum' is undefined"),
        ("{% include 'x' %}", "include is not allowed"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "recursion"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('only for text') }}", "only for text"),
        ("x" * 70_000, "a text of at most 65536 characters"),
        (None, "a text of at most 65536 characters"),
    ],
)
def test_a_template_beyond_its_bounds_is_refused(template, message):
    with pytest.raises(JRMError, match=f"chat template .*{message}"):
        render(Template(template), MESSAGES)
