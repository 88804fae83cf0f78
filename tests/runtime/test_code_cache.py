"""The file from which knarr-runtime takes its code: used when it is right, and only then."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blackbox import needs_root

import knarr

pytestmark = needs_root  # a mount namespace with a /run of its own
PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from knarr.cli.runtime_main import main
code = main(["--root", "/run/x", "list", "-q"])
files = sys.modules["knarr.base.files"]
print("cache" if files.__spec__ is None else "import", getattr(files, "MARK", ""))
sys.exit(code)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package that may be changed."""
    shutil.copytree(Path(knarr.__file__).parent, tmp_path / "knarr", ignore=shutil.ignore_patterns("knarr-init"))
    return tmp_path


def calls(tree: Path, *between: str, options: str = "") -> list[str]:
    """Call ``list`` once, then after each of these shell commands; where its modules came from each time."""
    (tree / "program").write_text(PROGRAM)
    call = f"{sys.executable} -I -S {options} {tree}/program {tree}"
    steps = " && ".join(["true", call, *(f"{{ {step}; }} && {call}" for step in between)])
    script = f"mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -m 700 /run/x && cd /run && {steps}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


def test_the_second_call_uses_it(tree: Path) -> None:
    assert calls(tree, "true", "true") == ["import", "cache", "cache"]


def test_what_was_written_long_ago_goes(tree: Path) -> None:
    old = "for n in $(seq 100); do touch -d 2001-01-01 knarr/.code/old$n; done; rm $(ls -t knarr/.code/* | head -n 1)"
    assert calls(tree, old, "echo $(ls -A knarr/.code | wc -l)") == ["import", "import", "64", "cache"]


def test_another_kind_of_isolation_has_its_own(tree: Path) -> None:
    again = f"ln -s program {tree}/knarr-runtime-vm && {sys.executable} -I -S {tree}/knarr-runtime-vm {tree}"
    assert calls(tree, again) == ["import", "import", "cache"]


def test_a_changed_source_is_seen_at_once(tree: Path) -> None:
    change = f"echo 'MARK = 1' >> {tree}/knarr/base/files.py"
    assert calls(tree, "true", change, "true") == ["import", "cache", "import 1", "cache 1"]


def test_a_source_of_the_same_length_too(tree: Path) -> None:
    file = tree / "knarr/base/files.py"
    file.write_text(file.read_text() + "MARK = 1\n")
    # Python's own bytecode files know the time to the second only
    change = f"sed -i 's/^MARK = 1$/MARK = 2/' {file} && touch -d '+5 seconds' {file}"
    assert calls(tree, "true", change) == ["import 1", "cache 1", "import 2"]


@pytest.mark.parametrize(
    "damage",
    [
        "chmod 660 knarr/.code/*",
        "chmod 755 knarr/.code",
        "chown 12345 knarr/.code/*",
        "chown 12345 knarr/.code",
        "for f in knarr/.code/*; do mv $f other; ln -s /run/other $f; done",
        "for f in knarr/.code/*; do rm $f; mkfifo -m 600 $f; done",
        "for f in knarr/.code/*; do rm $f; mkdir -m 700 $f; done",
        "for f in knarr/.code/*; do : > $f; done",
        "for f in knarr/.code/*; do echo garbage > $f; done",
        "for f in knarr/.code/*; do head -c 5000 $f > other; cat other > $f; done",
        "for f in knarr/.code/*; do printf N > $f; done",
    ],
)
def test_what_is_not_ours_alone_or_damaged_is_not_used(damage: str, tree: Path) -> None:
    """Seen to fail with the checks of owner and mode taken out."""
    assert calls(tree, "true", damage)[:3] == ["import", "cache", "import"]


def test_it_has_no_docstrings_and_tracebacks_do_not_need_it(tree: Path) -> None:
    program = PROGRAM.replace('print("cache"', 'print(files.__doc__ is None, "cache"')
    debug = PROGRAM.replace('"list"', '"--debug", "list"')
    for name, text in (("plain", program), ("debug", debug)):
        (tree / name).write_text(text)
    said = [f"{sys.executable} -I -S {tree}/{name} {tree} 2>/dev/null" for name in ("plain", "debug")]
    assert calls(tree, said[0], said[1]) == ["import", "True cache", "cache", "import", "cache"]


def test_without_bytecode_there_is_none(tree: Path) -> None:
    assert calls(tree, "ls -d knarr 2>&1 | grep -q cannot", options="-B") == ["import", "import"]


def test_a_failure_does_not_write_it(tree: Path) -> None:
    program = PROGRAM.replace('"list", "-q"', '"state", "nobody"').replace("sys.exit(code)", "")
    (tree / "other").write_text(program)
    first = f"{sys.executable} -I -S {tree}/other {tree} >/dev/null 2>&1; ls knarr/.code 2>/dev/null | grep -c state || true"
    assert calls(tree, first)[1] == "0"


def test_modules_outside_of_it_are_still_found(tree: Path) -> None:
    """A verb may need more than its first call did."""
    program = PROGRAM.replace(
        "sys.exit(code)", "import knarr.runtime.idmap\nprint(knarr.runtime.idmap.__spec__ is not None)"
    )
    (tree / "other").write_text(program)
    again = f"{sys.executable} -I -S {tree}/other {tree}"
    assert calls(tree, again)[1:3] == ["cache", "True"]


def test_users_keep_theirs_apart() -> None:
    from knarr.cli.runtime_main import name, place

    assert place() == ("/run/knarr/.code" if os.geteuid() == 0 else f"{os.environ.get('XDG_RUNTIME_DIR')}/knarr/.code")
    assert name("run") != name("list")
    assert "/" not in name("run")
    assert len(name("run")) <= 255
