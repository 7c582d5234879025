"""The numbered defects of the released data scripts, each with what our exports do instead.

22 to 31, 37, 38 and 39; the others are in `test_defects.py`.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lib.agent.protocol import Terminate, parse
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.pictures import load_picture
from lib.trajectories.exports.export import ExportRequest, export
from lib.trajectories.exports.rows import read_state
from lib.trajectories.exports.sharegpt import ShareGpt
from lib.trajectories.rewards import recipe_named, useful_error
from lib.trajectories.store import TrajectoryStore
from tests.trajectories.recorded import BAD, GOOD, SIDE, STOP, Recorder, disc, fill

ANSWER = re.compile(r"Terminate|(Positive|Negative) Point \([01]\.\d{4}, [01]\.\d{4}\)")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = TrajectoryStore(tmp_path_factory.mktemp("store"))
    store.recorded = fill(store)
    yield store
    store.close()


@pytest.fixture
def store(tmp_path):
    opened = TrajectoryStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def rows(filled, tmp_path_factory) -> list[dict]:
    """One per turn."""
    return verl(filled, tmp_path_factory.mktemp("rows") / "out")


def verl(store: TrajectoryStore, folder: Path, kind: str = "turn") -> list[dict]:
    export(ExportRequest("verl", kind), store, folder)
    return pq.read_table(folder / "train.parquet").to_pylist()


def test_22_expert_clicks_are_at_the_centre_also_where_the_target_touches_the_border(store, tmp_path):
    recorder = Recorder(store)
    volume, _ = disc()
    recorder.add(*recorder.play(volume, STOP), np.ones((SIDE, SIDE), bool))
    (row,) = verl(store, tmp_path / "out")
    assert row["extra_info"]["answer"] == "Positive Point (0.4948, 0.4948)"


def test_23_every_row_has_polarity_overlap_and_mask_and_an_absent_target_has_a_stop(rows, filled):
    for row in rows:
        about = row["extra_info"]
        assert set(about["labels"]) <= {0, 1}
        assert len(about["labels"]) == len(about["clicklist"])
        assert (about["mask"] == "") == (not about["clicklist"])
    (absent,) = [row["extra_info"] for row in rows if not read_state(row["extra_info"]).reference.present]
    assert (absent["answer"], absent["stop"], absent["pre_iou"]) == ("Terminate", True, 1.0)


def test_24_one_rule_says_when_a_mask_is_right(rows):
    for row in rows:
        state = read_state(row["extra_info"])
        assert row["extra_info"]["stop"] == (useful_error(state.mask, state.reference, recipe_named()) is None)


def test_25_what_is_recorded_is_what_is_exported_with_the_instruction(rows, filled):
    assert rows
    assert all("bright disc" in row["prompt"][-1]["content"] and row["extra_info"]["query"] == "bright disc" for row in rows)


def test_26_masks_are_coco_run_lengths_with_their_size_and_damage_is_an_error(rows, filled):
    sizes = {tuple(json.loads(row["extra_info"]["reference"])["size"]) for row in rows}
    assert sizes == {(SIDE, SIDE)}
    recorded = filled.recorded["right"]
    shown = {row["extra_info"]["mask"] for row in rows}
    assert json.dumps(recorded.outcome.steps[0].mask, separators=(",", ":"), sort_keys=True) in shown
    with pytest.raises((ValueError, TypeError, KeyError)):
        read_state({**rows[0]["extra_info"], "reference": '"a wrapped string"'})


def test_27_every_row_says_how_good_the_mask_was_and_which_step_it_is(rows):
    assert {row["extra_info"]["current_step"] for row in rows} >= {1, 2, 3}
    assert len({row["extra_info"]["pre_iou"] for row in rows}) > 4
    right = [row["extra_info"] for row in rows if row["extra_info"]["stop"] and row["extra_info"]["mask"]]
    assert all(2 <= about["optimal_step"] <= about["current_step"] for about in right)


def test_28_n_clicks_give_n_plus_1_rows_and_the_last_stops(store, tmp_path):
    recorder = Recorder(store)
    volume, mask = disc()
    trajectory = recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    found = verl(store, tmp_path / "out")
    clicks = sum(step.mask is not None for step in trajectory.outcome.steps)
    assert [row["extra_info"]["answer"] for row in found] == ["Positive Point (0.4000, 0.5000)", "Terminate"]
    assert len(found) == clicks + 1
    assert [row["extra_info"]["stop"] for row in found] == [False, True]


def test_28_an_episode_that_ended_without_a_word_has_its_stop_row_too(filled, tmp_path):
    exported = export(ExportRequest("sharegpt"), filled, tmp_path / "out")
    assert exported.card["learned_replies"]["added: stop"] == 1
    annotated = filled.recorded["annotated"].outcome
    assert not isinstance(annotated.steps[-1].action, Terminate)


def test_29_pictures_are_in_the_rows_and_a_lost_one_is_an_error(rows, store, tmp_path):
    assert all(picture["bytes"].startswith(b"\x89PNG") for row in rows for picture in row["images"])
    recorder = Recorder(store)
    volume, mask = disc()
    trajectory = recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    store.blobs.picture_path(trajectory.picture).unlink()
    with pytest.raises(InputError, match="is gone"):
        verl(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["photo.jpg", "scan.v2.tiff", "no-suffix.backup.bmp"])
def test_30_and_31_every_picture_is_a_png_whatever_the_source_was_called(store, tmp_path, name):
    pixels = disc()[0].data[:, :, 0].T
    Image.fromarray(pixels).save(tmp_path / name)
    volume = load_picture(tmp_path / name)
    recorder = Recorder(store)
    recorder.add(*recorder.play(volume, GOOD, STOP), disc()[1])
    found = verl(store, tmp_path / "out")
    assert len(found) == 2
    assert all(picture["bytes"].startswith(b"\x89PNG") for row in found for picture in row["images"])
    assert name.split(".")[0] not in str([row["extra_info"] for row in found])


def test_30_answers_have_four_decimals_and_masks_honest_names(rows, filled):
    assert all(ANSWER.fullmatch(row["reward_model"]["ground_truth"]) for row in rows)
    assert all(row["reward_model"]["ground_truth"] == row["extra_info"]["answer"] for row in rows)
    assert not {"gt_mask_name", "current_gt_mask", "original_image_name"} & rows[0]["extra_info"].keys()
    first = next(row for row in rows if row["extra_info"]["current_step"] == 2)
    state = read_state(first["extra_info"])
    assert state.iou == pytest.approx(first["extra_info"]["pre_iou"], abs=1e-6)


def test_37_the_rewards_name_is_our_own_and_the_card_says_that_the_path_must_be_set(filled, tmp_path):
    found = verl(filled, tmp_path / "out", "episode")
    assert {row["data_source"] for row in found} == {"ibis"}
    assert "`reward.custom_reward_function.path`" in (tmp_path / "out" / "README.md").read_text()


def test_38_episodes_can_be_rolled_out_live(filled, tmp_path):
    found = verl(filled, tmp_path / "out", "episode")
    assert {row["agent_name"] for row in found} == {"ibis_agent"}
    for row in found:
        about = row["extra_info"]
        assert about["clicklist"] == []
        assert about["max_turns"] == 8
        assert (tmp_path / "out" / about["picture"]).is_file()
        assert rle.decode(json.loads(about["reference"])).shape == tuple(reversed(about["image_size"]))


def test_39_an_export_is_read_again_before_it_appears(filled, tmp_path, monkeypatch):
    whole = ShareGpt.put

    def forgetful(self, part, row):
        whole(self, part, row)
        self._rows[part][-1]["images"] = []

    monkeypatch.setattr(ShareGpt, "put", forgetful)
    with pytest.raises(RuntimeError, match="marks and pictures"):
        export(ExportRequest("sharegpt"), filled, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_39_wrong_clicks_are_states_to_learn_from_but_never_replies(rows, filled, tmp_path):
    wrong = parse(BAD).action.point.pixel(SIDE, SIDE)
    assert any(list(wrong) in row["extra_info"]["clicklist"] for row in rows)
    assert all(row["extra_info"]["answer"] != str(parse(BAD).action) for row in rows)
