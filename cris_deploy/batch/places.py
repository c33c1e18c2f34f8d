"""A path or a URL, as pyarrow.fs reads it."""

from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException, fs

from cris_deploy.errors import InputError
from cris_deploy.files import replacing

_URL = "://"


@dataclass(frozen=True, slots=True)
class Place:
    """A file or a folder: its file system, and its path there without a `/` at the end."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, name: str, text: str) -> "Place":
        """Read a path, or a URL such as s3://bucket/folder. Raises InputError with `name` in it."""
        try:
            if _URL in text:
                filesystem, path = fs.FileSystem.from_uri(text)
            else:
                filesystem, path = fs.LocalFileSystem(), str(Path(text).absolute())
        except (ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{name} {text} is no path and no URL that can be read ({error})"
            ) from None
        return cls(filesystem, path.rstrip("/"))

    def files(self) -> list[str]:
        """Give the files below this folder, relative to it and sorted; hidden ones are left out.

        Raises OSError.
        """
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        names = [info.path[len(self.path) + 1 :] for info in found if info.type == fs.FileType.File]
        return sorted(name for name in names if not f"/{name}".count("/."))

    def kind(self) -> fs.FileType:
        """Say whether it is a file, a folder, or not there. Raises OSError."""
        return self.filesystem.get_file_info(self.path).type

    def within(self, name: str) -> "Place":
        """Give a file in this folder; an absolute path or a URL is itself."""
        if _URL in name:
            return Place.of("image", name)
        return Place(self.filesystem, name if name.startswith("/") else f"{self.path}/{name}")

    def read(self) -> bytes:
        """Read a file. Raises OSError."""
        with self.filesystem.open_input_file(self.path) as file:
            content: bytes = file.read()
        return content

    def write_whole(self, content: bytes) -> None:
        """Write a file that appears whole or not at all. Raises OSError."""
        if isinstance(self.filesystem, fs.LocalFileSystem):
            with replacing(Path(self.path)) as file:
                file.write(content)
            return
        # An object of a bucket is there once it is closed.
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def remove(self) -> None:
        """Remove a file, if it is there. Raises OSError."""
        if self.kind():
            self.filesystem.delete_file(self.path)

    def make(self) -> None:
        """Make the folder; hidden files in it, which a kill may have left, go. Raises OSError."""
        self.filesystem.create_dir(self.path, recursive=True)
        for info in self.filesystem.get_file_info(fs.FileSelector(self.path)):
            if info.base_name.startswith((".part-", "._job.json.")):
                self.filesystem.delete_file(info.path)
