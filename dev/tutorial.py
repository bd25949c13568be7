"""Runs the tutorial notebook without Jupyter, cell by cell in one process, and stores what it prints and draws.

`python dev/tutorial.py` does so with docs/tutorial.ipynb; a test runs it and compares. A line that begins with % is for
Jupyter alone. Of a cell's last expression a figure becomes a picture, and any other value its text, as in Jupyter.
"""

import ast
import base64
import json
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def read(path: Path = TUTORIAL) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def run(notebook: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell, in the notebook's own form."""
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [_run_cell("".join(cell["source"]), names, number) for number, cell in enumerate(cells, 1)]


def _run_cell(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    lines = ["" if line.startswith("%") else line for line in source.splitlines()]
    tree = ast.parse("\n".join(lines), f"cell {number}")
    last = tree.body[-1] if tree.body else None
    printed, value = StringIO(), None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    with redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})
    if value is not None:
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {},
                        "data": _data(value)})
    return outputs


def _data(value: Any) -> dict[str, Any]:
    if not isinstance(value, Figure):
        return {"text/plain": repr(value).splitlines(True)}
    picture = BytesIO()
    value.savefig(picture, format="png", dpi=80)
    return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}


def main() -> None:
    notebook = read()
    found = iter(run(notebook))
    for number, cell in enumerate((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), 1):
        cell.update(outputs=next(found), execution_count=number)
    TUTORIAL.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
