import re

import pytest

from jaxdet.data.sources import voc_xml
from jaxdet.types import UserError

BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20.5</xmax><ymax>30</ymax></bndbox>"
BIG = BOX.replace("20.5", "3e38").replace("3<", "-3e38<", 1)
CORNERS = (3, 4, 20.5, 30)
POLYGON = "<polygon><x1>3</x1><y1>4</y1><x2>20.5</x2><y2>30</y2></polygon>"
POINTS = "<polygon><pt><x>3</x><y>30</y></pt><pt><x>20.5</x><y>4</y></pt></polygon>"


def _read(tmp_path, inside, size="<size><width>60</width><height>40</height></size>", root=""):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation{root}>{size}{inside}</annotation>")
    return voc_xml.read(path)


@pytest.mark.parametrize(
    "inside",
    [
        f"<name>cat</name>{BOX}",
        f"<name> cat\n</name><difficult>0</difficult>{BOX}",
        f"<name>cat</name><difficult/><part><name>ear</name>{BOX}</part>{BOX}",
        f"<name>cat</name>{POLYGON}",
        f"<name>cat</name>{POINTS}",
    ],
)
def test_an_object_has_a_name_and_a_box(tmp_path, inside):
    size, objects, _ = _read(tmp_path, f"<object>{inside}</object>")
    assert size == (40, 60)
    assert objects == [("cat", False, CORNERS)]


def test_names_may_be_in_a_namespace(tmp_path):
    inside = f"<object><name>cat</name><difficult>1</difficult>{BOX}</object>"
    size, objects, _ = _read(tmp_path, inside, root=' xmlns="http://example.org/voc"')
    assert size == (40, 60)
    assert objects == [("cat", True, CORNERS)]


def test_names_may_be_of_any_case(tmp_path):
    inside = f"<object><name>Cat</name><difficult>1</difficult>{BOX}</object>"
    mixed = re.sub("<(/?)([a-z])", lambda m: f"<{m[1]}{m[2].upper()}", inside)
    assert "<Object><Name>Cat" in mixed
    assert _read(tmp_path, mixed) == ((40, 60), [("Cat", True, CORNERS)], 0)


@pytest.mark.parametrize(
    "text, found",
    [
        ("<html><body>404</body></html>", "html"),
        ('<annotations><image id="0" name="a.png"/></annotations>', "annotations"),
        (f"<object><name>cat</name>{BOX}</object>", "object"),
        (f"<{'a' * 99}/>", "a" * 40),
    ],
)
def test_xml_of_something_else_is_no_image_without_objects(tmp_path, text, found):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        voc_xml.read(path)
    wanted = f"{path}: not a VOC annotation: wanted <annotation>, found <{found}>"
    assert str(error.value) == wanted


def test_each_of_several_boxes_is_an_object(tmp_path):
    other = BOX.replace("20.5", "22")
    objects = _read(tmp_path, f"<object><name>cat</name>{BOX}{other}</object>").objects
    assert [each.corners for each in objects] == [CORNERS, (3, 4, 22, 30)]
    assert {each.name for each in objects} == {"cat"}


def test_objects_that_are_marked_as_deleted_are_counted_and_not_read(tmp_path):
    kept = f"<object><name>cat</name><deleted>0</deleted>{BOX}</object>"
    _, objects, deleted = _read(tmp_path, f"<object><deleted>1</deleted></object>{kept}")
    assert objects == [("cat", False, CORNERS)] and deleted == 1


@pytest.mark.parametrize("side", ["0", "-1", "", "?", "nan", "inf"])
def test_a_size_that_is_none_is_0(tmp_path, side):
    found = _read(tmp_path, "", f"<size><width>{side}</width><height>40</height></size>")
    assert found.size == (40, 0)


@pytest.mark.parametrize(
    "inside, message",
    [
        (BOX, "name wants text, found none"),
        (f"<name/>{BOX}", "name wants text, found none"),
        ("<name>cat</name>", "wants a bndbox, or a polygon"),
        ("<name>cat</name><polygon><x1>3</x1></polygon>", "wants a bndbox, or a polygon"),
        (f"<name>cat</name>{BOX.replace('30', 'nan')}", "ymax wants a finite number, found 'nan'"),
        (f"<name>cat</name>{BOX.replace('30', '1e39')}", "ymax wants a finite number, found '1e3"),
        (f"<name>cat</name>{BIG}", "wants a box with sides and an area below 3.4e38, found (-3e+"),
        (f"<name>cat</name>{BOX.replace('30', '3_0')}", "ymax wants a finite number, found '3_0'"),
        (f"<name>cat</name>{BOX.replace('<xmin>3</xmin>', '')}", "bndbox/xmin wants a finite numb"),
        (f"<name>cat</name><difficult>no</difficult>{BOX}", "difficult wants 0 or 1, found 'no'"),
        (f"<name>cat</name><deleted>no</deleted>{BOX}", "deleted wants 0 or 1, found 'no'"),
    ],
)
def test_a_broken_object_is_named_by_its_place(tmp_path, inside, message):
    good = f"<object><name>cat</name>{BOX}</object>"
    with pytest.raises(UserError, match="a.xml: object 2: ") as error:
        _read(tmp_path, f"{good}<object>{inside}</object>")
    assert message in str(error.value)


LONG = f'<!DOCTYPE a [<!ENTITY a "{"boom" * 5000}">]><annotation>{"&a;" * 5000}</annotation>'
FOREIGN = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'
BOMB = '<!DOCTYPE a [<!ENTITY a "boom"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    "text", ["", "<annotation>", "no xml", BOMB, LONG, FOREIGN, "<a>" * 99999, " " * 2**24 + "<a/>"]
)
def test_what_is_no_annotation_is_said_in_a_line(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(UserError, match="a.xml: not a VOC annotation") as error:
        voc_xml.read(path)
    assert "\n" not in str(error.value)


def test_deeply_nested_elements_are_read(tmp_path):
    assert _read(tmp_path, "<a>" * 99999 + "</a>" * 99999) == ((40, 60), [], 0)
