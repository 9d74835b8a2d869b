"""Rewrites the expected values of cases.json with what Python's Jinja2 renders.

Needs Jinja2 3.1; run as: python tests/tokenizer/jinja/update_cases.py
The environment is the one chat templates are written for: sandboxed, blocks trimmed, loop controls,
tojson without HTML escapes, raise_exception.
"""

import json
import pathlib

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CASES = pathlib.Path(__file__).with_name("cases.json")


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message):
    raise TemplateError(message)


def main():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    cases = json.loads(CASES.read_text())
    for case in cases:
        case.pop("expected", None)
        case.pop("error", None)
        try:
            case["expected"] = environment.from_string(case["template"]).render(**case["context"])
        except (TemplateError, TypeError, ValueError, ArithmeticError):
            case["error"] = True
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    CASES.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
