"""What `import implicitppl` does and does not do, and what the installed package carries."""

import ast
import importlib
import importlib.metadata
import importlib.resources
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
FILES = sorted(SOURCE.rglob("*.py"))


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
@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(f"implicitppl.{name}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public).__doc__, f"{name}.{public} has no docstring"


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
