"""A container that stays for a while: several programs in one, files between them, signals."""

import sys

import knarr

image = sys.argv[1] if len(sys.argv) > 1 else "host:"

with knarr.Container(image, ["sleep", "1000"]) as box:
    print(box.state)  # running
    box.exec(["sh", "-c", "cat > /tmp/greeting"], input=b"hello\n")
    print(box.exec(["cat", "/tmp/greeting"]).stdout.decode().strip())  # hello
    box.kill("KILL")
    print(box.wait().exit_code)  # 137
    print(box.state)  # exited
