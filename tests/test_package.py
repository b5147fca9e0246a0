"""What `import implicitppl` does and does not do, and what the installed package carries."""

import ast
import doctest
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import implicitppl

SOURCE = Path(implicitppl.__file__).parent
ROOT = Path(__file__).parent.parent
PACKAGES = sorted(module.name for module in pkgutil.iter_modules([str(SOURCE)]) if module.ispkg)
FACES = [name for name in PACKAGES if not name.startswith("_")]
FILES = sorted(SOURCE.rglob("*.py"))
MOST_FILES = 16


def in_new_process(code: str) -> dict:
    """What `code` printed as JSON, run by a Python that has imported nothing yet."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.smoke
def test_import_loads_no_plotting_and_changes_no_jax_setting() -> None:
    found = in_new_process(f"""
        import importlib, json, sys
        import jax
        before = dict(jax.config.values)
        import numpyro
        import implicitppl
        for name in {PACKAGES!r}:
            importlib.import_module("implicitppl." + name)
        after = dict(jax.config.values)
        print(json.dumps({{
            "loaded": [n for n in ("arviz", "matplotlib") if n in sys.modules],
            "changed": [n for n in after if after[n] != before.get(n, after[n])],
            "x64": jax.config.jax_enable_x64,
        }}))
    """)
    assert found == {"loaded": [], "changed": [], "x64": False}


def test_the_package_is_marked_as_typed() -> None:
    assert importlib.resources.files("implicitppl").joinpath("py.typed").is_file()


def test_one_version_everywhere() -> None:
    version = implicitppl.__version__
    assert importlib.metadata.version("implicitppl") == version
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)


@pytest.mark.smoke
@pytest.mark.parametrize("name", FACES)
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(f"implicitppl.{name}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public).__doc__, f"{name}.{public} has no docstring"


def public_classes() -> list[type]:
    modules = [importlib.import_module(f"implicitppl.{name}") for name in FACES]
    found = [getattr(module, name) for module in modules for name in module.__all__]
    return [thing for thing in found if isinstance(thing, type)]


def test_public_classes_say_the_package_where_users_find_them() -> None:
    for cls in public_classes():
        assert getattr(importlib.import_module(cls.__module__), cls.__name__) is cls
        assert "._" not in cls.__module__


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_examples_of_methods_run(cls: type) -> None:
    """Doctests of a file do not reach the methods of a class that says another module."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    for member in vars(cls).values():
        method = getattr(member, "__func__", member)
        if inspect.isfunction(method):
            for example in doctest.DocTestFinder(recurse=False).find(method, globs={}):
                runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", FACES)
def test_a_public_name_stands_in_a_page(name: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    public = importlib.import_module(f"implicitppl.{name}").__all__
    assert [n for n in public if not re.search(rf"\b{n}\b", pages)] == []


def test_public_names_are_those_on_the_list() -> None:
    """A new name is a promise: put it on the list on purpose. Names have one door each."""
    listed = json.loads((ROOT / "tests" / "public_names.json").read_text())
    names = {face: importlib.import_module(f"implicitppl.{face}").__all__ for face in FACES}
    assert {face: sorted(found) for face, found in names.items()} == listed
    assert sum(map(len, listed.values())) <= 150
    all_names = [name for found in names.values() for name in found]
    assert sorted(n for n in set(all_names) if all_names.count(n) > 1) == ["fit"]


def imported_modules(file: Path) -> set[str]:
    """The absolute names of the modules that a file imports, relative imports resolved."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(parts[: len(parts) - node.level]) + "." if node.level else ""
            names.add((above + (node.module or "")).rstrip("."))
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_module_imports_a_package_it_lies_in(file: Path) -> None:
    own = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts)
    ancestors = {own.rsplit(".", depth)[0] for depth in range(1, own.count(".") + 1)}
    if file.name == "__init__.py":  # a package may list its own modules, not what lies above it
        ancestors = {name for name in ancestors if name != own.removesuffix(".__init__")}
    assert not imported_modules(file) & ancestors


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_file_opens_by_saying_what_it_is_about(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_no_folder_holds_more_files_than_a_reader_keeps_in_mind() -> None:
    folders = {file.parent for file in FILES}
    crowded = {
        f: n
        for f in folders
        if (n := len(list(f.glob("[!_]*.py")) + list(f.glob("_[!_]*.py")))) > MOST_FILES
    }
    assert crowded == {}


@pytest.mark.parametrize("folder", sorted({f.parent for f in FILES}), ids=lambda f: f.name)
def test_a_room_has_no_face_and_its_files_no_underscore(folder: Path) -> None:
    if not any(part.startswith("_") for part in folder.relative_to(SOURCE).parts):
        return
    assert [f.name for f in folder.glob("_[!_]*.py")] == []
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert len(body) == 1, "a room's `__init__` says what it is about, and no more"


def test_each_fault_of_one_line_is_found_once_and_has_its_tests() -> None:
    """A formula that was written anew needs its new spelling in `tools/mutants.toml`."""
    check = [sys.executable, "tools/mutants.py", "--check"]
    run = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
