"""What goes wrong is an exception with facts, one class for each kind, all below knarr.KnarrError."""

import sys

import knarr
from knarr import errors

image = sys.argv[1] if len(sys.argv) > 1 else "host:"

try:
    knarr.run(image, ["no-such-program"])
except errors.CommandNotFound as error:
    print("not found:", "no-such-program" in str(error))

try:
    knarr.run("Not A Reference", ["true"])
except errors.InvalidReference as error:
    print(error.text, "|", error.rule)

try:
    knarr.run(image, ["true"], volumes=["/tmp:/proc"])
except knarr.KnarrError as error:
    print(error)
