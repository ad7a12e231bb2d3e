"""Imports run down: a package imports only those that docs/architecture.md lists before it, and no file itself."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mimi_bridge

PACKAGE = Path(mimi_bridge.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
LISTING = PAGE.partition("a file may import only those above it")[2].partition("    examples/")[0]
PACKAGES = re.findall(r"^ {6}(\w+)/ ", LISTING, re.MULTILINE)
FILES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
MODULES = {parts[:-1] if parts[-1] == "__init__" else parts: path for parts, path in FILES.items()}
MAY_GO_UP = {"__init__.py", "modeling_mimi_bridge.py"}  # public names, lazily; the one guarded import of the runtime


@cache
def imported(module: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The modules of the package that a module imports, inside of functions, too."""
    path = MODULES[module]
    folder = module if path.name == "__init__.py" else module[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            name = folder[: len(folder) - node.level + 1] + name
        elif name[:1] == ("mimi_bridge",):
            name = name[1:]
        else:
            continue
        modules = [(*name, alias.name) for alias in node.names if (*name, alias.name) in MODULES]
        found += modules or [name]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_those_listed_before_it(package):
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    above = {
        f"{'/'.join(module)} imports {'/'.join(other)}"
        for module in MODULES
        if module[:1] == (package,)
        for other in imported(module)
        if later.intersection(other[:1])
    }
    assert not above


def test_every_package_and_file_is_listed():
    assert {parts[0] for parts in FILES if len(parts) > 1} == set(PACKAGES)
    alone = {parts[0] for parts in FILES if len(parts) == 1} - {"__init__"}
    assert alone == set(re.findall(r"^ {6}(\w+)\.py ", LISTING, re.MULTILINE))


def test_file_of_no_package_imports_none():
    above = {
        f"{path.name} imports {'/'.join(other)}"
        for module, path in MODULES.items()
        if len(module) <= 1 and path.parent == PACKAGE and path.name not in MAY_GO_UP
        for other in imported(module)
        if set(PACKAGES).intersection(other[:1])
    }
    assert not above


def test_no_file_imports_itself_by_way_of_others():
    graph = {module: {other for other in imported(module) if other in MODULES} for module in MODULES if module}
    list(TopologicalSorter(graph).static_order())  # raises a CycleError that names them
