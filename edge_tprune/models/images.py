"""Image files: which of them a directory holds, and reading them. Every command lists and decodes images in this one way."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_tprune.errors import UserError, missing_package
from edge_tprune.files import open_regular
from edge_tprune.text import one_line

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".avifs", ".gif", ".tif", ".tiff"}
    | {".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
)
"""Of animations and files of several pages, the first image is read."""

_NEEDS = {".webp": "webp", ".avif": "avif", ".avifs": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000"}
"""What Pillow may have been built without."""

_JUNK = {"__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Directories that an operating system or a tool left behind. Names that begin with a dot (`._photo.jpg`, `.ipynb_checkpoints`) go without saying."""
_JUNK_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}

# Resized to the model's size, a picture that is longer than this many times its width would take gigabytes.
_LONGEST_RATIO = 200
_MOST_WAYS = 100  #: that links may make to one directory
# Pixels: a JPEG can be decoded to about this size several times as fast, and every byte of it is read all the same.
_CHECK_SIDE = 64


@dataclass(frozen=True)
class Listing:
    """The images below a directory."""

    root: Path
    files: tuple[Path, ...]  #: sorted by the parts of their paths
    directories: tuple[str, ...]  #: names of the directories in `root`, with images or without; sorted
    left_out: Mapping[str, int] = field(default_factory=dict)  #: how many other files there are, by extension

    @cached_property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Of each file, the parts of its path below `root`."""
        depth = len(self.root.parts)
        return tuple(file.parts[depth:] for file in self.files)


def list_images(root: Path) -> Listing:
    """The images below `root`, in any depth. Links are followed, but never into a directory that one is already inside.

    Raises:
        UserError: no such directory, or one (also below it) that cannot be read; no image in it.
    """
    if importlib.util.find_spec("PIL") is None:
        raise missing_package("pillow", "host")
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise UserError(f"image folder {format_path(root)} {what}")
    decodable = EXTENSIONS - _missing_decoders()
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for file in _walk(root):
        extension = file.suffix.lower()
        if not file.is_file():  # a link to nothing, a socket, a pipe
            left_out["broken link" if file.is_symlink() else "special file"] += 1
        elif extension in decodable:
            files.append(file)
        elif extension in EXTENSIONS:
            left_out[f"{extension} (this Pillow cannot decode it)"] += 1
        else:
            left_out[format_path(extension) or "no extension"] += 1
    counts = dict(sorted(left_out.items(), key=lambda item: (-item[1], item[0])))
    if not files:
        found = f"only {describe_left_out(counts)}" if counts else "nothing"
        raise UserError(f"image folder {format_path(root)} holds no images: {found}. Read are {' '.join(sorted(EXTENSIONS))}")
    directories = tuple(sorted(entry.name for entry in _entries(root) if _is_directory(entry)))
    return Listing(root, tuple(sorted(files, key=lambda file: file.parts)), directories, counts)


def describe_left_out(counts: Mapping[str, int]) -> str:
    """ "3 .txt, 1 broken link"; "" where nothing was left out."""
    return ", ".join(f"{count} {extension}" for extension, count in counts.items())


def format_path(path: str | os.PathLike[str]) -> str:
    r"""A path as text that can be printed and stored: bytes of its name that are not UTF-8 as `\xe9`, line breaks as `\n`."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # no name of a file: a half of a pair that stands for one character, from a program of one's own
        text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_image(file: Path, way: str = "Remove or replace it") -> Image.Image:
    """The RGB image in a file; of several, the first. `way` is what to do where it cannot be read.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _decode(file)
    except Exception as error:
        raise UserError(f"image {format_path(file)} cannot be read ({_cause(error, file)}). {way}") from error


def find_unreadable(
    files: Sequence[Path], workers: int = 4, progress: Callable[[int, int], None] | None = None
) -> dict[Path, str]:
    """Those of `files` that cannot be read -> why. Every file is read to its end.

    Args:
        files: image files.
        workers: threads that decode.
        progress: called as (files done, of).
    """
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, (file, cause) in enumerate(zip(files, pool.map(_fault, files)), 1):
                if cause is not None:
                    found[file] = cause
                if progress is not None:
                    progress(done, len(files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


@lru_cache(maxsize=1)
def image_formats() -> tuple[str, ...]:
    """What Pillow may take a file for, whatever its name ends with: all but EPS, which it gives to another program (Ghostscript) to run."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice that size is refused as an error
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """`image.convert("RGB")`, but sixteen bits of grey are scaled: Pillow clips all but the darkest of them to white.

    Raises:
        ValueError: floating-point or wide integer pixels, of which it is not known which value is white.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode == "I" and image.format == "TIFF":  # of 32 bits, or signed: the file does not say which of them are used
        raise ValueError("its pixels are 32-bit or signed integers, of which it is not known which value is white")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of its loss, unless that is a step of its own
        image = image.convert("RGBA")
    return image.convert("RGB")


def check_sides(image: Image.Image) -> None:
    """Refuses an image that would be resized to a strip of many gigabytes.

    Raises:
        ValueError: one side is too long beside the other.
    """
    if max(image.size) > _LONGEST_RATIO * min(image.size):
        raise ValueError(
            f"it has {image.width} x {image.height} pixels: one side is more than {_LONGEST_RATIO} times the other"
        )


def _decode(file: Path, side: int | None = None) -> Image.Image:
    from PIL import Image

    with open_regular(file) as stream, Image.open(stream, formats=image_formats()) as image:
        check_sides(image)
        if side is not None:
            image.draft(None, (side, side))
        return eight_bit_rgb(image)


def _fault(file: Path) -> str | None:
    try:
        _decode(file, _CHECK_SIDE)
    except Exception as error:  # a damaged file can make a decoder raise almost anything
        return _cause(error, file)
    return None


def _cause(error: Exception, file: Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        try:
            empty = file.stat().st_size == 0
        except OSError:
            empty = False
        return "the file is empty" if empty else "it is not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _walk(root: Path) -> Iterator[Path]:
    """Every entry below `root` that is not a directory.

    Raises:
        UserError: a directory cannot be read, or links lead to it in very many ways.
    """
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    ways: Counter[tuple[int, int]] = Counter()
    while waiting:
        directory, inside = waiting.pop()
        try:
            status = directory.stat()
        except OSError as error:
            raise _unreadable(directory, error) from error
        identity = (status.st_dev, status.st_ino)
        if identity in inside:
            continue
        ways[identity] += 1
        if ways[identity] > _MOST_WAYS:  # directories that all link to each other: the ways through them grow as the factorial
            raise UserError(
                f"links below {format_path(root)} lead to {format_path(directory.resolve())} in more than {_MOST_WAYS} ways: remove some"
            )
        for entry in _entries(directory):
            if _is_directory(entry):
                waiting.append((Path(entry.path), inside | {identity}))
            else:
                yield Path(entry.path)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not _is_junk(entry.name)]
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(directory: Path, error: OSError) -> UserError:
    return UserError(
        f"directory {format_path(directory)} cannot be read: {error.strerror}. Check its permissions, or give another"
    )


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK or name.lower() in _JUNK_FILES


@lru_cache(maxsize=1)
def _missing_decoders() -> frozenset[str]:
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old Pillow does not know the feature's name
        return frozenset(extension for extension, feature in _NEEDS.items() if not features.check(feature))
