"""Which files are taken for images, and what is said of the others."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from edge_tprune.errors import UserError
from edge_tprune.models.images import eight_bit_rgb, find_unreadable, format_path, list_images, read_image
from tests.models.folders import save_image


def names(root: Path) -> list[str]:
    return ["/".join(parts) for parts in list_images(root).parts]


@pytest.mark.parametrize(
    "extension", ["jpg", "JPEG", "jpe", "jfif", "png", "webp", "gif", "tif", "TIFF", "bmp", "ppm", "avif", "jp2"]
)
def test_every_format_that_pillow_decodes_is_read(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    formats = {"jpe": "JPEG", "jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    file = save_image(tmp_path / f"a.{extension}", format=formats.get(extension, extension.upper()))
    assert list_images(tmp_path).files == (file,)
    assert read_image(file).size == (12, 10)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.asarray(read_image(tmp_path / name)).mean((0, 1))[0] > 200, name


def test_what_is_left_out_is_counted_by_extension(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    for name in ("x.txt", "y.TXT", "z.heic", "README"):
        (tmp_path / name).write_text("")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list_images(tmp_path).left_out == {".txt": 2, ".heic": 1, "broken link": 1, "no extension": 1, "special file": 1}


@pytest.mark.parametrize(
    "junk", ["._a.png", "__MACOSX/b.png", "__MACOSX/cat/._a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png", ".hidden/x/a.png"]
)
def test_what_systems_leave_behind_is_skipped(tmp_path: Path, junk: str) -> None:
    save_image(tmp_path / "cat/a.png")
    for root in (tmp_path, tmp_path / "cat"):
        save_image(root / junk)
    listing = list_images(tmp_path)
    assert listing.parts == (("cat", "a.png"),)
    assert listing.directories == ("cat",)
    assert not listing.left_out


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    store, root = tmp_path / "store", tmp_path / "root"
    save_image(store / "x/1.png")
    save_image(root / "cat/2.png")
    (root / "dog").symlink_to(store / "x")
    (root / "cat/more").symlink_to(store / "x")
    (root / "cat/self").symlink_to(root / "cat")
    (root / "cat/up").symlink_to(root)
    (store / "x/back").symlink_to(store)
    (root / "one.png").symlink_to(store / "x/1.png")
    found = names(root)
    assert set(found) >= {"cat/2.png", "cat/more/1.png", "dog/1.png", "one.png"}
    assert not any(part in name.split("/") for name in found for part in ("self", "up")), found


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    file = save_image(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/\xff.png")))
    listing = list_images(tmp_path)
    assert listing.files == (file,)
    assert read_image(file).size == (12, 10)
    assert format_path(Path(*listing.parts[0])) == r"caf\xe9/\xff.png"
    format_path(file).encode()


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/2.png", "a/b/1.png", "c.png", "a.png", "B/1.png"):
        save_image(tmp_path / name)
    assert names(tmp_path) == ["B/1.png", "a/2.png", "a/b/1.png", "a.png", "b/1.png", "c.png"]


def test_what_cannot_be_listed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a directory"):
        list_images(tmp_path / "file")
    with pytest.raises(UserError, match="holds no images: only 1 no extension"):
        list_images(tmp_path)


def damaged(root: Path) -> dict[str, str]:
    """Files that cannot be read -> a word of the reason."""
    whole = save_image(root / "whole.jpg", side=(300, 200)).read_bytes()
    png = save_image(root / "whole.png").read_bytes()
    save_image(root / "deep.tif")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(root / "float.tif")
    contents = {
        "empty.jpg": (b"", "empty"),
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "end.jpg": (whole[:-200], "truncated"),
        "half.png": (png[: len(png) // 2], ""),
        "text.png": (b"no image", "known format"),
        "page.jpg": (b"<!DOCTYPE html><html>", "known format"),
        "bad.ppm": (b"P6 -1 -1 255 ", ""),
    }
    for name, (data, _) in contents.items():
        (root / name).write_bytes(data)
    return {name: reason for name, (_, reason) in contents.items()} | {"float.tif": "floating-point"}


def test_all_unreadable_images_are_found_at_once(tmp_path: Path) -> None:
    expected = damaged(tmp_path)
    seen: list[int] = []
    found = find_unreadable(list_images(tmp_path).files, progress=lambda done, of: seen.append(done))
    assert {file.name for file in found} == expected.keys()
    for file, cause in found.items():
        assert expected[file.name] in cause
        assert str(tmp_path) not in cause
        with pytest.raises(UserError, match=r"cannot be read .*Remove or replace it$"):
            read_image(file)
    assert seen == list(range(1, len(list_images(tmp_path).files) + 1))


def test_sixteen_bits_of_grey_are_scaled_and_floats_refused(tmp_path: Path) -> None:
    grey = np.array([[0, 256, 65535, 32896]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png")).tolist() == [[[value] * 3 for value in (0, 0, 255, 128)]]
    assert np.asarray(eight_bit_rgb(Image.fromarray(grey.astype(np.int32)))).max() == 255
    with pytest.raises(ValueError, match="floating-point"):
        eight_bit_rgb(Image.fromarray(grey.astype(np.float32)))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(read_image(tmp_path / "a.png"))[0, 0].tolist() == [200, 100, 50]


def test_integers_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for kind in (np.int32, np.int16):
        Image.fromarray(np.full((3, 3), 200, np.int32).astype(kind)).save(tmp_path / "wide.tif")
        with pytest.raises(UserError, match="which value is white"):
            read_image(tmp_path / "wide.tif")


def test_a_link_to_itself_is_a_broken_link(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "1.png")
    for place in (tmp_path, tmp_path / "a"):
        (place / "loop").symlink_to("loop")
    listing = list_images(tmp_path)
    assert [file.name for file in listing.files] == ["1.png"]
    assert listing.directories == ("a",)
    assert listing.left_out == {"broken link": 2}


def test_directories_that_all_link_to_each_other_end(tmp_path: Path) -> None:
    names = [f"d{number}" for number in range(12)]
    for name in names:
        save_image(tmp_path / name / "1.png")
        for other in names:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    with pytest.raises(UserError, match=r"lead to .* in more than 100 ways: remove some"):
        list_images(tmp_path)


def test_postscript_is_never_given_to_ghostscript(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert find_unreadable([file]) == {file: "it is not an image of a known format"}


@pytest.mark.parametrize("size", [(1, 65_000), (40_000, 1)])
def test_a_picture_too_narrow_to_be_resized_is_unreadable(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "line.png")
    assert "one side is more than 200 times the other" in find_unreadable([tmp_path / "line.png"])[tmp_path / "line.png"]
    with pytest.raises(UserError, match=f"it has {size[0]} x {size[1]} pixels"):
        read_image(tmp_path / "line.png")
