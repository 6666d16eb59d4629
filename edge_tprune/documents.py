"""Reading the JSON documents this package writes: profiles, bundles, schedule files. Whatever is wrong with one is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_tprune.errors import UserError

_LARGEST_BYTES = 64_000_000  #: reading JSON takes many times its size in memory


@dataclass(frozen=True)
class DocumentKind:
    """One kind of document: how it is recognised, checked and talked about."""

    noun: str  #: what people call it: "bundle"
    format: str  #: its `format` key
    version: int  #: the newest `version` that is read; older ones are read too
    make: str  #: what makes one: "Make one with: edge-tprune build"
    mend: str  #: what to do about a damaged one: "Copy the bundle again, or rebuild it"
    file: str | None = None  #: its name in the directory that people name; None where they name the document itself
    schema: Path | None = None  #: JSON schema (draft 7) that it must fit

    def read(self, path: Path) -> dict[str, Any]:
        """The document at `path` (the directory that holds it, where the kind has a `file`), checked.

        Raises:
            UserError: it is missing, unreadable, not JSON, of another kind, of a newer version, or does not fit its schema.
        """
        place = self._place(path)
        file = path / self.file if self.file else path
        try:
            if (size := file.stat().st_size) > _LARGEST_BYTES:
                raise UserError(f"{place} has {size / 1e6:.0f} MB, which no {self.noun} needs. {self.mend}")
            document = json.loads(file.read_bytes())
        except OSError as error:
            if self.file and isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise UserError(f"{path} is not a {self.noun}: it has no {self.file}. {self.make}") from error
            raise UserError(f"{place} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not readable JSON ({error}). {self.mend}") from error
        if not isinstance(document, dict) or document.get("format") != self.format:
            raise UserError(f"{path} is not a {self.noun}: its {self.file or 'JSON'} does not say format {self.format!r}")
        version = document.get("version")
        if isinstance(version, int) and version > self.version:
            raise UserError(
                f"{self.noun} {path} has format version {version}, newer than the {self.version} this edge-tprune reads. "
                "Run: pip install -U edge-tprune"
            )
        self.check(document, path)
        return document

    def check(self, document: Any, path: Path) -> None:
        """Holds a document, read or about to be written at `path`, against the schema.

        Raises:
            UserError: naming the first entry that does not fit.
        """
        if self.schema is None:
            return
        import fastjsonschema

        try:
            _validator(self.schema)(document)
        except fastjsonschema.JsonSchemaValueException as error:
            name = Path(self.file or "document").stem
            raise UserError(f"{self._place(path)} is not valid: {error.message.replace('data', name, 1)}") from error

    def _place(self, path: Path) -> str:
        return f"{self.noun} {path}: {self.file}" if self.file else f"{self.noun} {path}"


@lru_cache
def _validator(schema: Path) -> Callable[[Any], Any]:
    import fastjsonschema

    compiled: Callable[[Any], Any] = fastjsonschema.compile(json.loads(schema.read_text()))
    return compiled
