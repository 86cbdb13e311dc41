"""Source code without what does not change its results: docstrings, comments and blank lines."""

import ast
import io
import tokenize


def statements(source: str) -> list[str]:
    """Return the lines of a module without docstrings, comments and blank lines.

    The lines themselves, not the syntax tree, whose printed form differs between versions of Python.

    Raises:
        SyntaxError: the source is not Python.

    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    ignored = _docstring_lines(source)
    return [line.rstrip() for number, line in enumerate(lines, 1) if number not in ignored and line.strip()]


def _docstring_lines(source: str) -> set[int]:
    numbers: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            numbers.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return numbers
