"""Run a notebook, and write it with what came out, without progress bars and warnings.

    python docs/execute.py docs/quickstart.ipynb [OUT.ipynb]

An error in a cell ends it with that error. Without OUT the notebook itself is renewed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(source: Path, out: Path) -> None:
    """Run a notebook in the directory it lies in."""
    notebook = nbformat.read(source, 4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[-1]))
