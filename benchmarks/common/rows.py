"""Result files: one JSON object a line, read, appended to, rounded, and with what made it."""

import datetime
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpyro", "jax", "numpy")


def read(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def provenance() -> dict[str, Any]:
    """Return date, versions and processor architecture, and nothing that names a machine."""
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "architecture": platform.machine(),
    }


def append(file: Path, row: dict[str, Any]) -> None:
    """Append one row, figures to five significant digits or five decimals, whichever is finer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(rounded(row)) + "\n")


def rounded(value: Any) -> Any:
    """Return the same structure with floats of five significant digits, or five decimals."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if not isinstance(value, float):
        return value
    # A difference of losses is read in thousandths of a nat, however large the losses are.
    return round(value, 5) if 1 <= abs(value) < 1e9 else float(f"{value:.5g}")
