"""Run a program in a fresh container and look at what it wrote."""

import sys

import knarr

# host: is this machine's own root below a throw-away layer: nothing to download, nothing stays.
image = sys.argv[1] if len(sys.argv) > 1 else "host:"

result = knarr.run(image, ["sh", "-c", "echo hello from $(id -un); echo a warning >&2; exit 3"])
print(result.exit_code)  # 3
print(result.stdout.decode().strip())  # hello from root
print(result.stderr.decode().strip())  # a warning
print(f"ready after {result.timings.prepare + result.timings.start:.3f} s, ran for {result.timings.run:.3f} s")
