"""Writes `jinja.json`: snippets of our own, in the manner of Jinja's and transformers' tests, and what transformers makes of each.

Run with the project's Python: .venv/bin/python tests/peer_cases/capture_jinja.py
"""

import itertools
import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

MESSAGES = [
    {"role": "system", "content": " You mind the mill. "},
    {"role": "user", "content": "How heavy?\nSack <3> & 'four'"},
    {
        "role": "assistant",
        "content": "25 kg",
        "tool_calls": [{"name": "weigh", "arguments": {"b": 1.5, "a": [1, None, True]}}],
    },
    {"role": "tool", "content": "", "name": "weigh"},
]
VALUES = {
    "text": "' The mill-wheel, TURNS. '",
    "word": "'oats'",
    "numbers": "[3, 1, 2]",
    "texts": "['b', 'a', 'C']",
    "table": "{'b': 1, 'a': [2, 'x'], 'C': none}",
    "number": "7",
    "real": "2.50",
    "nothing": "none",
    "yes": "true",
    "empty": "''",
}
FILTERS = [
    "abs", "capitalize", "count", "default('d')", "default('d', true)", "dictsort", "escape", "first", "float", "int", "items",
    "join('-')", "join", "last", "length", "list", "lower", "max", "min", "reverse", "round", "safe", "sort", "string", "sum",
    "title", "tojson", "tojson(indent=2)", "trim", "upper", "unique", "replace('a', 'o')", "e", "wordcount", "indent(2)",
    "batch(2)", "slice(2)", "map('string')", "select", "reject", "format", "truncate(5)", "urlencode", "center(9)", "random",
    "sort(reverse=true)", "first | string", "list | length", "string | length",
]  # fmt: skip
TESTS = [
    "boolean", "defined", "divisibleby(2)", "eq(7)", "even", "false", "float", "ge(2)", "gt(2)", "in([7, 'oats'])", "integer",
    "iterable", "le(7)", "lower", "lt(9)", "mapping", "ne(7)", "none", "number", "odd", "sameas(true)", "sequence", "string",
    "true", "undefined", "upper", "not none", "not string",
]  # fmt: skip
METHODS = [
    "text.strip()", "text.split()", "text.split('-')", "text.split(',', 1)", "text.upper()", "text.lower()", "text.title()",
    "text.startswith(' The')", "text.endswith('. ')", "text.replace('mill', 'saw')", "text.find('mill')", "text.lstrip()",
    "text.rstrip()", "text.strip(' .')", "text[1:4]", "text[::-1]", "text[-3]", "text.count('l')", "text.index('m')",
    "text.isdigit()", "text.splitlines()", "text.rfind('l')", "text.capitalize()", "text.join(['a', 'b'])", "text.partition('-')",
    "table.items()", "table.keys()", "table.values()", "table.get('b')", "table.get('z')", "table.get('z', 9)", "table.a", "table['a'][0]",
    "table.z is defined", "table.a[-1]", "numbers[0]", "numbers[-1]", "numbers[1:]", "numbers[::-1]", "numbers + [4]", "numbers.index(1)", "numbers.count(1)",
    "'mill' in text", "3 in numbers", "'b' in table", "7 not in numbers", "number + 1", "number / 2", "number // 2", "number % 4",
    "number ** 2", "-number", "number * 1.5", "real + 1", "'x' * 3", "'a' ~ 1 ~ nothing ~ true", "number > 3 and 'y' or 'n'",
    "1 < number < 9", "'y' if number else 'n'", "'y' if empty", "none == false", "1 == true", "[1, [2, 'x']]", "(1, 2)",
    "{'k': [none, true, 1.0]}", "range(3) | list", "range(1, 9, 3) | list", "[] or 'none'", "not numbers", "'%s and %s' % ('a', 2)",
    "'%05d' % 7", "messages | length", "messages[1].content", "messages[-1]['name']", "messages | map(attribute='role') | list",
    "messages | selectattr('role', 'equalto', 'user') | list | length", "messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join(',')",
    "messages[2].tool_calls[0].arguments | tojson", "messages[2].tool_calls[0].arguments", "messages[0].content | trim",
    "messages | selectattr('tool_calls', 'defined') | list | length", "messages[1].content.split('\\n')[0]", "1.0", "1e3", "1_000",
    "dict(a=1, b='x')", "namespace(a=1).a", "lipsum is defined", "cycler is defined", "joiner is defined", "messages[9] is defined",
    "missing is defined", "missing | default('d')", "missing", "'é' | upper", "'😀' | length", "'ß' | upper", "'a\\tb' | tojson",
    "'é' | tojson", "'é' | tojson(ensure_ascii=true)", "1.10 | string", "0.1 + 0.2", "10 ** 20", "7 | float", "'7' | int + 1", "3.7 | int",
    "'x' | int(5)", "none | string", "true | int", "[1, 2] | tojson(separators=(',', ':'))", "{'b': 1, 'a': 2} | tojson(sort_keys=true)",
]  # fmt: skip
BLOCKS = [
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ m.role }};{% endfor %}",
    "{% for m in messages if m.role != 'tool' %}{{ m.role }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}/{{ loop.revindex }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }} {% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = i %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
    "{% set x %}a{{ 1 + 1 }}b{% endset %}{{ x }}|{{ x | length }}",
    "{% macro f(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}",
    "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% call(x) f() %}{{ x }}!{% endcall %}{% macro f() %}{% endmacro %}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}",
    "{% filter upper %}mill {{ 'wheel' }}{% endfilter %}",
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{{ s | trim }}{% endif %}",
    "{%- if true -%}\n  x  \n{%- endif -%}\n y",
    "{% if false %}a{% elif 1 %}b{% else %}c{% endif %}",
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "  {% if true %}\n  b\n  {% endif %}\n",
    "{# a comment #}x{#- trimmed -#} y",
    "{% raw %}{{ x }}{% endraw %}",
    "{{ '{{' }}{{ '}}' }}",
    "{% for a in [1, 2, 3, 4] %}{% if a == 2 %}{% continue %}{% endif %}{% if a == 4 %}{% break %}{% endif %}{{ a }}{% endfor %}",
    "{% for a in [1, 2] %}{% for b in 'xy' %}{{ loop.index }}{{ a }}{{ b }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for a in 'abc' %}{{ loop.previtem }}{{ a }}{{ loop.nextitem }};{% endfor %}",
    "{% for a in 'abcd' %}{{ loop.cycle('x', 'y') }}{% endfor %}",
    "{% for a in [1, 1, 2] %}{{ loop.changed(a) }}{% endfor %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a is defined }}",
    "{% generation %}x{% endgeneration %}",
    "{{ messages | tojson }}",
    "{{ messages[2] | tojson(indent=4) }}",
    "{{ messages }}",
    "{% for m in messages[1:] %}{{ m['role'] }}{% endfor %}",
    "{% for m in messages | reverse %}{{ m.role }}{% endfor %}",
    "{% for r, g in messages | groupby('role') %}{{ r }}{{ g | length }}{% endfor %}",
    "{% for item in [1, [2, 3]] recursive %}{{ loop(item) if item is iterable else item }}{% endfor %}",
    "{{ raise_exception('no') if false else 'yes' }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set d = dict(x=1) %}{{ d.x }}",
    "{{ strftime_now is defined }}",
    "{% for m in messages %}{% if loop.last and m.role == 'tool' %}end{% endif %}{% endfor %}",
]


def snippets():
    setup = "".join(f"{{% set {name} = {value} %}}" for name, value in VALUES.items())
    for name, use in itertools.product(VALUES, FILTERS):
        if use != "random":
            yield setup + f"{{{{ {name} | {use} }}}}", f"{name} | {use}"
    for name, test in itertools.product(VALUES, TESTS):
        yield setup + f"{{{{ {name} is {test} }}}}", f"{name} is {test}"
    for use in METHODS:
        yield setup + f"{{{{ {use} }}}}", use
    for block in BLOCKS:
        yield block, block


def main():
    cases = []
    for source, name in snippets():
        try:
            text = _compile_jinja_template(source).render(messages=MESSAGES, add_generation_prompt=False)
        except Exception:
            continue
        if " at 0x" not in text:
            cases.append([name, text])
    data = {"origin": "transformers 5.23", "values": VALUES, "messages": MESSAGES, "cases": cases}
    Path(__file__).with_name("jinja.json").write_text(json.dumps(data, ensure_ascii=False, indent=None) + "\n")
    print(len(cases))


if __name__ == "__main__":
    main()
