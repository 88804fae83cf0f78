"""Build knarr's two C programs and put them into the wheel; everything else is in pyproject.toml.

- ``knarr/init/knarr-init``: all of src/knarr/init/*.c, the program that carries out a Plan;
- ``knarr-runtime`` in bin/: bin/*.c.

Both are static, use no C library and take their compiler flags from src/knarr/init/cflags.txt, one a line.
``CC`` names the compiler; to cross-compile: ``CC=aarch64-linux-gnu-gcc KNARR_TARGET=aarch64``.
``python setup.py build_init`` compiles knarr-init alone (``--output FILE``; default: into the source tree).
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.install_scripts import install_scripts
from setuptools.errors import CompileError

INIT = Path("src/knarr/init")
LAUNCHER = Path("bin/launcher.c")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine, elf.h


def target() -> str:
    """Name the machine to compile for: ``KNARR_TARGET``, else this one."""
    machine = os.environ.get("KNARR_TARGET") or os.uname().machine
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
    if machine not in ELF_MACHINES:
        raise CompileError(f"knarr runs on {' and '.join(ELF_MACHINES)}, not on {machine}")
    return machine


def compiler() -> list[str]:
    """Find the C compiler: ``CC``, else gcc, cc or clang (for another machine its own gcc)."""
    machine = target()
    if named := shlex.split(os.environ.get("CC", "")):
        if shutil.which(named[0]) is None:
            raise CompileError(f"the C compiler that CC names, {named[0]}, is not installed")
        return named
    native = machine == os.uname().machine
    choices = ["gcc", "cc", "clang"] if native else [f"{machine}-linux-gnu-gcc"]
    for choice in choices:
        if shutil.which(choice):
            return [choice]
    package = "gcc" if native else f"gcc-{machine.replace('_', '-')}-linux-gnu"
    raise CompileError(
        f"knarr needs a C compiler ({' or '.join(choices)}) to build knarr-init: "
        f"install one (Debian and Ubuntu: apt-get install {package} linux-libc-dev) or name yours in CC"
    )


def compile_static(sources: list[Path], output: Path) -> None:
    """Compile and link ``sources`` into the static program ``output`` (mode 0755)."""
    if not sources:
        raise CompileError(f"the C sources in {INIT} are missing")
    lines = (line.strip() for line in (INIT / "cflags.txt").read_text().splitlines())
    flags = [line for line in lines if line and not line.startswith("#")]
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [*compiler(), *flags, "-o", str(output), *map(str, sources)]
    print(shlex.join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise CompileError(
            f"{command[0]} could not compile {output.name}; its messages are above "
            "(it needs the kernel's header files, on Debian and Ubuntu from linux-libc-dev)"
        )
    check_elf(output)
    output.chmod(0o755)


def check_elf(program: Path) -> None:
    """Refuse a program made for another machine, or one that needs a loader."""
    data = program.read_bytes()
    (machine,) = struct.unpack_from("<H", data, 18)
    if data[:5] != b"\x7fELF\x02" or machine != ELF_MACHINES[target()]:
        raise CompileError(f"{program.name} is not a program for {target()}: does CC compile for it?")
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, headers + size * number)[0] for number in range(count)}
    if 3 in kinds:  # PT_INTERP; a static PIE has PT_DYNAMIC
        raise CompileError(f"{program.name} is not static; see src/knarr/init/cflags.txt")


class BuildInit(Command):
    """``build_init``: compile knarr-init alone."""

    description = "compile knarr-init"
    user_options = [("output=", "o", "file to write (default: src/knarr/init/knarr-init)")]  # noqa: RUF012  # setuptools' own form

    def initialize_options(self) -> None:
        """Set the default."""
        self.output = str(INIT / "knarr-init")

    def finalize_options(self) -> None:
        """Nothing depends on other commands."""

    def run(self) -> None:
        """Compile it."""
        compile_static(sorted(INIT.glob("*.c")), Path(self.output))


class BuildPy(build_py):
    """Copy the modules, then compile knarr-init beside them."""

    def run(self) -> None:
        """Build into the package (an editable install: into the source tree)."""
        super().run()
        where = INIT if self.editable_mode else Path(self.build_lib, "knarr", "init")
        compile_static(sorted(INIT.glob("*.c")), where / "knarr-init")


class InstallScripts(install_scripts):
    """Compile the launcher where other packages copy a script."""

    def run(self) -> None:
        """Build bin/knarr-runtime, and the same under the names of its kinds of isolation."""
        programs = [Path(self.install_dir, f"knarr-runtime{kind}") for kind in ("", "-kernel", "-vm")]
        compile_static(sorted(LAUNCHER.parent.glob("*.c")), programs[0])
        for program in programs[1:]:  # engines choose the kind of isolation by the name
            shutil.copy(programs[0], program)
        self.outfiles = list(map(str, programs))


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3 on one kind of machine."""

    def get_tag(self) -> tuple[str, str, str]:
        """Name no Python API and no C library: the programs need none."""
        return "py3", "none", f"linux_{target()}"


class PlatformDistribution(Distribution):
    """Not pure Python, so everything goes into platlib, the package and its programs together."""

    def has_ext_modules(self) -> bool:
        """Tell setuptools so; the programs are no extension modules, but bound to a machine like them."""
        return True


setup(
    scripts=[str(LAUNCHER)],  # makes setuptools call install_scripts, and keeps the source in the sdist
    distclass=PlatformDistribution,
    cmdclass={
        "bdist_wheel": PlatformWheel,
        "build_init": BuildInit,
        "build_py": BuildPy,
        "install_scripts": InstallScripts,
    },
)
