"""Lengths in epochs."""

import pytest

from jaxdet.commands import lengths
from jaxdet.commands.keys import Key, length
from jaxdet.types import UserError

TREE = {
    "batch_size": Key(1, int, ""),
    "num_steps": length(0, ""),
    "init_from": Key("", str, ""),
    "optimizer": {"milestones": Key((), tuple[int | str, ...], "", is_length=True)},
}


def config(num_steps, milestones=(), batch_size=16):
    optimizer = {"milestones": milestones}
    return {
        "batch_size": batch_size,
        "num_steps": num_steps,
        "init_from": "2 epochs",  # The name of a file.
        "optimizer": optimizer,
    }


@pytest.mark.parametrize(
    "text, steps",
    [("12 epochs", 72), ("1 epoch", 6), (".5 epochs", 3), ("0.01epochs", 1), ("0 epochs", 0)],
)
def test_an_epoch_is_the_whole_batches_in_the_images(text, steps):
    before = config(text, (7, text))
    found = lengths.resolve(before, TREE, 100)  # 6 steps and 4 images an epoch.
    assert found == config(steps, (7, steps))
    assert lengths.wants_epochs(before, TREE) and not lengths.wants_epochs(found, TREE)


def test_fewer_images_than_a_batch_are_an_epoch_of_one_step():
    assert lengths.resolve(config("3 epochs"), TREE, 5)["num_steps"] == 3


@pytest.mark.parametrize("text", ["12", "epochs", "-1 epochs", "12 epochs or so", "1e3 epochs"])
def test_what_is_no_length_is_named(text):
    with pytest.raises(UserError, match="config.num_steps wants steps, or such as"):
        lengths.wants_epochs(config(text), TREE)
