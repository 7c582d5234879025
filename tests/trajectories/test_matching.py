"""Which part of a label a target means: said, never guessed."""

import pytest

from lib.errors import InputError
from lib.trajectories.matching import label_names, match


@pytest.mark.parametrize(
    ("label", "prompt", "names", "values"),
    [
        ("liver", "liver", {1: "liver"}, (1,)),
        ("the spleen", "the spleen", {1: "liver", 2: "Spleen"}, (2,)),
        ("target", "find the spleen please", {3: "spleen"}, (3,)),
        ("left kidney", "left kidney", {1: "kidney_right", 2: "kidney_left"}, (2,)),
        ("left kidney", "left kidney", {1: "Kidney, left"}, (1,)),
        ("kidneys", "kidneys", {1: "kidney_left", 2: "spleen", 3: "right kidney"}, (1, 3)),
        ("kidneys", "both kidneys", {1: "kidney_left"}, ()),
        ("left kidney", "left kidney", {1: "kidneys"}, ()),
        ("kidney", "kidney", {1: "liver"}, ()),
        ("liver", "liver", {1: "liver tumour"}, ()),
        ("is there a liver tumour?", "is there a liver tumour?", {1: "liver", 2: "liver tumour"}, (2,)),
        ("the vessel behind the liver", "the vessel behind the liver", {1: "liver"}, ()),
        ("the odd thing", "the odd thing", {1: "The odd thing!"}, (1,)),
        ("liver", "liver", {1: "Segment_1"}, ()),
        ("liver", "liver", {}, ()),
        ("liver", "liver", {1: "liver", 2: "Liver"}, (1, 2)),
    ],
)
def test_names_are_matched_by_what_they_mean(label, prompt, names, values):
    assert match(label, prompt, names) == values


def test_an_alias_goes_before_the_name():
    assert match("liver", "liver", {1: "Segment_1", 2: "liver"}, {"Segment_1": "liver", "liver": "other"}) == (1,)


def test_viewers_names_are_read_by_index_or_position():
    assert label_names([{"name": "a", "idx": 2}, {"name": "b", "idx": 1}]) == {2: "a", 1: "b"}
    assert label_names([{"name": "a"}, {"name": " b "}]) == {1: "a", 2: "b"}


@pytest.mark.parametrize(
    "info", [{"name": "a"}, [1], [{"idx": 1}], [{"name": "", "idx": 1}], [{"name": "a", "idx": 0}], [{"name": "a", "idx": "1"}]]
)
def test_other_things_are_refused(info):
    with pytest.raises(InputError):
        label_names(info)


def test_two_names_for_one_value_are_refused():
    with pytest.raises(InputError, match="taken"):
        label_names([{"name": "a", "idx": 1}, {"name": "b", "idx": 1}])
