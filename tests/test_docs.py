"""The code that README and docs show runs, and the files and objects that they name exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in (
            "start",
            "guides",
            "kernels",
            "nkn",
            "extending",
            "hmc",
            "gp",
            "processes",
            "functional",
        )
    ),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"`((?:\w+/)+[\w.-]+\.(?:py|json|jsonl|md))(?:::\w+)?`")
OBJECT = re.compile(r"`(implicitppl(?:\.\w+)+)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The fenced Python blocks of a page, each with the number of its first line."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize(
    "page",
    [*RUN[:2], *(pytest.param(page, marks=pytest.mark.slow) for page in RUN[2:])],
    ids=name_of,
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert blocks, f"{name_of(page)} shows no Python"
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, block in blocks:  # empty lines in front: a traceback names the line of the page
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_exist(page: Path) -> None:
    missing = [name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_objects_named_exist(page: Path) -> None:
    missing = [name for name in OBJECT.findall(page.read_text()) if not exists(name)]
    assert missing == []


def exists(name: str) -> bool:
    """True if a dotted name is a module or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False
