import pytest

from simgan_jax.labels import LabelsError, read_labels


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def fails(path, *parts, **options):
    with pytest.raises(LabelsError) as caught:
        read_labels(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_reads_in_file_order(write):
    path = write("batch,name,label\nb-1,two,cd\nb-0,one,ab\n")
    assert list(read_labels(path).items()) == [("two", "cd"), ("one", "ab")]


@pytest.mark.parametrize("text", ["name,label\none,ab\n", "\ufefflabel,name\r\nab,one\r\n\r\n", 'name,label\n"one",ab'])
def test_plain_files(write, text):
    assert read_labels(write(text)) == {"one": "ab"}


def test_batches_are_chosen(write):
    path = write("batch,name,label\nb-0,one,ab\nb-1,two,cd\nb-2,three,ef\n")
    assert read_labels(path, batches=["b-2", "b-0"]) == {"one": "ab", "three": "ef"}
    fails(path, "no batch 'b-7'", "b-0, b-1, b-2", batches=["b-0", "b-7"])


def test_a_name_may_come_back_in_a_batch_that_is_not_chosen(write):
    path = write("batch,name,label\nb-0,one,ab\nb-1,one,cd\n")
    assert read_labels(path, batches=["b-1"]) == {"one": "cd"}
    fails(path, "line 3", "'one' was in line 2")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no column 'name'", "name, label"]),
        ("name,text\none,ab\n", ["no column 'label'"]),
        ("name,label\n", ["no labels"]),
        ("name,label\none\n", ["line 2", "values as columns"]),
        ("name,label\none,ab\ntwo,cd,ef\n", ["line 3", "values as columns"]),
        ("name,label\none,\n", ["line 2", "empty label"]),
        ("name,label\n,ab\n", ["line 2", "empty name"]),
        ("name,label\none,ab\ntwo,cd\none,ef\n", ["line 4", "'one' was in line 2"]),
        ('name,label\n"one,ab\n', ["no CSV file"]),
    ],
)
def test_bad_files(write, text, parts):
    fails(write(text), *parts)


def test_batches_need_their_column(write):
    fails(write("name,label\none,ab\n"), "no column 'batch'", batches=["b-0"])


def test_other_files(write, tmp_path):
    fails(tmp_path / "missing.csv", "cannot be read (No such file or directory)")
    fails(tmp_path, "cannot be read (Is a directory)")
    fails(write("name,label\nöne,ab\n", "latin-1"), "UTF-8")
