"""An image goes from place to place: a layout, an archive for docker load, another compression; nothing is lost."""

import asyncio
import tempfile

import knarr
from knarr import Image

with tempfile.TemporaryDirectory() as folder:
    Image.empty().with_config(cmd=["/hello"]).save(f"oci:{folder}/layout:v1")

    there = knarr.copy(f"oci:{folder}/layout:v1", f"oci-archive:{folder}/image.tar")
    back = knarr.copy(f"oci-archive:{folder}/image.tar", f"dir:{folder}/files")
    print("unchanged:", there.digest == back.digest == there.source_digest)

    planned = knarr.copy(f"dir:{folder}/files", f"oci:{folder}/other:v1", dry_run=True)
    print("would copy", planned.copied[0], "blobs")

    async def several() -> None:
        """Copies at the same time; a registry would be docker://HOST/NAME:TAG."""
        jobs = [knarr.aio.copy(f"oci:{folder}/layout:v1", f"oci:{folder}/many:{name}") for name in ("a", "b", "c")]
        print("copied", len({copied.digest for copied in await asyncio.gather(*jobs)}), "image thrice")

    asyncio.run(several())

    registry = knarr.Registry("127.0.0.1:1")  # nothing is asked yet
    try:
        registry.tags("team/app")
    except knarr.errors.RegistryError as error:
        print("no registry there:", error.why)
