"""Which of timm's pretrained networks can lose tokens: every name is tried on PyTorch's meta device, without weights and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg

from edge_tprune.errors import UserError, did_you_mean
from edge_tprune.files import read_regular
from edge_tprune.models.architecture import create
from edge_tprune.models.families import REFUSED, adapt

MODULES = ("vision_transformer", "vision_transformer_hybrid", "vitamin", "deit", "eva", "beit")
"""timm's modules that create the classes which adapters take."""

_LARGEST_PAGE = 16_000_000  # bytes
_SUFFIXES = (".md", ".markdown", ".mdx")

BEGIN, END = "<!-- tables of `edge-tprune models`: begin -->", "<!-- tables of `edge-tprune models`: end -->"


@dataclass(frozen=True)
class Entry:
    """One pretrained network. Sizes are None where it is refused."""

    name: str  #: timm's, with the tag of its weights
    kind: str  #: timm's class
    refused: str | None = None  #: why no adapter takes it; None where one does
    image: tuple[int, int] | None = None  #: (H, W), pixels
    tokens: int | None = None  #: that enter the first block, prefix tokens included
    blocks: int | None = None
    macs: int | None = None  #: per image, for `output`
    output: str | None = None  #: what `build` writes unless it is asked for another

    @property
    def architecture(self) -> str:
        """The name without the tag."""
        return self.name.partition(".")[0]


def pretrained_names(pattern: str | None = None) -> list[str]:
    """The pretrained names of timm's plain ViTs, sorted.

    Args:
        pattern: only those that match it, with `*` and `?`; a name without either also matches with any tag.

    Raises:
        UserError: none matches.
    """
    names = sorted(name for module in MODULES for name in timm.list_models(module=module, pretrained=True))
    if pattern is None:
        return names
    chosen = [name for name in names if fnmatchcase(name, pattern) or name.partition(".")[0] == pattern]
    if not chosen:
        raise UserError(
            f"no pretrained plain ViT of timm {timm.__version__} matches {pattern!r}.{did_you_mean(pattern, names)} "
            "Use * for any characters: 'vit_small*'"
        )
    return chosen


def examine(names: Iterable[str], progress: Callable[[int], None] | None = None) -> Iterator[Entry]:
    """Tries networks by name.

    Args:
        names: timm's.
        progress: called with how many are done.
    """
    # Tags of one architecture differ in their weights, and sometimes in sizes: each size is created once.
    seen: dict[tuple[Any, ...], Entry] = {}
    for done, name in enumerate(names, 1):
        config = get_pretrained_cfg(name).to_dict()
        sizes = (config.get("num_classes"), config.get("input_size"), config.get("pool_size"), config.get("custom_load"))
        key = (name.partition(".")[0], *map(str, sizes))
        if key not in seen:
            seen[key] = _examine_one(name)
        yield Entry(**{**asdict(seen[key]), "name": name})
        if progress is not None:
            progress(done)


def _examine_one(name: str) -> Entry:
    model: Any = create(name, {}, shape_only=True).model
    kind = type(model).__name__
    try:
        adapter = adapt(model, name)
    except UserError as error:
        return Entry(name, kind, refused=str(error).removeprefix(f"{name}: "))
    shape = adapter.shape()
    height, width = model.patch_embed.img_size
    return Entry(name, kind, None, (height, width), shape.tokens, shape.blocks, shape.macs(), adapter.default_output)


def format_markdown(entries: list[Entry]) -> str:
    """Tables for a document: counts by class, what is refused and why, and every architecture that is taken with its sizes."""
    kinds = sorted({entry.kind for entry in entries})
    lines = [
        f"Of {len(entries)} pretrained names in timm {timm.__version__}, {sum(e.refused is None for e in entries)} are taken.",
        "",
        "| timm class | names | taken |",
        "| --- | ---: | ---: |",
        *(
            f"| `{kind}` | {sum(e.kind == kind for e in entries)} | {sum(e.kind == kind and e.refused is None for e in entries)} |"
            for kind in kinds
        ),
        "",
        "Refused:",
        "",
        "| name | why |",
        "| --- | --- |",
        *(f"| `{entry.name}` | {entry.refused} |" for entry in entries if entry.refused is not None),
        "",
        "Refused as a class:",
        "",
        "| timm class | why |",
        "| --- | --- |",
        *(f"| `{kind}` | {reason} |" for kind, reason in sorted(REFUSED.items())),
        "",
        "Taken. Sizes are those of the architecture's first pretrained name, for the output that `build` writes by default:",
        "",
        "| architecture | pretrained names | class | image (px) | tokens | blocks | MACs (G) | output |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
        *(_format_architecture(group) for group in _by_architecture(entries)),
    ]
    return "\n".join(lines) + "\n"


def _by_architecture(entries: list[Entry]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.refused is None:
            groups.setdefault(entry.architecture, []).append(entry)
    return list(groups.values())


def _format_architecture(group: list[Entry]) -> str:
    first = group[0]
    assert first.image is not None
    assert first.macs is not None
    height, width = first.image
    return (
        f"| `{first.architecture}` | {len(group)} | {first.kind} | {height} x {width} | {first.tokens} | {first.blocks} | "
        f"{first.macs / 1e9:.2f} | {first.output} |"
    )


def read_page(file: Path) -> str:
    """The Markdown document that tables go into; an empty one where there is no file.

    Raises:
        UserError: it cannot be read, is no text in UTF-8, has other marker lines than one pair (what lies between is replaced, and may be
            prose), or has none and is by its name no Markdown.
    """
    try:
        document = read_regular(file, _LARGEST_PAGE).decode()
    except FileNotFoundError:
        document = ""
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}. Give a Markdown file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 (byte {error.start + 1}). Save it as UTF-8") from error
    begins, ends = document.count(BEGIN), document.count(END)
    if (begins, ends) == (0, 0) and file.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{file} is not a Markdown file: its name ends in none of {', '.join(_SUFFIXES)}. Choose another name")
    if (begins, ends) != (0, 0) and ((begins, ends) != (1, 1) or document.index(BEGIN) > document.index(END)):
        raise UserError(
            f"{file} has {begins} times {BEGIN} and {ends} times {END}: it must have each once, in this order, or neither. Put them right, or "
            "remove them to have the tables at the end"
        )
    return document


def insert_tables(document: str, tables: str) -> str:
    """A Markdown document with the tables between its two marker lines, in place of what was there; at its end where it has no such lines."""
    text = f"{BEGIN}\n\n{tables}\n{END}"
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return f"{before}{text}{after}"
    ends = len(document) - len(document.rstrip("\n"))
    return f"{document}{max(0, 2 - ends) * chr(10) if document else ''}{text}\n"
