import io
import zipfile

import numpy as np
import pytest
from drawn_data import ListSource, make_example, write_voc

from jaxdet.data import proposal_files
from jaxdet.data.proposal_files import WithProposals
from jaxdet.data.sources.parts import NonEmpty
from jaxdet.data.sources.voc import read_voc
from jaxdet.types import Source, UserError

BOXES = [[[1, 2, 3, 4], [5, 6, 7.5, 8]], [], [[-1, 0, 90, 9]]]
SCORES = [[0.75, 0.5], [], [0.25]]
IDS = ["b", 7, "a"]


def _arrays(boxes=BOXES, scores=SCORES):
    return (
        [np.array(b, np.float32).reshape(-1, 4) for b in boxes],
        [np.array(s, np.float32) for s in scores],
    )


@pytest.fixture
def file(tmp_path):
    """Proposals of three images, of which the second has none."""
    proposal_files.write(tmp_path / "made" / "p.npz", IDS, *_arrays())
    return tmp_path / "made" / "p.npz"


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """A source of two images whose files are gone; the first shows an object."""
    images = {"a": ((40, 60), [("cat", (5, 5, 20, 20))]), "b": ((40, 60), [])}
    root = tmp_path_factory.mktemp("voc")
    source = read_voc(root=write_voc(root, images), split="train")
    for path in source.paths:
        path.unlink()
    return source


def _content():
    """The arrays of the fixture's file, as the format describes them."""
    return {
        "ids": np.array(["b", "7", "a"]),
        "counts": np.array([2, 0, 1]),
        "boxes": np.float32([[1, 2, 3, 4], [5, 6, 7.5, 8], [-1, 0, 90, 9]]),
        "scores": np.float32([0.75, 0.5, 0.25]),
    }


def test_the_file_holds_what_its_description_says(file):
    with np.load(file) as found:
        assert sorted(found) == ["boxes", "counts", "ids", "scores"]
        for name, wanted in _content().items():
            np.testing.assert_array_equal(found[name], wanted)
            assert found[name].dtype == wanted.dtype


def test_examples_get_their_proposals_by_id(file):
    source = ListSource([make_example([], id=i) for i in (7, "a", "b")])
    with_proposals = WithProposals(source, str(file))
    assert isinstance(with_proposals, Source)
    assert with_proposals.class_names == source.class_names
    assert len(with_proposals) == 3
    none, one, two = with_proposals
    np.testing.assert_array_equal(two.proposals, BOXES[0])
    np.testing.assert_array_equal(one.proposals, BOXES[2])
    assert (two.proposal_scores.tolist(), one.proposal_scores.tolist()) == ([0.75, 0.5], [0.25])
    assert (none.proposals.shape, none.proposal_scores.shape) == ((0, 4), (0,))
    assert {e.proposals.dtype for e in (none, one, two)} == {np.dtype(np.float32)}
    assert one._replace(proposals=None, proposal_scores=None) == source[1]


def test_proposals_are_not_copied(file):
    source = WithProposals(ListSource([make_example([], id="b")]), file)
    assert np.shares_memory(source[0].proposals, source[0].proposals)
    assert np.shares_memory(source[0].proposal_scores, source[0].proposal_scores)


def test_random_proposals_come_back(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 50)
    boxes = [np.sort(rng.uniform(0, 99, (n, 2, 2)), axis=1).reshape(n, 4) for n in counts]
    boxes = [each.astype(np.float32) for each in boxes]
    scores = [-np.sort(-rng.random(n).astype(np.float32)) for n in counts]
    proposal_files.write(tmp_path / "p.npz", range(50), boxes, scores)
    order = rng.permutation(50)
    source = WithProposals(
        ListSource([make_example([], id=int(i)) for i in order]), tmp_path / "p.npz"
    )
    for example, i in zip(source, order, strict=True):
        np.testing.assert_array_equal(example.proposals, boxes[i])
        np.testing.assert_array_equal(example.proposal_scores, scores[i])


def test_write_puts_the_best_first_and_leaves_equal_ones_in_order(tmp_path):
    boxes = [[[k, 0, 9, 9] for k in range(4)]]
    proposal_files.write(tmp_path / "p.npz", ["a"], *_arrays(boxes, [[0.25, 0.5, 0.25, 0.75]]))
    (example,) = WithProposals(ListSource([make_example([], id="a")]), tmp_path / "p.npz")
    assert example.proposals[:, 0].tolist() == [3, 1, 0, 2]
    assert example.proposal_scores.tolist() == [0.75, 0.5, 0.25, 0.25]


def test_write_takes_other_numbers_and_no_image_at_all(tmp_path):
    file = tmp_path / "p.npz"
    proposal_files.write(file, ["a"], [np.array([[1, 2, 3, 4]])], [np.array([0.1])])
    (example,) = WithProposals(ListSource([make_example([], id="a")]), file)
    assert (example.proposals.dtype, example.proposal_scores.dtype) == (np.float32, np.float32)
    assert example.proposals.tolist() == [[1, 2, 3, 4]]
    proposal_files.write(file, [], [], [])
    assert len(WithProposals(ListSource([]), file)) == 0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "ids, boxes, scores, message",
    [
        (IDS[:2], BOXES, SCORES, "2 ids, 3 boxes and 3 scores"),
        (IDS, BOXES, SCORES[:2], "3 ids, 3 boxes and 2 scores"),
        (IDS, BOXES, [[0.75], [], [0.25]], "image 'b' wants boxes (p, 4) and scores (p,), found"),
        (IDS, BOXES, [[0.75, 0.5], [], 0.25], "found (1, 4) and ()"),
        (["7", 7, "a"], BOXES, SCORES, "ids: image '7' is there 2 times"),
        (IDS, [*BOXES[:2], [[0, NAN, 9, 9]]], SCORES, "image 'a': boxes[0] wants finite numbers,"),
        (IDS, [[[0, 0, 9, INF], [0, 0, 9, 9]], *BOXES[1:]], SCORES, "image 'b': boxes[0] wants f"),
        (IDS, BOXES, [[0.75, -INF], [], [0.25]], "image 'b': scores[1] wants a finite number, fou"),
        (IDS, BOXES, [[0.75, 0.5], [], [NAN]], "image 'a': scores[0] wants a finite number, found"),
    ],
)
def test_write_refuses_what_the_file_must_not_hold(file, ids, boxes, scores, message):
    before = file.read_bytes()
    with pytest.raises(UserError) as error:
        proposal_files.write(file, ids, *_arrays(boxes, scores))
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["p.npz"]


def test_an_interrupted_write_leaves_the_old_file_or_none(file, monkeypatch):
    before = file.read_bytes()

    def interrupted(out, **arrays):
        out.write(b"half of it")
        out.flush()
        assert not other.exists() and file.read_bytes() == before  # All that a kill would leave.
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    other = file.with_name("other.npz")
    for path in (file, other):
        with pytest.raises(KeyboardInterrupt):
            proposal_files.write(path, ["z"], *_arrays([[]], [[]]))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["p.npz"]


def test_a_file_of_other_number_types_is_read(tmp_path):
    content = _content()
    content["ids"], content["counts"] = np.array([4, 7, 2]), np.uint8([2, 0, 1])
    content["boxes"] = content["boxes"].astype(np.float64)
    np.savez_compressed(tmp_path / "p.npz", **content)
    source = WithProposals(ListSource([make_example([], id=2)]), tmp_path / "p.npz")
    np.testing.assert_array_equal(source[0].proposals, BOXES[2])
    assert source[0].proposals.dtype == np.float32


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": None}, "wants the arrays ids, counts, scores, boxes, each once; found 'ids', "),
        ({"ids": np.array(["b", None, "a"], object)}, "ids wants text or whole numbers, found obj"),
        ({"ids": np.array([1.0, 2, 3])}, "ids wants text or whole numbers, found float64"),
        ({"boxes": np.array([["x"] * 4] * 3)}, "boxes wants numbers, found <U1"),
        ({"scores": np.ones(3, complex)}, "scores wants numbers, found complex128"),
        ({"ids": np.array([["b", "7", "a"]])}, "ids wants the shape (n); found (1, 3)"),
        ({"ids": np.array(["b", "7"])}, "counts wants the shape (2), as many as ids; found (3)"),
        ({"counts": np.array([2.0, 0, 1])}, "counts wants whole numbers, found float64"),
        ({"counts": np.array([2, 1, 1])}, "counts wants a sum of 3, as many as there are scores;"),
        ({"counts": np.array([4, -2, 1])}, "image 'b': counts wants 0 to 3, as many as there are"),
        ({"counts": np.array([2, -1, 2])}, "image '7': counts wants 0 to 3, as many as there are"),
        ({"counts": np.uint64([2**64 - 1, 3, 1])}, "image 'b': counts wants 0 to 3"),
        (
            {"boxes": np.zeros((3, 5))},
            "boxes wants the shape (3, 4), as many as scores; found (3, 5)",
        ),
        ({"scores": np.zeros(2)}, "boxes wants the shape (2, 4), as many as scores; found (3, 4)"),
        ({"ids": np.array(["b", "a", "a"])}, "ids: image 'a' is there 2 times"),
        (
            {"scores": np.array([0.5, NAN, 0.25])},
            "image 'b': scores[1] wants a finite number, foun",
        ),
        ({"scores": np.array([1e300, 0.5, 0.25])}, "image 'b': scores[0] wants a finite number, f"),
        ({"boxes": np.diag([1, 1, INF, 1])[:3]}, "image 'a': boxes[0] wants finite numbers, found"),
        (
            {"boxes": np.float32([[0, 0, 1, 1], [30, 9, 5, 10], [0, 0, 1, 1]])},
            "image 'b': boxes[1] wants x1 <= x2 and y1 <= y2, found [30.0, 9.0, 5.0, 10.0]",
        ),
        (
            {"scores": np.array([0.5, 0.75, 0.25])},
            "image 'b': scores[1] wants at most the one before it, as the best comes first, found",
        ),
        (
            {"counts": np.array([0, 1, 2]), "scores": np.array([0.25, 0.5, 0.75])},
            "image 'a': scores[1] wants at most",
        ),
    ],
)
def test_a_file_that_is_not_as_described_is_refused(tmp_path, change, message):
    file = tmp_path / "p.npz"
    content = {k: v for k, v in (_content() | change).items() if v is not None}
    np.savez(file, **content)
    with pytest.raises(UserError) as error:
        WithProposals(ListSource([]), file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_may_rise_from_one_image_to_the_next(tmp_path):
    boxes, scores = [[[0, 0, 9, 9]] * n for n in (1, 0, 2, 0, 0, 1, 0)], [
        [0.1], [], [0.5, 0.2], [], [], [0.9], []
    ]  # fmt: skip
    proposal_files.write(tmp_path / "p.npz", range(7), *_arrays(boxes, scores))
    source = WithProposals(ListSource([make_example([], id=5)]), tmp_path / "p.npz")
    assert source[0].proposal_scores.tolist() == pytest.approx([0.9])


def test_what_is_no_archive_is_refused(file, tmp_path):
    whole = file.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (
        b"",
        b"text",
        whole[:-30],
        b"\0" + whole,
        (tmp_path / "array.npy").read_bytes(),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            WithProposals(ListSource([]), file)
        assert str(error.value).startswith(f"{file}: not a proposals file (")
    damaged = bytearray(whole)
    damaged[whole.index(np.float32([5, 6, 7.5, 8]).tobytes())] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="not a proposals file .*CRC"):
        WithProposals(ListSource([]), file)
    for missing in (tmp_path / "no.npz", tmp_path):
        with pytest.raises(UserError) as error:
            WithProposals(ListSource([]), missing)
        assert str(error.value) == f"no proposals file {missing}"


def test_memory_is_not_taken_for_what_the_file_does_not_have(file):
    """The head of an array says more than a machine has; so does one that is not there whole."""
    head = io.BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(head, said)
    contents = {name: io.BytesIO() for name in _content()}
    for name, array in _content().items():
        np.save(contents[name], array)
    for data in (head.getvalue(), head.getvalue() + bytes(100)):
        contents["scores"] = io.BytesIO(data)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"{name}.npy", content.getvalue())
        with pytest.raises(UserError, match="scores wants 40000000000000 bytes for its shape"):
            WithProposals(ListSource([]), file)


def test_an_array_that_is_there_twice_is_refused(file):
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("ids.npy", archive.read("ids.npy"))
    with pytest.raises(UserError, match="once; found 'ids', 'counts', 'boxes', 'scores', 'ids'"):
        WithProposals(ListSource([]), file)


def test_missing_images_are_found_at_the_start_without_reading_an_image(file, voc):
    assert len(WithProposals(voc, file)) == 2
    proposal_files.write(file, ["a", "c"], *_arrays(BOXES[:2], SCORES[:2]))
    with pytest.raises(UserError) as error:
        WithProposals(voc, file)
    assert str(error.value) == f"{file}: no proposals for 1 of 2 images, first 'b'"


def test_missing_images_of_a_source_that_cannot_list_them_are_counted_or_found_when_read(file):
    several = [make_example([], id=i) for i in ("a", "z", "b", "c")]
    with pytest.raises(UserError) as error:
        WithProposals(ListSource(several), file)
    assert str(error.value) == f"{file}: proposals for 3 images only, the data has 4"
    source = WithProposals(ListSource(several[:3]), file)
    assert len(source[0].proposals) == 1
    with pytest.raises(UserError) as error:
        source[1]
    assert str(error.value) == f"{file}: no proposals for image 'z'"


def test_images_with_objects_are_found_without_reading_an_image(file, voc):
    source = WithProposals(voc, file)
    assert [source.has_object(i) for i in range(2)] == [True, False]
    assert len(NonEmpty(source)) == 1


def test_images_with_objects_are_found_where_only_reading_tells(file):
    box = [[2, 2, 9, 9]]
    examples = [make_example([], id="b"), make_example(box, id="a", difficult=[True])]
    source = WithProposals(ListSource(examples), file)
    assert len(NonEmpty(source)) == 0
    (example,) = NonEmpty(source, use_difficult=True)
    np.testing.assert_array_equal(example.proposals, BOXES[2])


def test_what_the_source_knows_without_images_is_known_behind_it(voc, file):
    both = WithProposals(voc, file)
    assert both.ids() == ["a", "b"]
    assert [len(each.labels) for each in both.annotations()] == [1, 0]
