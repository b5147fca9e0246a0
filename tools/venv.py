"""Makes `.venv` ready for work, mends it if it is broken, and does nothing if it is ready already.

Needs only the standard library of Python 3.11 or newer. `.venv/.ready` holds a digest of what was
installed (pyproject.toml, constraints.txt, the interpreter, this folder); it is written last, so an
interrupted set-up is seen. Order of attempts: keep what is there, install into it, build it anew.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
READY = VENV / ".ready"
REQUIREMENT = ".[dev]"

# Both probes run inside `.venv`. The quick one runs before every command and imports nothing heavy.
QUICK_PROBE = """
import importlib.util as u, pathlib, sys
names = ["jax", "jaxlib", "numpyro", "arviz", "equinox", "optax", "pytest", "implicitppl"]
missing = [n for n in names if u.find_spec(n) is None or u.find_spec(n).origin is None]
print("missing: " + ", ".join(missing) if missing else sys.version.split()[0])
sys.exit(bool(missing))
"""
# Every installed file is where its package's record says, with its size.
THOROUGH_PROBE = """
import importlib.metadata as m, sys
for dist in m.distributions():
    for file in dist.files or []:
        path = file.locate()
        if file.size is not None and not (path.exists() and path.stat().st_size == file.size):
            sys.exit(f"{dist.name} is damaged: {file}")
"""


def probe(code: str) -> str | None:
    """What `code` printed when run by `.venv`'s Python, or None if it could not run or failed."""
    try:
        run = subprocess.run(
            [PYTHON, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def digest(version: str) -> str:
    """A digest of everything that decides what `.venv` should hold."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    parts += [str(ROOT).encode(), version.encode(), REQUIREMENT.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_ready() -> bool:
    """True if the last set-up finished, still applies, and its packages are there."""
    try:
        stamp = READY.read_text()
    except (OSError, UnicodeDecodeError):
        return False
    version = probe(QUICK_PROBE)
    return version is not None and stamp == digest(version)


def pip_install(*options: str) -> bool:
    """Installs the package and its tools into `.venv`; True if pip succeeded."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", *quiet, *options]
    try:
        return subprocess.run([*command, "--editable", REQUIREMENT], cwd=ROOT).returncode == 0
    except OSError:
        return False


def install() -> bool:
    """Installs with the tested versions, or without them where this system has none of those."""
    if pip_install("--constraint", "constraints.txt"):
        return True
    if probe("import pip") is None:
        return False
    print("setup: the tested versions could not be installed; trying the newest", flush=True)
    return pip_install()


def finish(*probes: str) -> bool:
    """Runs the probes and writes the stamp; False if something is missing."""
    version = probe(QUICK_PROBE)
    if version is None or any(probe(code) is None for code in probes):
        return False
    READY.write_text(digest(version))
    return True


def make_venv(keep: bool) -> bool:
    """Makes `.venv`, with the packages that are there (`keep`) or empty; True on success."""
    interpreter = getattr(sys, "_base_executable", sys.executable)  # `.venv` may be active
    if keep:
        for link in PYTHON.parent.glob("python*"):  # a broken link would be left as it is
            link.unlink()
    elif VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    else:
        shutil.rmtree(VENV, ignore_errors=True)
    return subprocess.run([interpreter, "-m", "venv", VENV], cwd=ROOT).returncode == 0


def mend() -> bool:
    """Brings an existing `.venv` up to date without installing again what is whole."""
    READY.unlink(missing_ok=True)
    print("setup: bringing .venv up to date", flush=True)
    runs = probe("import pip") is not None or make_venv(keep=True)
    return runs and install() and finish(THOROUGH_PROBE)


def build() -> None:
    """Makes a new `.venv`, whatever stood there before."""
    version = platform.python_version()
    print(f"setup: building .venv with Python {version} (a few minutes, once)", flush=True)
    if not make_venv(keep=False):
        sys.exit(
            f"setup: `{sys.executable} -m venv` failed. On Debian and Ubuntu: apt install"
            " python3-venv; elsewhere name another Python: make PYTHON=/path/to/python3 ..."
        )
    if not (install() and finish()):
        sys.exit("setup: failed; the message above says why (no network?)")


def main() -> None:
    """Brings `.venv` into a state in which every make target runs."""
    if sys.version_info < (3, 11):  # noqa: UP036 - any python3 may run this file
        sys.exit(
            f"setup: Python 3.11 or newer is needed; got {platform.python_version()} from"
            f" {sys.executable}. Name another one: make PYTHON=python3.12 ..."
        )
    if is_ready():
        return
    if not (VENV.is_dir() and mend()):
        build()
    print("setup: .venv is ready", flush=True)


if __name__ == "__main__":
    main()
