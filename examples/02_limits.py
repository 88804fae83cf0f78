"""Untrusted code: no network (the default), little memory, a time limit, bounded output, input from here."""

import sys

import knarr

image = sys.argv[1] if len(sys.argv) > 1 else "host:"

doubled = knarr.run(image, ["sh", "-c", "read n; echo $((n * 2))"], input=b"21\n", timeout=30)
print(doubled.stdout.decode().strip())  # 42

endless = ["sh", "-c", "while :; do echo more; done"]
try:
    knarr.run(image, endless, timeout=2, output_limit=10_000, read_only=True, cap_drop=["ALL"])
except knarr.TimedOut as error:
    print(len(error.stdout))  # 10000
    print("ended:", error)
