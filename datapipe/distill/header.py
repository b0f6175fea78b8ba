"""What a store of soft labels is: its identity, as JSON in the metadata of its Parquet schema.

SoftLabelHeader -> to_metadata() -> Parquet -> from_metadata() -> check(what the reader expects)

A reader says what it trains with, and a store of anything else is refused. Everything raises `SoftLabelError`, except a
header that contradicts itself, which is a `ConfigError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from datapipe.errors import ConfigError, SoftLabelError
from datapipe.storage.digest import canonical_json, digest_of, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DENSE_CLASSES", "FORMAT_VERSION", "Level", "Mode", "SoftLabelHeader", "Teacher", "id_bits"]

FORMAT_VERSION = 1
METADATA_KEY = b"secateur.soft_labels"
DENSE_CLASSES = 128
"""Classes up to which whole distributions are stored unless `wide` says so: 256 bytes a position."""
MAX_CLASSES = 1 << 20
MAX_DRAWS = 65_535
"""Counts of draws are at most 16 bits wide."""

Level: TypeAlias = Literal["row", "token"]
Mode: TypeAlias = Literal["dense", "topk", "sampled"]

_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that gave the labels.

    Attributes:
        name: As the caller named it.
        digest: Of its weights; of its config and training rows where it is a head trained on the run itself.
    """

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class SoftLabelHeader:
    """Identity of a store. Two stores of equal headers and rows hold the same numbers.

    Attributes:
        level: `row`: one distribution a row. `token`: one for each scored token of a row.
        mode: `dense`: every class. `topk`: the k most probable and the mass of the rest. `sampled`: draws from the
            teacher, with counts.
        classes: Classes, or entries of the vocabulary, 2 ... `MAX_CLASSES`.
        teachers: At least one; their distributions were averaged.
        preprocessing: Digest of how a row became the teacher's input.
        k: Classes kept at each position, 1 <= k <= classes; with `topk` only.
        draws: Draws at each position, 1 ... `MAX_DRAWS`; with `sampled` only.
        class_names: In the order of the classes; None for a vocabulary.
        averaged: What was averaged over the teachers: `log_probabilities` (then renormalised) or `probabilities`.
        tokenizer: Digest of the tokenizer; with level `token` only, and always there.
        augmentation_seed: Of the augmentation that the teacher saw; None if it saw rows as they are.
        seed: Of the draws.
        wide: Whether dense labels of more than `DENSE_CLASSES` classes are meant.
        version: Of the format.

    Raises:
        ConfigError: The fields contradict each other or are out of range.
    """

    level: Level
    mode: Mode
    classes: int
    teachers: tuple[Teacher, ...]
    preprocessing: str
    k: int | None = None
    draws: int | None = None
    class_names: tuple[str, ...] | None = None
    averaged: Literal["log_probabilities", "probabilities"] = "log_probabilities"
    tokenizer: str | None = None
    augmentation_seed: int | None = None
    seed: int = 0
    wide: bool = False
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _refuse_unless(self.level in get_args(Level), f"level must be 'row' or 'token'. Got {self.level!r}")
        _refuse_unless(self.mode in get_args(Mode), f"mode must be 'dense', 'topk' or 'sampled'. Got {self.mode!r}")
        _refuse_unless(1 < self.classes <= MAX_CLASSES, f"classes must be 2 ... {MAX_CLASSES:,}. Got {self.classes:,}")
        _refuse_unless(bool(self.teachers), "soft labels need a teacher. Got none")
        _refuse_unless(
            (self.tokenizer is None) == (self.level == "row"),
            f"labels of tokens need the tokenizer's digest, labels of rows have none. Got level {self.level!r} and "
            f"tokenizer {self.tokenizer!r}",
        )
        self._check_width()
        if self.class_names is not None:
            _refuse_unless(
                len(self.class_names) == self.classes,
                f"there must be a name for each of {self.classes} classes. Got {len(self.class_names)} names",
            )

    def _check_width(self) -> None:
        _refuse_unless(
            (self.k is None) == (self.mode != "topk") and (self.draws is None) == (self.mode != "sampled"),
            f"k goes with mode 'topk' and draws with 'sampled'. Got mode {self.mode!r}, k {self.k}, draws {self.draws}",
        )
        if self.k is not None:
            _refuse_unless(
                1 <= self.k <= self.classes,
                f"k must be 1 ... {self.classes}, the number of classes. Got {self.k}",
            )
        if self.draws is not None:
            _refuse_unless(1 <= self.draws <= MAX_DRAWS, f"draws must be 1 ... {MAX_DRAWS:,}. Got {self.draws}")
        _refuse_unless(
            self.mode != "dense" or self.wide or self.classes <= DENSE_CLASSES,
            f"dense labels of {self.classes:,} classes take {2 * self.classes:,} bytes a position; above "
            f"{DENSE_CLASSES} classes use mode 'topk' or 'sampled', or set wide=True if that is meant",
        )

    @property
    def id_bits(self) -> int:
        """Bits of a stored class id."""
        return id_bits(self.classes)

    @property
    def identity(self) -> str:
        """SHA-256 of all fields, 64 hex digits."""
        return digest_of(self)

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of the Parquet schema."""
        return {METADATA_KEY: canonical_json(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, *, where: str) -> SoftLabelHeader:
        """Read a header back. Raises `SoftLabelError` if there is none or one that is not understood; names `where`."""
        raw = (metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise SoftLabelError(f"{where} holds no soft labels: its schema has no {METADATA_KEY.decode()!r} metadata")
        try:
            return cls.from_plain(json.loads(raw))
        except (ValueError, KeyError, TypeError) as error:
            raise SoftLabelError(f"{where}: the header of its soft labels is not understood: {error}") from error

    @classmethod
    def from_plain(cls, found: dict[str, Any]) -> SoftLabelHeader:
        """Rebuild a header from what `plain` made of it. Raises `ConfigError`, `KeyError` or `TypeError`."""
        if found.get("version") != FORMAT_VERSION:
            raise ConfigError(
                f"it is of format version {found.get('version')!r}, and this reader knows {FORMAT_VERSION}; "
                "make the labels again, or read them with the version that wrote them"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(found.keys() - known):
            raise ConfigError(f"it has unknown fields {unknown}")
        names = found.get("class_names")
        parts = {
            **found,
            "teachers": tuple(Teacher(**each) for each in found["teachers"]),
            "class_names": None if names is None else tuple(names),
        }
        return cls(**parts)

    def as_plain(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        found: dict[str, Any] = plain(self)
        return found

    def check(
        self,
        *,
        where: str,
        teacher: str | Sequence[str] | None = None,
        preprocessing: str | None = None,
        tokenizer: str | None = None,
        class_names: Sequence[str] | None = None,
        classes: int | None = None,
    ) -> None:
        """Refuse a store that is not what its reader expects; None asks for nothing.

        Args:
            where: The store, for the message.
            teacher: Digest of the teacher, or the digests of all of them in order.
            preprocessing: Digest of how rows become inputs.
            tokenizer: Digest of the student's tokenizer.
            class_names: Names of the student's classes, in order.
            classes: Number of the student's classes.

        Raises:
            SoftLabelError: Something differs; says which side has what and what to do.
        """
        if teacher is not None:
            asked = (teacher,) if isinstance(teacher, str) else tuple(teacher)
            own = tuple(each.digest for each in self.teachers)
            remedy = "make the labels again with that teacher, or open the store without asking for one"
            _agree(where, "teacher", asked, own, remedy, names=[each.name for each in self.teachers])
        remedy = "prepare the rows as the teacher saw them, or make the labels again"
        _agree(where, "preprocessing", preprocessing, self.preprocessing, remedy)
        remedy = "ids of one vocabulary mean nothing in another: use the teacher's tokenizer, or make the labels again"
        _agree(where, "tokenizer", tokenizer, self.tokenizer, remedy)
        if classes is not None and classes != self.classes:
            raise SoftLabelError(
                f"{where}: its labels are of {self.classes:,} classes, and the student has {classes:,}: they must be "
                "the same classes in the same order"
            )
        if class_names is not None:
            self._check_names(where, tuple(class_names))

    def _check_names(self, where: str, asked: tuple[str, ...]) -> None:
        own = self.class_names
        if own is None:
            raise SoftLabelError(
                f"{where}: its classes have no names, so their order cannot be checked against {_few(asked)}; make the "
                "labels again with class names, or open the store without asking for them"
            )
        if own == asked:
            return
        if sorted(own) == sorted(asked):
            at = next(place for place, pair in enumerate(zip(own, asked, strict=True)) if pair[0] != pair[1])
            raise SoftLabelError(
                f"{where}: its classes are the student's in another order: class {at} is {own[at]!r} in the store and "
                f"{asked[at]!r} for the student; number the student's labels as in the store, {_few(own)}"
            )
        raise SoftLabelError(
            f"{where}: its {len(own)} classes are {_few(own)}, and the student's {len(asked)} are {_few(asked)}: they "
            "must be the same in the same order"
        )


def id_bits(classes: int) -> int:
    """Return the bits of a stored class id: 16 up to 65,536 classes, then 17, 18, … as needed."""
    return max(16, (classes - 1).bit_length())


def _agree(where: str, what: str, asked: object, own: object, remedy: str, *, names: object = None) -> None:
    if asked is None or asked == own:
        return
    called = f" ({names})" if names else ""
    raise SoftLabelError(f"{where}: the {what} of its labels is {own}{called}, and {asked} was asked for; {remedy}")


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"[{shown}, … {len(names) - _SHOWN} more]" if len(names) > _SHOWN else f"[{shown}]"


def _refuse_unless(right: bool, message: str) -> None:  # noqa: FBT001 - a condition
    if not right:
        raise ConfigError(f"soft labels: {message}")
