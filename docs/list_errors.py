"""Writes docs/errors.md: every code of an error, with the words that go with it, read off the source.

python docs/list_errors.py
"""

import ast
from pathlib import Path

from thinslice.cli.terminal import EXIT_CODES

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "src" / "thinslice"

HEAD = """# Errors

Every refusal of thinslice is one sentence: what was *got*, what is *needed*, what to do *next*. In Python it is an
exception of `thinslice.errors` with these three as fields, with `place` (the file or scan), `options` (the settings
that it speaks of), its cause, and a `code` that stays the same when the words change. All of them are
`thinslice.ThinsliceError`, which is a `ValueError`:

```python
import thinslice

try:
    thinslice.enhance("scan.nii.gz", factor=40).save("thin.nii.gz")
except thinslice.PlanRefused as refusal:
    print(refusal.code, refusal.next)
```

The command line prints the sentence on one line of standard error. `--debug` shows where it came from as well.

| exit code | meaning |
|---|---|
EXIT_CODES

## Codes

Written by `python docs/list_errors.py` from the source; `...` stands for what differs from case to case.

| code | what was got | what is needed | next |
|---|---|---|---|
"""


def main() -> None:
    """Writes the page."""
    (DOCS / "errors.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the text of the page, as the source is now."""
    rows: dict[str, tuple[str, str, str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "errors.py" and path.parent == SOURCE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for code, words in found_in(node):
                    if words[0] or code not in rows:
                        rows.setdefault(code, words)
    lines = [
        f"| `{code}` | {' | '.join(cell.replace('|', chr(92) + '|') for cell in rows[code])} |" for code in sorted(rows)
    ]
    exits = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return HEAD.replace("EXIT_CODES", exits) + "\n".join(lines) + "\n"


def found_in(call: ast.Call) -> list[tuple[str, tuple[str, str, str]]]:
    """Returns the codes that a call gives, and its words; several where the code depends on something."""
    given = {word.arg: word.value for word in call.keywords if word.arg}
    if "code" not in given:
        return []
    codes = [
        one.value for one in ast.walk(given["code"]) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
    positional = dict(zip(("got", "need", "next"), call.args, strict=False))
    got, need, then = (words_of(given.get(name, positional.get(name))) for name in ("got", "need", "next"))
    return [(code, (got, need, then)) for code in codes]


def words_of(node: ast.expr | None) -> str:
    """Returns a text with dots where something is put into it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    if isinstance(node, ast.BinOp):
        return words_of(node.left) + words_of(node.right)
    return "" if node is None else "..."


if __name__ == "__main__":
    main()
