"""The package builds from its own source archive, carries what it should, and says why when it cannot build."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from house import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
MACHINE = os.uname().machine
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: it compiles knarr-init")


def setup_py(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of a copy of the tree, unpacked."""
    work = tmp_path_factory.mktemp("source")
    copy = work / "tree"
    made = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.egg-info", "knarr-init", ".*cache")
    shutil.copytree(ROOT, copy, ignore=made)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(work)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = work.glob("*.tar.gz")
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(work)], check=True)
    return work / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel made from the source archive alone."""
    done = subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source.parent), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = source.parent.glob("*.whl")
    return made


def elf(data: bytes) -> tuple[int, set[int]]:
    """Return machine and program header kinds of a 64-bit ELF program (elf(5))."""
    assert data[:5] == b"\x7fELF\x02"
    (machine,) = struct.unpack_from("<H", data, 18)
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return machine, {struct.unpack_from("<I", data, at + size * number)[0] for number in range(count)}


@needs_gcc
def test_wheel_carries_both_programs_and_no_sources(wheel: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-linux_{MACHINE}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (launcher,) = (name for name in names if name.endswith(".data/scripts/knarr-runtime"))
        for name in (launcher, "knarr/init/knarr-init"):
            machine, kinds = elf(archive.read(name))
            assert machine == {"x86_64": 62, "aarch64": 183}[MACHINE]
            assert 3 not in kinds, f"{name} needs a loader"
            assert (archive.getinfo(name).external_attr >> 16) & 0o111 == 0o111, f"{name} is not executable"
    assert "knarr/py.typed" in names
    assert not [name for name in names if name.endswith((".c", ".h", "cflags.txt"))]
    ours = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "knarr").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours


@needs_gcc
@pytest.mark.parametrize("scheme", ["prefix", "user", "target"])
def test_installed_anywhere_the_runtime_starts(wheel: Path, tmp_path: Path, scheme: str) -> None:
    base = tmp_path / "with space"
    python = [*PIP[:3], "--python", sys._base_executable] if scheme == "user" else PIP  # type: ignore[attr-defined]
    where = {
        "prefix": ["--prefix", str(base)],
        "user": ["--user", "--break-system-packages"],
        "target": ["--target", str(base)],
    }[scheme]
    done = subprocess.run(
        [*python, "install", "--no-deps", "--no-index", "--ignore-installed", *where, str(wheel)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUSERBASE": str(base)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    program = base / "bin" / "knarr-runtime"
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert "knarr-runtime" in done.stdout


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PATH": "/nowhere"}, "knarr needs a C compiler (gcc or cc or clang) to build knarr-init: install one"),
        ({"CC": "no-such-cc -m64"}, "the C compiler that CC names, no-such-cc, is not installed"),
        ({"KNARR_TARGET": "riscv64"}, "knarr runs on x86_64 and aarch64, not on riscv64"),
        ({"PATH": "/nowhere", "KNARR_TARGET": "other"}, "knarr needs a C compiler (other-linux-gnu-gcc)"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]
    environment = {name: other if text == "other" else text for name, text in environment.items()}
    done = setup_py("build_init", "--output", str(tmp_path / "init"), **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence.replace('other', other, 1)}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "init").exists()


@needs_gcc
def test_a_program_for_the_wrong_machine_is_refused(tmp_path: Path) -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[MACHINE]
    done = setup_py("build_init", "--output", str(tmp_path / "init"), KNARR_TARGET=other, CC="gcc")
    assert done.returncode == 1
    assert f"is not a program for {other}: does CC compile for it?" in done.stderr


def test_init_cross_compiled_for_arm64_runs(tmp_path: Path) -> None:
    if MACHINE != "x86_64":
        pytest.skip("this machine is arm64: the ordinary build is the arm64 build")
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("gcc-aarch64-linux-gnu is not installed: it compiles knarr-init for arm64")
    program = tmp_path / "knarr-init"
    done = setup_py("build_init", "--output", str(program), KNARR_TARGET="aarch64")
    assert done.returncode == 0, done.stderr
    machine, kinds = elf(program.read_bytes())
    assert machine == 183
    assert 3 not in kinds
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-user-static is not installed: it runs the arm64 knarr-init (it was compiled)")
    # Without a control socket and a Plan it has nobody to report to: it must end by itself, with a failure.
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert 0 < done.returncode < 128, done
