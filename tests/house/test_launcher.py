"""bin/knarr-runtime finds its Python and its package wherever it was installed, and obeys no hostile surroundings.

Each test lays out an installation as pip, uv or a distribution would, with the real launcher and the real
runtime_launch.py; where the command line would be stands a probe that tells what it was started with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from house import ROOT

import knarr

PROBE = """
import sys, os
def main(told=-1):
    import json
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    facts = {"children": children, "argv": sys.argv[1:], "path": sys.path, "environment": dict(os.environ), "flags": list(sys.flags),
             "file": __file__, "json": json.__file__, "python": sys.executable, "encoding": sys.getfilesystemencoding()}
    sys.stdout.write(json.dumps(facts))
    return 7
"""
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON = sys._base_executable  # type: ignore[attr-defined]


class Installation:
    """A launcher in ``prefix``/bin and a package in ``prefix``/``packages``."""

    def __init__(self, launcher: str, prefix: Path, packages: str = f"lib/{VERSION}/site-packages") -> None:
        self.bin = prefix / "bin"
        self.package = prefix / packages / "knarr"
        self.program = self.bin / "knarr-runtime"
        self.bin.mkdir(parents=True)
        (self.package / "cli").mkdir(parents=True)
        shutil.copy(launcher, self.program)
        (self.package / "__init__.py").touch()
        (self.package / "cli" / "__init__.py").touch()
        shutil.copy(ROOT / "src/knarr/cli/runtime_launch.py", self.package / "cli")
        (self.package / "cli" / "runtime_main.py").write_text(PROBE)

    def script(self, text: str) -> None:
        """Write the entry point beside the launcher, whose first line names the interpreter."""
        (self.bin / "knarr").write_text(text + "\nimport sys\n")

    def run(
        self, *arguments: str, program: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> dict[str, object]:
        """Start it, see that it ended as the probe does, and return what the probe saw."""
        command = [program or str(self.program), *arguments]
        done = subprocess.run(command, capture_output=True, check=False, text=True, cwd=cwd, env=env)
        assert (done.returncode, done.stderr) == (7, ""), done.stderr
        facts: dict[str, object] = json.loads(done.stdout)
        assert facts["file"] == str(self.package / "cli" / "runtime_main.py")
        return facts


@pytest.fixture
def installation(knarr_runtime: str, tmp_path: Path) -> Installation:
    made = Installation(knarr_runtime, tmp_path / "prefix")
    made.script(f"#!{PYTHON}")
    return made


def test_tests_run_on_what_is_installed() -> None:
    if not os.environ.get("KNARR_TEST_INSTALLED"):
        pytest.skip("only `make test` promises it; here the tests were started in another way")
    assert knarr.__file__ is not None
    assert Path(knarr.__file__).is_relative_to(sys.prefix)


def test_passes_arguments_and_exit_code_on(installation: Installation) -> None:
    arguments = ["--root", "/x y", "", "-c", "ü\n", "--", *map(str, range(5000))]
    facts = installation.run(*arguments)
    assert facts["argv"] == arguments
    assert facts["encoding"] == "utf-8"


@pytest.mark.parametrize("verb", ["create", "run", "exec", "state"])
def test_starts_no_process(installation: Installation, verb: str) -> None:
    facts = installation.run("--root", "/x", verb, "id")
    assert facts["argv"] == ["--root", "/x", verb, "id"]
    assert facts["children"] == []


def test_bytes_that_are_no_utf_8_pass(installation: Installation) -> None:
    done = subprocess.run([os.fsencode(installation.program), b"\xff\xfe"], capture_output=True, check=False)
    assert json.loads(done.stdout)["argv"] == ["\udcff\udcfe"]


def test_starts_isolated_without_site(installation: Installation) -> None:
    facts = installation.run(env={})
    plain = [PYTHON, "-I", "-S", "-X", "utf8", "-c", "import sys; print(list(sys.flags), sys.path, sep='\\n')"]
    flags, path = subprocess.run(plain, capture_output=True, check=True, text=True, env={}).stdout.splitlines()
    assert str(facts["flags"]) == flags
    packages = str(installation.package.parent)
    assert facts["path"] == [*json.loads(path.replace("'", '"')), packages], "the package comes last in sys.path"


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''",  # pip, a path with spaces or too long
        "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''",  # uv
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''",  # pip, long without spaces
    ],
)
def test_reads_every_form_of_first_line(installation: Installation, tmp_path: Path, script: str) -> None:
    python = tmp_path / ("with space" if "'{" in script or '"{' in script else "plain") / "python3"
    python.parent.mkdir()
    python.symlink_to(PYTHON)
    installation.script(script.format(python=python))
    assert installation.run()["python"] == str(python)


NO_INTERPRETER = ["", "#!/usr/bin/env python3", "#!/bin/sh\n'''exec' \"$(dirname -- \"$0\")\"/python"]


@pytest.mark.parametrize("script", NO_INTERPRETER)
def test_falls_back_to_the_python_beside_it(installation: Installation, script: str) -> None:
    (installation.bin / "python3").symlink_to(PYTHON)
    installation.script(script)
    assert installation.run()["python"] == str(installation.bin / "python3")


@pytest.mark.parametrize(
    "packages",
    [f"lib/{VERSION}/dist-packages", f"lib64/{VERSION}/site-packages", "lib/python3/dist-packages", ""],
)
def test_finds_the_package_of_each_scheme(knarr_runtime: str, tmp_path: Path, packages: str) -> None:
    made = Installation(knarr_runtime, tmp_path / "a b", packages)
    made.script(f"#!{PYTHON}")
    made.run()


def test_another_version_s_package_is_left_alone(knarr_runtime: str, tmp_path: Path) -> None:
    made = Installation(knarr_runtime, tmp_path / "prefix", "lib/python3.99/site-packages")
    made.script(f"#!{PYTHON}")
    done = subprocess.run([str(made.program)], capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"knarr-runtime: no knarr package for {PYTHON} below {tmp_path}/prefix; ")
    assert done.stderr.count("\n") == 1


def test_a_missing_python_is_one_sentence(installation: Installation) -> None:
    installation.script("#!/no/such/python3")
    done = subprocess.run([str(installation.program)], capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert done.stderr == "knarr-runtime: cannot start the Python it was installed for: /no/such/python3\n"


def test_works_through_symbolic_links_path_and_relative_names(installation: Installation, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "first").symlink_to(installation.program)
    (elsewhere / "runtime").symlink_to("first")
    installation.run(program=str(elsewhere / "runtime"))
    installation.run(program="./runtime", cwd=elsewhere)
    installation.run(program="runtime", env={"PATH": str(elsewhere)})


def test_hostile_surroundings_do_not_matter(installation: Installation, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("json", "os", "posix", "site", "encodings", "sitecustomize", "knarr"):
        (evil / f"{name}.py").write_text("raise SystemExit('imported from the wrong place')")
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(evil), "LANG": "C", "KEEP": "yes",
        "PYTHONPATH": str(evil), "PYTHONHOME": str(evil), "PYTHONSTARTUP": str(evil / "os.py"),
        "PYTHONINSPECT": "1", "PYTHONUSERBASE": str(evil), "PYTHONWARNINGS": "error", "PYTHONPLATLIBDIR": "evil",
        # The loader complains on stderr about a library it cannot preload: run() demands an empty stderr.
        "LD_PRELOAD": str(evil / "no.so"), "LD_LIBRARY_PATH": str(evil), "LD_AUDIT": str(evil / "no.so"),
        "GLIBC_TUNABLES": "glibc.malloc.check=3", "GCONV_PATH": str(evil), "LOCPATH": str(evil),
    }  # fmt: skip
    facts = installation.run(cwd=evil, env=environment)
    seen = facts["environment"]
    assert isinstance(seen, dict)
    assert {name: seen.get(name) for name in environment} == {
        **dict.fromkeys(environment), "PATH": "/usr/bin:/bin", "HOME": str(evil), "LANG": "C", "KEEP": "yes",
    }  # fmt: skip
    assert not str(facts["json"]).startswith(str(tmp_path))


def test_closed_descriptors_are_no_trouble(installation: Installation) -> None:
    done = subprocess.run(["/bin/sh", "-c", '"$0" <&- >&- 2>&-', str(installation.program)], check=False)
    assert done.returncode in {1, 7}  # the probe's own print has nowhere to go, but nothing hangs or dumps core


def test_a_full_disk_is_one_sentence(installation: Installation) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(installation.program)], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 7
    assert done.stderr == "knarr-runtime: cannot write the output: no space left on device\n"


def test_runtime_launch_runs_from_a_source_tree(installation: Installation) -> None:
    script = installation.package / "cli" / "runtime_launch.py"
    done = subprocess.run([PYTHON, "-I", "-S", str(script), "state"], capture_output=True, check=False, text=True)
    assert done.returncode == 7
    assert json.loads(done.stdout)["argv"] == ["state"]


def test_nothing_in_it_wants_relocation(knarr_runtime: str) -> None:
    """Nobody relocates it, so a table of addresses would hold wrong ones."""
    data = Path(knarr_runtime).read_bytes()
    start, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    sizes = []
    for at in range(start, start + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 2:  # PT_DYNAMIC
            entries = [struct.unpack_from("<qQ", data, offset + each) for each in range(0, length, 16)]
            sizes = [value for tag, value in entries if tag in {2, 8, 35}]  # DT_PLTRELSZ, DT_RELASZ, DT_RELRSZ
    assert sum(sizes) == 0


def test_ctrl_c_while_python_starts(knarr_runtime: str) -> None:
    """SIGINT at any of the first milliseconds: no traceback, whatever Python was doing."""
    for step in range(40):
        process = subprocess.Popen([knarr_runtime, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(step * 0.0005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode in {0, -signal.SIGINT, 130}, said
        assert said == b"", said
