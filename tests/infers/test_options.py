"""What clients may send, and what is made of it."""

import pytest

from lib.errors import InputError
from lib.imaging.planes import Plane
from lib.imaging.volume import Modality
from lib.infers.options import AgentOptions, ClickOptions


def test_defaults_apply_when_a_client_sends_nothing():
    options = AgentOptions.read({})
    assert (options.prompt, options.slices, options.plane, options.window, options.max_turns) == (
        "",
        "all",
        Plane.AXIAL,
        "auto",
        20,
    )


def test_a_list_sent_back_means_its_first_entry():
    assert AgentOptions.read(AgentOptions.config()).plane is Plane.AXIAL
    assert AgentOptions.read({"plane": ["coronal", "axial"], "window": ["lung"]}).window == "lung"


def test_stale_keys_of_other_tasks_are_ignored():
    AgentOptions.read({"foreground": [[1, 2, 3]], "result_extension": ".nrrd", "client_id": "x", "liver": 1})


def test_config_holds_what_both_viewers_can_show():
    for options in (AgentOptions, ClickOptions):
        assert all(isinstance(value, str | int | float | list) for value in options.config().values())
    assert {"label", "label_prompt", "foreground", "modality"}.isdisjoint(AgentOptions.config())


def test_modality_may_be_automatic():
    assert AgentOptions.read({"modality": "auto"}).modality is None
    assert AgentOptions.read({"modality": "MR"}).modality is Modality.MR


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"max_turns": 101}, "max_turns"),
        ({"budget_s": 0}, "budget_s"),
        ({"budget_s": "soon"}, "budget_s"),
        ({"prompt": 5}, "prompt"),
        ({"plane": "up"}, "plane"),
        ({"label_prompt": ["x"]}, "label_prompt"),
        ({"modality": "XX"}, "modality"),
    ],
)
def test_bad_values_name_the_field(request_, field):
    with pytest.raises(InputError) as caught:
        AgentOptions.read(request_)
    assert caught.value.field == field
