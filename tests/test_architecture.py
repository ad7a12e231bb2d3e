"""What docs/architecture.md says of the package's files: each is listed, and imports only those above it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mimi_bridge"


def listed() -> list[str]:
    """Files and folders of the package, in the order of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listing = page.partition("a file may import only those above it")[2].partition("    examples/")[0]
    return re.findall(r"^ {6}(\w+)(?:\.py|/) ", listing, re.MULTILINE)


def imported(path: Path) -> Iterator[str]:
    """What a file imports of the package: file or folder directly below it."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            below = folders[: len(folders) + 1 - node.level] + tuple(filter(None, (node.module or "").split(".")))
            yield from below[:1] or (name.name for name in node.names)


def test_page_lists_every_file_and_folder_of_the_package():
    there = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")} - {"py"}  # py.typed
    assert there == set(listed())


def test_files_import_only_what_stands_above_them():
    rank = {name: place for place, name in enumerate(listed())}
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(files) > 100
    for path in files:
        own = rank[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
        wrong = [name for name in imported(path) if rank.get(name, -1) > own]
        assert not wrong, f"{path} imports {', '.join(wrong)}"
