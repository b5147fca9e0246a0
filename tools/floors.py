"""Prints the lowest run-time versions that pyproject.toml allows, as pip constraints."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    """Turns `name>=version` into `name==version`."""
    for requirement in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
        print(re.sub(r"^([\w-]+)>=([\w.]+)$", r"\1==\2", requirement))


if __name__ == "__main__":
    main()
