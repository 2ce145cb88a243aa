"""Contest files and image folders: read, check, decode; write and read answers (io).

A contest file is JSON, `{"images": [{"name": ..., "jpg_base64": ...}, ...]}`. Shapes: `N` images of `[H, W]`.
Nothing in a file is trusted: names, sizes and content are checked before a pixel is decoded.
"""

import csv
import dataclasses
import io
import itertools
import os
import pathlib
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from PIL import Image, JpegImagePlugin

from simgan_jax import atomic, stack

AnyPath = str | os.PathLike[str]

HEADER = ("name", "prediction", "confidence")
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
MAX_FILE_BYTES = 1 << 29
MAX_PIXELS = 1 << 22
MAX_NAME = 200
# What Pillow's decoders raise on hostile bytes, warnings included.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, Warning)


class ChallengeError(ValueError):
    """A file, record, font or answer that cannot be used: one printable line with the place and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


@dataclasses.dataclass(frozen=True)
class Records:
    """Images in input order.

    names: N of them, each once; gray: uint8 `[N, H, W]`, ITU-R 601 luma, of a JPEG as it stands in the file; tables:
    int32 `[8, 8]`, the luma quantisation table (natural order) that all images share, None where one is no JPEG or has
    another table.
    """

    names: tuple[str, ...]
    gray: np.ndarray
    tables: np.ndarray | None


class Predictions(NamedTuple):
    """Rows of a predictions file: names, texts, and confidences float64 `[N]` in [0, 1]."""

    names: tuple[str, ...]
    predictions: tuple[str, ...]
    confidences: np.ndarray


class Solution(msgspec.Struct, forbid_unknown_fields=True):
    """The answer to one captcha."""

    name: str
    solution: str


class Solutions(msgspec.Struct, forbid_unknown_fields=True):
    """What is posted to a contest."""

    solutions: list[Solution]


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    jpg_base64: bytes


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    images: list[_Image]


class _Record(NamedTuple):
    """An image as found. kind: the content that must stand there; place: file and record, for messages."""

    name: str
    data: bytes
    kind: str
    source: str
    place: str


def read(path: AnyPath, *, height: int | None = None, width: int | None = None) -> Records:
    """All images of a folder of contest files or PNG/JPEG files, or of one such file.

    Files are taken in natural order of their names (challenge-2 before challenge-10); hidden ones are passed over.
    An image file's record is named by the file without its ending.

    Args:
      path: folder or file; height, width: the size that every image must have, that of the first if None.

    Raises:
      ChallengeError: anything that is not as it should be; names file, record and remedy.
    """
    return read_many([path], height=height, width=width)


def read_many(paths: Iterable[AnyPath], *, height: int | None = None, width: int | None = None) -> Records:
    """`read` of several folders and files in turn; a name may occur once in all. Many images are mapped (`stack`)."""
    names: list[str] = []
    tables: list[np.ndarray | None] = []
    try:
        with stack.Stack() as gray:
            for piece in iterate(paths, 1000, height=height, width=width):
                gray.append(piece.gray)
                names.extend(piece.names)
                tables = [_shared([*tables, piece.tables])]
            return Records(tuple(names), gray.array(), tables[0])
    except stack.StackError as error:
        raise ChallengeError(str(error)) from error


def iterate(
    paths: AnyPath | Iterable[AnyPath], batch_size: int, *, height: int | None = None, width: int | None = None
) -> Iterator[Records]:
    """`read_many` in pieces of `batch_size` images (the last may be smaller), one contest file in memory at a time."""
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    decoder = _Decoder(height, width)
    records = itertools.chain.from_iterable(_records(file) for file in list(_files(paths)))
    while group := list(itertools.islice(records, batch_size)):
        yield decoder.decode(group)


def decode_batch(data: bytes, source: str, *, height: int | None = None, width: int | None = None) -> Records:
    """Images of a contest file's bytes, checked as `read` does; `source` stands for the file in messages."""
    return _Decoder(height, width).decode(list(_contest_records(data, source)))


def encode_batch(images: Iterable[tuple[str, bytes]]) -> bytes:
    """Bytes of a contest file with these names and JPEG files."""
    return msgspec.json.encode(_Batch([_Image(name, data) for name, data in images]))


def write_solutions(path: AnyPath, names: Sequence[str], predictions: Sequence[str]) -> None:
    """Writes the file that a contest takes, `{"solutions": [{"name", "solution"}, ...]}`, whole or not at all.

    Raises:
      ValueError: names and predictions of different numbers.
      atomic.WriteError: the disk refused.
    """
    rows = [Solution(name, text) for name, text in zip(names, predictions, strict=True)]
    atomic.write_bytes(path, msgspec.json.encode(Solutions(rows)))


def read_solutions(path: AnyPath) -> Solutions:
    """A file that `write_solutions` wrote.

    Raises:
      ChallengeError: missing, or of another form.
    """
    file = pathlib.Path(path)
    try:
        return msgspec.json.decode(_bytes(file), type=Solutions)
    except msgspec.MsgspecError as error:
        raise ChallengeError(f"{file}: no solutions file ({error}): write it again from its predictions") from error


def write_predictions(
    path: AnyPath, names: Sequence[str], predictions: Sequence[str], confidences: Sequence[float] | np.ndarray
) -> None:
    """Writes CSV `name,prediction,confidence`, confidences with 6 decimals, whole or not at all.

    Raises:
      ValueError: columns of different lengths.
      atomic.WriteError: the disk refused.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for name, text, confidence in zip(names, predictions, confidences, strict=True):
        writer.writerow((name, text, f"{confidence:.6f}"))
    atomic.write_text(path, out.getvalue())


def read_predictions(path: AnyPath) -> Predictions:
    """A file that `write_predictions` wrote.

    Raises:
      ChallengeError: missing, another header, a row of other columns, a confidence outside [0, 1], a name twice.
    """
    file = pathlib.Path(path)
    names: dict[str, int] = {}
    texts, confidences = [], []
    line = 1
    try:
        rows = csv.reader(io.StringIO(_bytes(file).decode("utf-8-sig"), newline=""), strict=True)
        if next(rows, None) != list(HEADER):
            raise ChallengeError(f"{file}: line 1: the header must be {','.join(HEADER)}: give a predictions file")
        for line, row in enumerate(rows, start=2):
            name, text, confidence = row
            if name in names:
                raise ChallengeError(f"{file}: line {line}: {name!r} was in line {names[name]}: keep one row an image")
            if not 0.0 <= float(confidence) <= 1.0:
                raise ValueError(f"confidence {confidence} is not within 0 to 1")
            names[name] = line
            texts.append(text)
            confidences.append(float(confidence))
    except ChallengeError:
        raise
    except (ValueError, csv.Error) as error:
        raise ChallengeError(
            f"{file}: line {line}: not a row of {','.join(HEADER)} ({error}): write the file again"
        ) from error
    return Predictions(tuple(names), tuple(texts), np.asarray(confidences, np.float64))


def _files(paths: Iterable[AnyPath]) -> Iterator[pathlib.Path]:
    """Files of the paths in reading order; every visible entry of a folder counts, so none is left out unseen."""
    empty = True
    for path in map(pathlib.Path, paths):
        empty = False
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise ChallengeError(f"{path}: no such file or folder: check the path")
            yield path
            continue
        try:
            names = sorted((name for name in os.listdir(path) if not name.startswith(".")), key=_natural)
        except OSError as error:
            raise ChallengeError(f"{path}: cannot be listed ({error.strerror}): check its permissions") from error
        if not names:
            raise ChallengeError(f"{path}: empty folder: put contest files or PNG/JPEG files there")
        for name in names:
            # False where the folder may be listed and not searched; reading the file then says so.
            if os.path.isdir(path / name):
                raise ChallengeError(f"{path / name}: a folder among the files: give it by itself or move it away")
            yield path / name
    if empty:
        raise ChallengeError("no path given: give a folder or a file")


def _natural(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = [int(p) if i % 2 else p for i, p in enumerate(re.split("([0-9]+)", name))]
    return parts, name


def _bytes(file: pathlib.Path) -> bytes:
    try:
        if not file.exists():
            raise ChallengeError(f"{file}: no such file: check the path")
        if not stat.S_ISREG(file.stat().st_mode):
            raise ChallengeError(f"{file}: not a regular file: give a file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ChallengeError(f"{file}: above {MAX_FILE_BYTES >> 20} MiB: split it into smaller files")
        return file.read_bytes()
    except OSError as error:
        raise ChallengeError(f"{file}: cannot be read ({error.strerror}): check file and permissions") from error


def _records(file: pathlib.Path) -> Iterator[_Record]:
    data = _bytes(file)
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        yield _Record(file.stem, data, SUFFIXES[suffix], str(file), str(file))
    elif suffix in ("", ".json") or data[:64].lstrip()[:1] == b"{":
        yield from _contest_records(data, str(file))
    else:
        raise ChallengeError(f"{file}: neither contest JSON nor PNG/JPEG: move it out of the images' folder")


def _contest_records(data: bytes, source: str) -> Iterator[_Record]:
    if kind := _kind(data):
        raise ChallengeError(f"{source}: {kind} data, not contest JSON: give the file the ending of its content")
    try:
        images = msgspec.json.decode(data, type=_Batch).images
    except msgspec.MsgspecError as error:
        found = re.search(r"\$\.images\[(\d+)\]", str(error))
        place = f"{source}: record {found[1]}" if found else source
        raise ChallengeError(f"{place}: no contest JSON ({error}): get the file again") from error
    if not images:
        raise ChallengeError(f"{source}: holds no images: get the file again")
    for i, image in enumerate(images):
        yield _Record(image.name, image.jpg_base64, "JPEG", source, f"{source}: record {i} {image.name[:MAX_NAME]!r}")


def _kind(data: bytes) -> str | None:
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


class _Decoder:
    """Decodes records in order; what they share (one size, no name twice) is checked over all of them."""

    def __init__(self, height: int | None, width: int | None) -> None:
        if (height is None) != (width is None):
            raise ValueError("give both height and width, or neither")
        self._size = None if height is None or width is None else (width, height)
        self._why = "the configured size"
        self._sources: dict[str, str] = {}

    def decode(self, records: list[_Record]) -> Records:
        gray: np.ndarray | None = None
        tables: list[np.ndarray | None] = []
        for i, record in enumerate(records):
            self._check_name(record)
            luma, table = self._image(record)
            gray = np.empty((len(records), *luma.shape), np.uint8) if gray is None else gray
            gray[i] = luma
            tables = [_shared([*tables, table])]
        assert gray is not None
        return Records(tuple(record.name for record in records), gray, tables[0])

    def _check_name(self, record: _Record) -> None:
        name = record.name
        problem = None
        if not name or len(name) > MAX_NAME:
            problem = f"a name of {len(name)} characters"
        elif "/" in name or "\\" in name or name in (".", ".."):
            problem = "a name that is a path"
        elif not name.isprintable():
            problem = "a name with control characters"
        if problem:
            raise ChallengeError(
                f"{record.place}: {problem}: rename it, 1 to {MAX_NAME} printable characters, no / or \\"
            )
        if name in self._sources:
            raise ChallengeError(
                f"{record.place}: name {name!r} came before, in {self._sources[name]}: rename or remove one of the two"
            )
        self._sources[name] = record.source

    def _image(self, record: _Record) -> tuple[np.ndarray, np.ndarray | None]:
        kind = _kind(record.data)
        if kind != record.kind:
            if kind and record.place == record.source:
                raise ChallengeError(
                    f"{record.place}: {kind} data in a {pathlib.Path(record.source).suffix} file: rename it"
                )
            raise ChallengeError(f"{record.place}: {kind or 'no'} image data where {record.kind} must be: replace it")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                image = Image.open(io.BytesIO(record.data), formats=(kind,))
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise ChallengeError(f"{record.place}: far too many pixels ({error}): remove it") from error
            except DECODER_ERRORS as error:
                raise ChallengeError(f"{record.place}: broken {kind} ({error}): replace it") from error
            with image:
                self._check_size(record, image.size)
                try:
                    return _luma(image), _table(image)
                except DECODER_ERRORS as error:
                    raise ChallengeError(f"{record.place}: broken {kind} ({error}): replace it") from error

    def _check_size(self, record: _Record, size: tuple[int, int]) -> None:
        shown = f"{size[0]}x{size[1]}"
        if size[0] * size[1] > MAX_PIXELS:
            raise ChallengeError(f"{record.place}: {shown} pixels are too many for a captcha: remove it")
        if self._size is None:
            self._size, self._why = size, f"the size of {record.place}"
        if size != self._size:
            raise ChallengeError(
                f"{record.place}: {shown} pixels (width x height), not {self._size[0]}x{self._size[1]}, {self._why}: "
                "keep images of one size together"
            )


def _luma(image: Image.Image) -> np.ndarray:
    # The luma that a colour JPEG holds. By way of RGB it would come back changed wherever chroma, which has half the
    # resolution, takes a colour out of range: at each edge of white text on a coloured ground.
    image.draft("L", image.size)
    if image.mode.startswith("I"):
        return (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
    if image.has_transparency_data:
        # What is transparent may have any colour. Seen on white, as a page shows it.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"))


def _table(image: Image.Image) -> np.ndarray | None:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    return np.asarray(image.quantization[min(image.quantization)], np.int32).reshape(8, 8)


def _shared(tables: list[np.ndarray | None]) -> np.ndarray | None:
    first = tables[0]
    if first is None or any(table is None or not np.array_equal(first, table) for table in tables):
        return None
    return first
