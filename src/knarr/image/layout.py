"""Images in OCI image layouts (image-layout.md): a directory, or a tar of one."""

from __future__ import annotations

from knarr.base.errors import InvalidReference, KnarrError, NotFound, SizeMismatch
from knarr.content.digest import usable
from knarr.content.names import INDEX_LIMIT, name_of, some
from knarr.content.store import DOCUMENT_LIMIT
from knarr.content.verify import VerifiedReader
from knarr.image.files import ArchiveFiles, DirectoryFiles, read_document
from knarr.image.reference import DEFAULT_TAG, local_name, parse_name
from knarr.image.referrers import referrers_among
from knarr.spec import mediatypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from knarr.content.verify import Readable
    from knarr.image.files import Files
    from knarr.image.reference import Reference
    from knarr.spec.image import Descriptor


def open_layout(ref: Reference) -> Layout:
    """Open an ``oci:`` or ``oci-archive:`` reference; raises NotFound, FileError, FormatError, SpecError."""
    files: Files = DirectoryFiles(ref.path) if ref.transport == "oci" else ArchiveFiles(ref.path)
    try:
        return Layout(files, ref)
    except BaseException:
        files.close()
        raise


class Layout:
    """One image of a layout, found by tag, by digest, or by being the only one. See ``source.ImageSource``."""

    def __init__(self, files: Files, ref: Reference, digest: str = "") -> None:
        """Read the layout ``files`` are, closed with this; with ``digest`` the image is that of index.json."""
        from knarr.spec.image_validate import parse_index, parse_layout

        self.what = str(ref)
        self._files = files
        self._ref = ref
        self._digest = digest
        try:
            header = read_document(files, mediatypes.LAYOUT_FILE, DOCUMENT_LIMIT)
        except NotFound:
            hint = ""
            if isinstance(files, ArchiveFiles) and "manifest.json" in files:
                hint = f"docker save wrote it: name it docker-archive:{ref.path}"
            raise NotFound("an OCI image layout in", ref.path, hint=hint) from None
        parse_layout(header, f"{files.where}/{mediatypes.LAYOUT_FILE}")
        document = f"{files.where}/{mediatypes.INDEX_FILE}"
        # A directory may be a store; an archive is one image, or few, and came from anywhere.
        limit = INDEX_LIMIT if isinstance(files, DirectoryFiles) else DOCUMENT_LIMIT
        index = parse_index(read_document(files, mediatypes.INDEX_FILE, limit), document, limit=limit)
        self._entries: list[Descriptor] = index["manifests"]

    def roots(self) -> list[Descriptor]:
        """Return the descriptors the reference means; raises NotFound, InvalidReference when it means several."""
        ref, entries = self._ref, self._entries
        if self._digest:
            return [entry for entry in entries if entry["digest"] == self._digest][:1]
        if ref.digest:
            found = [entry for entry in entries if entry["digest"] == ref.digest]
            if not found:
                among = some([entry["digest"] for entry in entries], "nothing")
                raise NotFound(f"digest {ref.digest} in", ref.path, among=among)
            return found[:1]
        if ref.tag:
            found = [entry for entry in entries if ref.tag in _names(entry)] or self._familiar(ref.tag)
            if not found:
                raise NotFound(f"tag {ref.tag} in", ref.path, among=self._among())
            return found
        if not entries:
            raise NotFound("an image in", ref.path, among="nothing")
        if len({entry["digest"] for entry in entries}) == 1:
            return entries[:1]
        if not any(map(name_of, entries)):  # one image for several platforms, without an index of its own
            return entries
        found = [entry for entry in entries if DEFAULT_TAG in _names(entry)]
        if found:
            return found
        raise InvalidReference(
            str(ref), "it holds several images", hint=f"name one as {ref}:TAG; there is {self._among()}"
        )

    def digests(self) -> list[str]:
        """Return the digests of all images and indexes of index.json, each once."""
        return list(dict.fromkeys(entry["digest"] for entry in self._entries))

    def _familiar(self, tag: str) -> list[Descriptor]:
        """Return the entries whose full name ``tag`` is short for: busybox, for docker.io/library/busybox:latest."""
        try:
            full = parse_name(tag).name
        except KnarrError:
            return []
        return [entry for entry in self._entries if full in _names(entry)]

    def _among(self) -> str:
        names = sorted({name for entry in self._entries for name in _names(entry)})
        unnamed = len([entry for entry in self._entries if not _names(entry)])
        return some(names, f"{unnamed} without a tag")

    def open_blob(self, descriptor: Descriptor) -> Readable:
        """Return a verified reader; raises NotFound, SizeMismatch, InvalidDigest."""
        digest = usable(descriptor["digest"])
        name = f"{mediatypes.BLOBS_DIRECTORY}/{digest.algorithm}/{digest.encoded}"
        what = f"blob {digest} in {self._files.where}"
        try:
            stream, size = self._files.open(name)
        except NotFound:
            raise NotFound("blob", f"{digest} in {self._files.where}") from None
        if size != descriptor["size"]:
            stream.close()
            raise SizeMismatch(what, descriptor["size"], size)
        return VerifiedReader(stream, digest, size, what)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the manifests of the layout that refer to ``digest``."""
        return referrers_among(self._entries, self.open_blob, digest)

    def names(self) -> list[str]:
        """Return the full names for a store: the tag if it is one, else localhost/DIRECTORY:TAG."""
        if self._digest:
            names = [_full_name(one) or name_of(one) for one in self._entries if one["digest"] == self._digest]
            return [name if "/" in name else local_name(self._ref.path, name) for name in dict.fromkeys(names) if name]
        tag = self._ref.tag
        if not tag and not self._ref.digest:
            roots = self.roots()
            tag = next(filter(None, map(_full_name, roots)), "") or next(filter(None, map(name_of, roots)), "")
        return [local_name(self._ref.path, tag)]

    def abort(self) -> None:
        """Break off reads under way: there is none that lasts."""

    def close(self) -> None:
        """Let the directory or archive go."""
        self._files.close()


def _names(entry: Descriptor) -> set[str]:
    """Return the names of an entry: ref.name, and the whole name containerd and Docker put beside it."""
    return {name_of(entry), entry.get("annotations", {}).get(mediatypes.IMAGE_NAME, "")} - {""}


def _full_name(entry: Descriptor) -> str:
    """Return the whole name containerd, Docker and knarr put beside ref.name, "" for none that is one."""
    name = entry.get("annotations", {}).get(mediatypes.IMAGE_NAME, "")
    try:
        return parse_name(name).name if "/" in name else ""
    except KnarrError:
        return ""
