"""The page: what stands in it, and how a browser shows it."""

import html
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from evaluation.examples import make_detections, make_example, make_random

from jaxdet.evaluation import analysis
from jaxdet.report import page

FACTS = page.Facts("a <model>", "yolox", "voc /data & more, split val", "1.2.3", 3, 4)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    "--headless --hide-scrollbars --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-sync --disable-background-networking --disable-component-update "
    "--enable-logging=stderr"
).split()
VOID = {"meta", "link", "img"}


def make_page(num_classes=3, names=None, pictures=1, **changes):
    examples, detections = make_random(
        np.random.default_rng(0), num_images=30, num_classes=num_classes, max_objects=8, max_found=9
    )
    names = names or [f"class {i}" for i in range(num_classes)]
    picture = np.zeros((300, 1400, 3), np.uint8)
    measured = analysis.analyse(examples, detections, names)._replace(**changes)
    return page.to_html(measured, FACTS, [(picture, 'image "7": 2 false')] * pictures)


class Nesting(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.loaded = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.loaded += [attrs[k] for k in ("src", "href", "srcset") if k in attrs and tag != "a"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_a_page_has_all_sections_and_needs_no_other_file():
    text = make_page()
    parsed = parse(text)

    assert parsed.ids == list(page.PARTS)
    assert parsed.links[: len(page.PARTS)] == [f"#{name}" for name in page.PARTS]
    assert all(address.startswith("data:") for address in parsed.loaded)
    assert "url(" not in text and "@import" not in text and "<script" not in text


def test_names_cannot_break_out_of_the_text():
    evil = '</td><script>alert("1")</script>&amp;\'"'
    text = make_page(num_classes=2, names=[evil, "b"])

    parse(text)
    assert "<script" not in text
    assert html.escape(evil) in text
    assert "a &lt;model&gt;" in text and "voc /data &amp; more" in text


def test_the_page_names_the_score_to_use():
    text = make_page(score=0.37)

    assert "--score=0.37" in text


@pytest.mark.parametrize("num_classes", [1, 2, 80])
def test_any_number_of_classes_is_told(num_classes):
    text = make_page(num_classes=num_classes)
    parse(text)

    assert text.count("<svg viewBox") < 40
    assert ("the other 68 classes" in text) == (num_classes == 80)
    assert all(f">class {i}</th>" in text for i in range(num_classes))


@pytest.mark.parametrize(
    "example, found",
    [
        (make_example([[0, 0, 9, 9]], [0]), make_detections()),
        (make_example(), make_detections([[0, 0, 9, 9]], [0.5], [0])),
        (make_example(), make_detections()),
    ],
)
def test_a_page_without_detections_or_objects_says_so(example, found):
    text = page.to_html(analysis.analyse([example], [found], ["a", "b"]), FACTS)

    parse(text)
    assert "nan" not in re.sub(r"<style>.*</style>", "", text, flags=re.S).lower()


def test_pictures_are_inlined_and_no_wider_than_needed():
    text = make_page(pictures=2)

    assert text.count('<img src="data:image/jpeg;base64,') == 2
    assert 'alt="image &quot;7&quot;: 2 false"' in text


def test_a_page_is_written_in_one_move(tmp_path):
    measured = analysis.analyse([make_example()], [make_detections()], ["a"])
    page.write_page(tmp_path / "new" / "report.html", measured, FACTS)

    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
@pytest.mark.parametrize("num_classes, width", [(80, 360), (3, 1200)])
def test_a_browser_shows_it_without_overflow_or_complaint(tmp_path, num_classes, width):
    long_name = "a_very_long_class_name_without_any_space_in_it_at_all_" * 3
    names = [long_name, *(f"class {i}" for i in range(1, num_classes))]
    page_text = make_page(num_classes=num_classes, names=names)
    # A frame is as narrow as a phone, which a window of Chromium cannot be.
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" style="width:{width}px" srcdoc="{html.escape(page_text)}"></iframe>'
        "<script>onload = () => { const d = document.getElementById('f').contentDocument;"
        "const wide = [...d.querySelectorAll('section, figure, p, svg, h1, .numbers')].filter("
        "e => e.getBoundingClientRect().right > d.documentElement.clientWidth + 1);"
        "const low = [...d.querySelectorAll('section')].filter(e => e.offsetHeight < 60);"
        "document.title = [d.documentElement.scrollWidth, d.querySelectorAll('section').length,"
        "wide.length, low.length].join(' '); }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        + [(tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = [int(n) for n in re.search(r"<title>([\d ]+)</title>", done.stdout)[1].split()]

    assert seen == [width, len(page.PARTS), 0, 0]
    assert "CONSOLE" not in done.stderr
