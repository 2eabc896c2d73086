"""Write the map of the modules into architecture.md: one line per module, the first of its docstring.

python docs/modules.py          rewrite the map
python docs/modules.py --check  exit with 1 where it differs from the tree
"""

import ast
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- modules: written by docs/modules.py -->\n", "<!-- end of modules -->\n"


def first_line(file: Path) -> str:
    """Return the first paragraph's first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")


def modules() -> dict[str, list[Path]]:
    """Files by their folder, as `dogbreed/cache`; an empty `__init__` is no module of its own."""
    folders: dict[str, list[Path]] = {}
    for top in ("dogbreed", "launch"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if file.read_text(encoding="utf-8").strip():
                folders.setdefault(file.parent.relative_to(ROOT).as_posix(), []).append(file)
    return folders


def table() -> str:
    """Return the map in Markdown."""
    parts = []
    for folder, files in sorted(modules().items()):
        rows = "\n".join(f"| `{file.relative_to(ROOT / folder)}` | {first_line(file)} |" for file in files)
        parts.append(f"### `{folder}/`\n\n| module | |\n| --- | --- |\n{rows}\n")
    return "\n".join(parts)


def renewed(page: str) -> str:
    """Return the page with the map of today's tree."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(renewed(page) != page)
    PAGE.write_text(renewed(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
