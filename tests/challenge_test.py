import base64
import io
import json
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from simgan_jax import challenge
from simgan_jax.challenge import ChallengeError


def pixels(seed, height=10, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(seed=0, kind="JPEG", height=10, width=16, **options):
    out = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(out, kind, **options)
    return out.getvalue()


def luma(data):
    """The first channel of a JPEG as it is stored; of a PNG, from its colours."""
    image = Image.open(io.BytesIO(data))
    if image.format == "PNG":
        return np.asarray(image.convert("L"))
    image.draft("YCbCr", image.size)
    return np.asarray(image)[..., 0]


def batch(*images):
    rows = [{"name": name, "jpg_base64": base64.b64encode(data).decode()} for name, data in images]
    return json.dumps({"images": rows}).encode()


def png_header(width, height):
    """A PNG file that says it has this size, all pixels black, one bit each; its data is complete."""
    deflate = zlib.compressobj(1)
    rows = [deflate.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", b"".join(rows) + deflate.flush()),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_header(width, height):
    """A small JPEG file whose frame header says another size."""
    data = encoded()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def fails(path, *parts, **options):
    with pytest.raises(ChallengeError) as caught:
        challenge.read(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    for part in parts:
        assert part in message
    return message


def test_reads_contest_files_in_natural_order(tmp_path):
    files = {f"challenge-{i}": [(f"{i}-{j}", encoded(10 * i + j, quality=50)) for j in range(2)] for i in (10, 2, 1)}
    for file, images in files.items():
        (tmp_path / file).write_bytes(batch(*images))
    before = {file: (tmp_path / file).read_bytes() for file in files}
    records = challenge.read(tmp_path, height=10, width=16)
    assert records.names == ("1-0", "1-1", "2-0", "2-1", "10-0", "10-1")
    expected = [luma(data) for file in ("challenge-1", "challenge-2", "challenge-10") for _, data in files[file]]
    assert records.gray.dtype == np.uint8
    np.testing.assert_array_equal(records.gray, expected)
    # ITU-T T.81, table K.1: quality 50 is that table unscaled.
    assert records.tables is not None
    assert records.tables.shape == (8, 8)
    assert records.tables[0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]
    assert records.tables[:, 0].tolist() == [16, 12, 14, 14, 18, 24, 49, 72]
    assert {file: (tmp_path / file).read_bytes() for file in files} == before


def test_reads_image_folders(tmp_path):
    for name, seed, kind in (
        ("b2.png", 2, "PNG"),
        ("b10.JPG", 10, "JPEG"),
        ("a.jpeg", 1, "JPEG"),
        (".hidden", 0, "PNG"),
    ):
        (tmp_path / name).write_bytes(encoded(seed, kind))
    records = challenge.read(tmp_path)
    assert records.names == ("a", "b2", "b10")
    np.testing.assert_array_equal(records.gray, [luma(encoded(1)), luma(encoded(2, "PNG")), luma(encoded(10))])
    assert records.tables is None


def test_reads_single_files_and_several_paths(tmp_path):
    (tmp_path / "one.jpg").write_bytes(encoded(1, quality=75))
    (tmp_path / "batch.json").write_bytes(batch(("two", encoded(2, quality=75))))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "batch.backup").write_bytes(b"\n " + batch(("three", encoded(3, quality=30))))
    assert challenge.read(tmp_path / "one.jpg").names == ("one",)
    two = challenge.read_many([str(tmp_path / "one.jpg"), tmp_path / "batch.json"])
    assert two.names == ("one", "two")
    assert two.tables is not None
    three = challenge.read_many([tmp_path / "folder", tmp_path / "one.jpg"])
    assert three.names == ("three", "one")
    assert three.tables is None


@pytest.mark.parametrize(
    ("mode", "value", "gray"),
    [("L", 77, 77), ("1", 1, 255), ("RGB", (255, 0, 0), 76), ("RGBA", (0, 255, 0, 255), 150), ("I;16", 0x4D33, 0x4D)],
)
def test_png_modes(tmp_path, mode, value, gray):
    # Luma by ITU-R 601: 0.299 * 255 = 76, 0.587 * 255 = 150.
    Image.new(mode, (3, 2), value).save(tmp_path / "a.png")
    np.testing.assert_array_equal(challenge.read(tmp_path / "a.png").gray, np.full((1, 2, 3), gray))


def test_colour_jpegs_are_read_as_gray_ones(tmp_path):
    """White text on red, whose chroma, of half the resolution, takes colours at its edges out of range."""
    image = Image.new("RGB", (32, 16), (200, 0, 0))
    image.paste((255, 255, 255), (7, 3, 9, 13))
    colour, gray = io.BytesIO(), io.BytesIO()
    image.save(colour, "JPEG", quality=90, subsampling="4:2:0")
    image.convert("L").save(gray, "JPEG", quality=90)
    (tmp_path / "batch.json").write_bytes(batch(("colour", colour.getvalue()), ("gray", gray.getvalue())))
    read, alone = challenge.read(tmp_path).gray
    np.testing.assert_array_equal(read, alone)
    assert abs(np.asarray(Image.open(colour).convert("L")).astype(int) - read).max() > 4


def test_transparency_is_seen_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    # Half of 10 and half of 255: (127 * 255 + 128 * 10) / 255 = 132.
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (10, 10, 10, 128)])
    image.save(tmp_path / "a.png")
    Image.new("P", (1, 1)).save(tmp_path / "b.png", transparency=b"\x80")
    gray = [challenge.read(tmp_path / name).gray.tolist() for name in ("a.png", "b.png")]
    assert gray == [[[[255, 0, 132]]], [[[127]]]]


def test_iterate_gives_the_same_in_pieces(tmp_path):
    for file in range(3):
        (tmp_path / f"challenge-{file}").write_bytes(batch(*((f"{file}-{i}", encoded(i)) for i in range(3))))
    whole = challenge.read(tmp_path)
    pieces = list(challenge.iterate(tmp_path, 4))
    assert [len(piece.names) for piece in pieces] == [4, 4, 1]
    assert sum((piece.names for piece in pieces), ()) == whole.names
    np.testing.assert_array_equal(np.concatenate([piece.gray for piece in pieces]), whole.gray)
    assert [
        len(piece.names) for piece in challenge.iterate([tmp_path / "challenge-0", tmp_path / "challenge-2"], 6)
    ] == [6]


def test_many_images_in_bounded_memory(tmp_path):
    data = encoded(height=50, width=100, quality=20)
    for file in range(5):
        (tmp_path / f"challenge-{file}").write_bytes(batch(*((f"{file}-{i}", data) for i in range(1000))))
    tracemalloc.start()
    records = challenge.read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert records.gray.shape == (5000, 50, 100)
    assert len(records.names) == 5000
    np.testing.assert_array_equal(records.gray[[0, 2500, 4999]], [luma(data)] * 3)
    # 25 MB of gray, twice 50 MB where NumPy copies it to grow; RGB of all would be 75 MB.
    assert peak < 60e6


def test_decode_and_encode_batch():
    data = challenge.encode_batch([("a", encoded(1)), ("b", encoded(2))])
    assert data == batch(("a", encoded(1)), ("b", encoded(2))).replace(b'": ', b'":').replace(b", ", b",")
    records = challenge.decode_batch(data, "answer 3", height=10, width=16)
    assert records.names == ("a", "b")
    np.testing.assert_array_equal(records.gray, [luma(encoded(1)), luma(encoded(2))])
    with pytest.raises(ChallengeError, match="answer 3: no contest JSON"):
        challenge.decode_batch(data[:-9], "answer 3")


GOOD = ("good", encoded(1))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (batch(GOOD)[:-20], ["no contest JSON", "truncated", "get the file again"]),
        (b"", ["no contest JSON"]),
        (b"<html>gone</html>", ["no contest JSON"]),
        (b'{"images": []}', ["holds no images"]),
        (b'{"images": [{"name": "a"}]}', ["record 0", "jpg_base64"]),
        (b'{"images": [{"name": 7, "jpg_base64": ""}]}', ["record 0", "name"]),
        (batch(GOOD).replace(b'"images"', b'"pictures"'), ["pictures"]),
        (batch(GOOD).replace(b'{"name"', b'{"answer": "abcd", "name"'), ["record 0", "answer"]),
        (batch(GOOD, ("bad", b"")).replace(b'""', b'"!!!!"'), ["record 1", "base64"]),
        (batch(GOOD, ("bad", b"")).replace(b'""', b'"aGVs*G8="'), ["record 1", "base64"]),
        (batch(GOOD, ("bad", b"")).replace(b'""', b'"aGVsbG8"'), ["record 1", "base64"]),
        (batch(GOOD, ("bad", b"hello")), ["record 1 'bad'", "no image data where JPEG must be"]),
        (batch(GOOD, ("bad", encoded(2, "PNG"))), ["record 1 'bad'", "PNG image data where JPEG must be"]),
        (batch(GOOD, ("bad", encoded(2, "GIF"))), ["record 1 'bad'", "no image data where JPEG must be"]),
        (batch(GOOD, ("bad", encoded(2)[:-60])), ["record 1 'bad'", "broken JPEG", "truncated"]),
        (batch(GOOD, ("bad", encoded(2)[:40])), ["record 1 'bad'", "broken JPEG"]),
        (batch(GOOD, ("bad", encoded(2, height=1, width=1))), ["record 1 'bad'", "1x1 pixels", "not 16x10", "'good'"]),
        (batch(GOOD, ("bad", jpeg_header(30_000, 30_000))), ["record 1 'bad'", "too many pixels", "remove it"]),
        (batch(GOOD, ("bad", jpeg_header(3000, 3000))), ["record 1 'bad'", "3000x3000 pixels are too many"]),
        (batch(GOOD, ("../../etc/x", encoded(2))), ["record 1 '../../etc/x'", "a name that is a path", "rename it"]),
        (batch(GOOD, ("..", encoded(2))), ["record 1 '..'", "a path"]),
        (batch(GOOD, ("a\\b", encoded(2))), ["record 1", "a path"]),
        (batch(GOOD, ("", encoded(2))), ["record 1 ''", "0 characters"]),
        (batch(GOOD, ("x" * 201, encoded(2))), ["record 1 'xxx", "201 characters"]),
        (batch(GOOD, ("a\nb\x00", encoded(2))), ["record 1 'a\\nb\\x00'", "control characters"]),
        (batch(GOOD, ("a\u202eb", encoded(2))), ["record 1", "control characters"]),
        (batch(GOOD, GOOD), ["record 1 'good'", "name 'good' came before", "rename or remove"]),
        (encoded(), ["JPEG data, not contest JSON"]),
    ],
)
def test_bad_contest_files(tmp_path, content, parts):
    (tmp_path / "challenge-7").write_bytes(content)
    fails(tmp_path, f"{tmp_path / 'challenge-7'}: ", *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.jpg", encoded(2, "PNG"), ["PNG data in a .jpg file: rename it"]),
        ("x.PNG", encoded(2), ["JPEG data in a .PNG file: rename it"]),
        ("x.jpg", b"hello", ["no image data where JPEG must be"]),
        ("x.png", b"", ["no image data where PNG must be"]),
        ("x.jpg", encoded(2)[:-60], ["broken JPEG", "truncated"]),
        ("x.png", encoded(2, "PNG")[:-60], ["broken PNG"]),
        ("x.png", encoded(2, "PNG")[:20], ["broken PNG"]),
        ("x.png", encoded(2, "PNG", height=1, width=1), ["1x1 pixels (width x height), not 16x10", "a.jpg"]),
        ("x.png", encoded(2, "PNG", height=16, width=10), ["10x16 pixels (width x height), not 16x10"]),
        ("x.jpg", jpeg_header(30_000, 30_000), ["too many pixels"]),
        ("a.png", encoded(2, "PNG"), ["name 'a' came before, in ", "a.jpg"]),
        ("notes.txt", b"hello", ["neither contest JSON nor PNG/JPEG", "move it out"]),
        ("x.gif", encoded(2, "GIF"), ["neither contest JSON nor PNG/JPEG"]),
        ("x\n.jpg", encoded(2), ["x\\n.jpg", "control characters"]),
        (os.fsdecode(b"x\xff.jpg"), encoded(2), ["x\\udcff.jpg", "control characters"]),
    ],
)
def test_bad_image_folders(tmp_path, name, content, parts):
    (tmp_path / "a.jpg").write_bytes(encoded())
    (tmp_path / name).write_bytes(content)
    fails(tmp_path, str(tmp_path), *parts)


def test_decompression_bomb_is_not_decoded(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    tracemalloc.start()
    fails(tmp_path, "bomb.png: far too many pixels", "remove it")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_images_of_another_size_than_configured(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(0, "PNG", height=1, width=1))
    fails(tmp_path, "a.png: 1x1 pixels (width x height), not 100x50, the configured size", height=50, width=100)


def test_a_batch_of_another_size(tmp_path):
    (tmp_path / "challenge-0").write_bytes(batch(("a", encoded())))
    (tmp_path / "challenge-1").write_bytes(batch(("b", encoded(width=20))))
    fails(tmp_path, "challenge-1: record 0 'b': 20x10 pixels", "not 16x10, the size of ", "challenge-0: record 0 'a'")


def test_a_name_twice_in_different_files(tmp_path):
    for file in ("challenge-0", "challenge-1"):
        (tmp_path / file).write_bytes(batch(GOOD))
    fails(tmp_path, "challenge-1: record 0 'good': name 'good' came before, in ", "challenge-0")
    with pytest.raises(ChallengeError, match="came before"):
        challenge.read_many([tmp_path / "challenge-0", tmp_path / "challenge-0"])


def test_folders_and_paths_without_images(tmp_path):
    fails(tmp_path, f"{tmp_path}: empty folder")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    fails(tmp_path, f"{tmp_path}: empty folder")
    fails(tmp_path / "gone", "gone: no such file or folder")
    fails("a\0b", "a\\x00b: no such file or folder")
    fails("x" * 5000, "no such file or folder")
    (tmp_path / "folder").mkdir()
    fails(tmp_path, "folder: a folder among the files")
    with pytest.raises(ChallengeError, match="no path given"):
        challenge.read_many([])


def test_files_that_cannot_be_read(tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / "link")
    fails(tmp_path, "link: no such file")
    fails(tmp_path / "link", "link: no such file")
    os.mkfifo(tmp_path / "pipe.jpg")
    fails(tmp_path / "pipe.jpg", "pipe.jpg: not a regular file")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(challenge.MAX_FILE_BYTES + 1)
    fails(tmp_path / "huge.png", "huge.png: above 512 MiB")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that even its owner cannot read: Linux")
def test_an_unreadable_file():
    fails("/proc/self/mem", "/proc/self/mem: cannot be read (Input/output error)")


def test_an_error_in_a_later_path_comes_before_any_work(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"broken")
    with pytest.raises(ChallengeError, match="gone: no such"):
        challenge.read_many([tmp_path / "a.jpg", tmp_path / "gone"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damaged_images_never_raise_anything_else(kind):
    good = encoded(3, kind)
    random = np.random.default_rng(0)
    name = "x.jpg" if kind == "JPEG" else "x.png"
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for at in random.integers(4 if kind == "JPEG" else 8, len(data), random.integers(1, 6)):
            data[at] = random.integers(0, 256)
        record = challenge._Record("x", bytes(data), kind, name, name)
        try:
            challenge._Decoder(None, None).decode([record])
        except ChallengeError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 0


def test_height_needs_width():
    with pytest.raises(ValueError, match="both height and width"):
        challenge.decode_batch(batch(GOOD), "x", height=10)


def test_solutions(tmp_path):
    path = tmp_path / "solutions.json"
    challenge.write_solutions(path, ["a", 'b"'], ["x1y2", "zzzz"])
    expected = {"solutions": [{"name": "a", "solution": "x1y2"}, {"name": 'b"', "solution": "zzzz"}]}
    assert json.loads(path.read_bytes()) == expected
    assert [(row.name, row.solution) for row in challenge.read_solutions(path).solutions] == [
        ("a", "x1y2"),
        ('b"', "zzzz"),
    ]
    with pytest.raises(ValueError, match="zip"):
        challenge.write_solutions(path, ["a"], [])
    assert json.loads(path.read_bytes()) == expected
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ChallengeError, match=r"solutions.json: no solutions file \(.*truncated"):
        challenge.read_solutions(path)
    with pytest.raises(ChallengeError, match="gone: no such file"):
        challenge.read_solutions(tmp_path / "gone")


def test_predictions(tmp_path):
    path = tmp_path / "predictions.csv"
    challenge.write_predictions(path, ["a,1", ' "b" ', "c"], ["x1y2", "", "zzzz"], np.array([0.25, 1.0, 0.12345649]))
    assert (
        path.read_bytes() == b'name,prediction,confidence\n"a,1",x1y2,0.250000\n" ""b"" ",,1.000000\nc,zzzz,0.123456\n'
    )
    names, texts, confidences = challenge.read_predictions(path)
    assert (names, texts) == (("a,1", ' "b" ', "c"), ("x1y2", "", "zzzz"))
    np.testing.assert_array_equal(confidences, [0.25, 1.0, 0.123456])
    with pytest.raises(ValueError, match="zip"):
        challenge.write_predictions(path, ["a"], ["x"], [])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", "line 1: the header must be name,prediction,confidence"),
        (b"name,label\na,b\n", "line 1: the header must be"),
        (b"name,prediction,confidence\na,b,0.5\nc,d\n", "line 3: not a row"),
        (b"name,prediction,confidence\na,b,0.5,7\n", "line 2: not a row"),
        (b"name,prediction,confidence\n\na,b,0.5\n", "line 2: not a row"),
        (b"name,prediction,confidence\na,b,high\n", "line 2: not a row"),
        (b"name,prediction,confidence\na,b,nan\n", "line 2: not a row"),
        (b"name,prediction,confidence\na,b,1.5\n", "line 2: not a row of name,prediction,confidence (confidence 1.5"),
        (b"name,prediction,confidence\na,b,0.5\na,c,0.5\n", "line 3: 'a' was in line 2"),
        (b'name,prediction,confidence\n"a,b,0.5\n', "not a row"),
        (b"name,prediction,confidence\na,\xff,0.5\n", "not a row"),
    ],
)
def test_bad_predictions(tmp_path, content, parts):
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(ChallengeError) as caught:
        challenge.read_predictions(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert parts in str(caught.value)
    assert str(caught.value).isprintable()
