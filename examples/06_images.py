"""An image made, changed, compared and checked, without a registry, a container or root."""

import os
import tempfile

import knarr
from knarr import Image

with tempfile.TemporaryDirectory() as folder:
    os.makedirs(f"{folder}/site")
    with open(f"{folder}/site/index.html", "w", encoding="utf-8") as page:
        page.write("<h1>hello</h1>\n")

    # Every change gives a new image; nothing is written anywhere before save().
    first = Image.empty().add(f"{folder}/site", "/srv/site")
    first = first.with_config(cmd=["httpd", "/srv/site"], ports={"80/tcp": True})
    second = first.with_config(env={"MODE": "prod"}).remove(["/srv/site/index.html"])
    flat = second.squash()

    for difference in knarr.diff(first, flat):
        print(difference.what, difference.kind, difference.name)

    saved = flat.save(f"oci:{folder}/layout:v1")
    print(saved == Image.open(f"oci:{folder}/layout:v1"), knarr.validate(f"oci:{folder}/layout"))  # True []
    print([entry.name for layer in saved.layers for entry in layer.entries()])

    store = knarr.Store(f"{folder}/store")
    flat.save("site:1", store=store.path)
    print([image.name for image in store.images()], store.image("site:1") == flat, store.check())
