import numpy as np
import pytest
from drawn_data import draw, encode

from jaxdet.data.sources.csv import read_csv
from jaxdet.types import UserError


@pytest.fixture
def write(tmp_path):
    """Writes a table beside two pictures; gives what opens it."""
    for name, size in (("a.jpg", (40, 60)), ("b.jpg", (30, 20))):
        (tmp_path / name).write_bytes(encode(draw(size, [])))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.jpg").write_bytes(b"")

    def to_file(content, encoding="utf-8", split="train", **settings):
        (tmp_path / "train.csv").write_bytes(content.encode(encoding))
        return read_csv(root=str(tmp_path), split=split, **settings)

    return to_file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "content",
    [
        "image,x1,y1,x2,y2,class\nb.jpg,1,2,8,9.5,dog\na.jpg,,,,,\nb.jpg,0,0,20,30,cat",
        "b.jpg,1,2,8,9.5,dog\r\na.jpg,,,,,\r\nb.jpg,0,0,20,30,cat\r\n",
        "a.b;Filename;Class;XMin;yMax;y min;x-max\n"
        "9;b.jpg;dog;1;9.5;2;8\n8;a.jpg;;;;;\n7;b.jpg;cat;0;30;0;20\n",
        'x1\ty1\tx2\ty2\timage\tlabel\n1\t2\t8\t9.5\t"b.jpg"\t dog \n\n'
        "\t\t\t\ta.jpg\t\n0\t0\t20\t30\tb.jpg\tcat",
    ],
)
def test_tables_of_many_programs_are_read(write, content, encoding):
    source = write(content, encoding)
    first, second = source
    np.testing.assert_array_equal(first.boxes, [[1, 2, 8, 9.5], [0, 0, 20, 30]])
    assert first.labels.tolist() == [1, 0] and source.class_names == ("cat", "dog")
    assert (first.id, first.size, first.area.tolist()) == ("b.jpg", (30, 20), [52.5, 600])
    assert (second.id, second.size, second.boxes.shape) == ("a.jpg", (40, 60), (0, 4))


def test_sizes_of_the_table_are_taken_where_it_has_them(write):
    source = write(
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,6,4,cat,1,1,2,2\nb.jpg,,,cat,1,1,2,2"
    )
    assert [example.size for example in source] == [(4, 6), (30, 20)]


SIZED = "image,width,height,x1,y1,x2,y2,class\n"


def test_a_size_is_that_of_any_row_of_its_image_and_whole(write):
    rows = "a.jpg,6,,1,1,2,2,cat\na.jpg,6,4,1,1,2,2,cat\nb.jpg,6,,1,1,2,2,cat\nb.jpg,,4,1,1,2,2,cat"
    assert [example.size for example in write(SIZED + rows)] == [(4, 6), (30, 20)]


def test_one_image_of_two_sizes_is_refused(write):
    rows = "a.jpg,6,4,1,1,2,2,cat\na.jpg,4,6,1,1,2,2,cat"
    with pytest.raises(
        UserError, match=r"csv:3: 'a.jpg' is 6 x 4 pixels here \(height x width\), "
    ):
        write(SIZED + rows)


def test_all_rows_that_are_no_objects_are_known_at_once(write):
    with pytest.raises(UserError) as error:
        write(HEAD + "a.jpg,1,1,5,cat\na.jpg,1,1,2,2,cat\na.jpg,1,,5,5,cat")
    assert [line.rpartition("/")[2][:12] for line in error.value.lines] == [
        *("train.csv:3:", "train.csv:5:")
    ]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "sep=;;;;;;"])
def test_excel_s_line_of_the_separator_is_read(write, first):
    rows = f'{first}\nimage;x1;y1;x2;y2;class\na.jpg; 1;1;5;5; "cat; small"\n'
    source = write(rows)
    assert source.class_names == ("cat; small",) and len(source) == 1
    with pytest.raises(UserError, match="train.csv:4: wants x1 < x2"):
        write(rows + "b.jpg;1;1;1;5;cat")


HEAD = "image,x1,y1,x2,y2,class\na.jpg,1,1,5,5,cat\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (HEAD + "a.jpg,1,1,5,cat", "train.csv:3: wants 6 cells, found 5"),
        (HEAD + ",1,1,5,5,cat", "train.csv:3: the image wants a name"),
        (HEAD + "a.jpg,1,1,5,5,", "train.csv:3: the class wants a name"),
        (HEAD + "a.jpg,1,,5,5,cat", "train.csv:3: y1 wants a finite number, found ''"),
        (HEAD + "a.jpg,1,1,inf,5,cat", "train.csv:3: x2 wants a finite number, found 'inf'"),
        (HEAD + "a.jpg,1,1,1e39,5,cat", "train.csv:3: x2 wants a finite number, found '1e39'"),
        (HEAD + "a.jpg,-3e38,1,3e38,5,cat", "train.csv:3: wants sides and an area below 3.4e38"),
        (HEAD + "a.jpg,1,1,2e19,2e19,cat", "train.csv:3: wants sides and an area below 3.4e38"),
        (HEAD + "a.jpg,1,1,1_0,5,cat", "train.csv:3: x2 wants a finite number, found '1_0'"),
        (HEAD + "a.jpg,,,,,cat", "train.csv:3: x1 wants a finite number, found ''"),
        (HEAD + "a.jpg,5,1,1,5,cat", "train.csv:3: wants x1 < x2 and y1 < y2, found 5, 1, 1, 5"),
        (HEAD + "a.jpg,,,,,", "train.csv:3: 'a.jpg' has an object in one row, and none in another"),
        (HEAD + '"a.jpg,1', "train.csv:3: unexpected end of data"),
        (HEAD + "./a.jpg,1,1,5,5,cat", "train.csv: a.jpg and ./a.jpg are one picture, "),
        (
            HEAD + "s\\a.jpg,1,1,5,5,cat\ns/a.jpg,1,1,5,5,cat",
            "s\\a.jpg and s/a.jpg are one picture",
        ),
        (HEAD + "c.jpg,1,1,5,5,cat", "1 of 2 images are missing"),
        (HEAD + "../a.jpg,1,1,5,5,cat", "wants a path below the image folder"),
        ("image,x1,y1,x2,class\na.jpg,1,1,5,cat", "train.csv:1: wanted the columns image/filename"),
        ("image,x1,y1,x2,xmin,y2,class\n", "train.csv:1: the columns x1 and xmin both say x1"),
        ("image,x1,y1,x2,y2,class\n", "wanted rows of boxes, found none"),
        ("", "wanted rows of boxes, found none"),
    ],
)
def test_a_row_that_is_no_object_is_named(write, content, message):
    with pytest.raises(UserError) as error:
        write(content)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_each_row_of_an_unknown_class_is_named(write):
    rows = "b.jpg,1,1,5,5,dog\na.jpg,1,1,5,5,emu\nb.jpg,2,1,5,5,emu"
    with pytest.raises(UserError) as error:
        write(HEAD + rows, classes=("dog",))
    assert [line.partition("train.csv")[2] for line in error.value.lines] == [
        f":{line}: unknown class '{name}'; data.classes has 'dog'"
        for line, name in ((2, "cat"), (4, "emu"), (5, "emu"))
    ]


def test_one_table_is_one_split(write):
    assert len(write(HEAD, annotations="train.csv")) == 1
    with pytest.raises(UserError, match="there is no split 'val': data.options has no '{split}'"):
        write(HEAD, split="val", annotations="train.csv")
    with pytest.raises(UserError, match="no annotation file .*val.csv"):
        write(HEAD, split="val")
