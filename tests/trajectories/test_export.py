"""Exports: what is learned, what is left out, and that a folder appears whole or not at all."""

import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apps.cli import main
from lib.agent.prompts import SYSTEM, turn_prompt
from lib.agent.protocol import Click, Reply, Terminate, parse, render
from lib.errors import InputError
from lib.imaging import rle
from lib.imaging.overlays import OVERLAYS, blend
from lib.imaging.volume import Modality
from lib.policies.conversation import conversation
from lib.trajectories.exports.export import ExportRequest, export
from lib.trajectories.exports.rows import read_state
from lib.trajectories.exports.splits import PARTS, parse_shares, part_of, together
from lib.trajectories.exports.turns import EARLY, ELSEWHERE, INTENDED, MALFORMED, UNDONE, USELESS
from lib.trajectories.recorder import origin_of
from lib.trajectories.rewards import recipe_named, score_reply
from lib.trajectories.store import TrajectoryStore
from tests.agent.scripted import Scripted, click
from tests.trajectories.recorded import BAD, GOOD, STOP, Recorder, correction_of, disc, fill

KINDS = [("sharegpt", "sft"), ("trl", "sft"), ("trl", "grpo"), ("verl", "turn"), ("verl", "episode")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = TrajectoryStore(tmp_path_factory.mktemp("store"))
    opened.recorded = fill(opened)
    yield opened
    opened.close()


@pytest.fixture
def fresh(tmp_path):
    opened = TrajectoryStore(tmp_path / "fresh")
    yield opened
    opened.close()


def sharegpt(folder: Path) -> list[dict]:
    return [
        row for part in PARTS if (folder / f"{part}.json").exists() for row in json.loads((folder / f"{part}.json").read_text())
    ]


def replies(rows: list[dict]) -> list[str]:
    return [message["content"] for row in rows for message in row["messages"] if message["role"] == "assistant"]


def states(folder: Path) -> list[dict]:
    return [row["extra_info"] for row in pq.read_table(folder / "train.parquet").to_pylist()]


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("history", [False, True])
def test_every_right_reply_is_learned_once_and_no_other(store, tmp_path, history):
    exported = export(ExportRequest("sharegpt", history=history), store, tmp_path / "out")
    learned = replies(sharegpt(tmp_path / "out"))
    said = [parse(text) for text in learned]
    assert all(
        isinstance(reply, Reply) and reply.thought and render(reply) == text for reply, text in zip(said, learned, strict=True)
    )
    assert BAD not in learned
    assert "I do not know" not in str(learned)
    kinds = sorted(type(reply.action).__name__ for reply in said)
    assert kinds == ["Click"] * 11 + ["Terminate"] * 6
    assert exported.card["learned_replies"]["added: stop"] == 1
    dropped = exported.card["dropped"]["steps"]
    assert {USELESS, EARLY, INTENDED, MALFORMED, UNDONE} <= dropped.keys()
    assert sum(exported.card["learned_replies"].values()) == len(learned)


def test_history_keeps_conversations_and_begins_anew_after_a_wrong_turn(store, tmp_path):
    export(ExportRequest("sharegpt"), store, tmp_path / "single")
    export(ExportRequest("sharegpt", history=True), store, tmp_path / "history")
    single, history = (sharegpt(tmp_path / name) for name in ("single", "history"))
    assert all(len(row["messages"]) == 3 and len(row["images"]) == 1 for row in single)
    assert max(len(row["images"]) for row in history) > 1
    assert sorted(replies(single)) == sorted(replies(history))


@pytest.mark.parametrize(("form", "rows"), KINDS)
@pytest.mark.parametrize("history", [False, True])
def test_marks_equal_pictures_and_pictures_are_what_inference_shows(store, tmp_path, form, rows, history):
    exported = export(ExportRequest(form, rows, history=history), store, tmp_path / "out")
    if form == "sharegpt":
        found = [
            ([m["content"] for m in row["messages"] if m["role"] == "user"], row["images"]) for row in sharegpt(exported.folder)
        ]
    elif form == "verl":
        table = pq.read_table(exported.folder / "train.parquet").to_pylist()
        found = [([m["content"] for m in row["prompt"] if m["role"] == "user"], row["images"]) for row in table]
    else:
        lines = [json.loads(line) for line in (exported.folder / "train" / "metadata.jsonl").read_text().splitlines()]
        users = [[m["content"] for m in row["prompt"] if m["role"] == "user"] for row in lines]
        assert all(parts[0]["type"] == "image" and parts[1]["type"] == "text" for row in users for parts in row)
        found = [
            (["<image>" + parts[1]["text"] for parts in row], line["images_file_names"])
            for row, line in zip(users, lines, strict=True)
        ]
    assert len(found) == sum(exported.rows.values()) > 0
    for texts, pictures in found:
        assert sum(text.count("<image>") for text in texts) == len(pictures)
        for text in texts:
            assert text in {turn_prompt("bright disc", refining).user for refining in (False, True)}


def test_the_texts_and_the_overlay_are_those_of_inference(store, tmp_path):
    export(ExportRequest("sharegpt"), store, tmp_path / "out")
    recorded = store.recorded["right"]
    plain = store.blobs.picture(recorded.picture)
    painted = blend(plain, rle.decode(recorded.outcome.steps[0].mask), OVERLAYS["inference"])
    shown = {}
    for row in sharegpt(tmp_path / "out"):
        assert row["messages"][0] == {"role": "system", "content": SYSTEM}
        with Image.open(tmp_path / "out" / row["images"][0]) as picture:
            assert picture.format == "PNG"
            shown[np.asarray(picture).tobytes()] = row["messages"][1]["content"]
    assert shown[plain.tobytes()] == turn_prompt("bright disc", refining=False).user
    assert shown[painted.tobytes()] == turn_prompt("bright disc", refining=True).user


@pytest.mark.parametrize("history", [False, True])
def test_a_row_shows_exactly_what_the_policy_was_shown(fresh, tmp_path, monkeypatch, history):
    shown, decide = [], Scripted.decide

    def listening(self, observations, limits=None):
        shown.extend(conversation(observation, history, image_mark=False) for observation in observations)
        return decide(self, observations, limits)

    monkeypatch.setattr(Scripted, "decide", listening)
    recorder = Recorder(fresh)
    volume, mask = disc()
    recorder.add(*recorder.play(volume, BAD, "I do not know", GOOD, click(0.85, 0.15, False), STOP), mask)
    export(ExportRequest("verl", "turn", history=history), fresh, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    asked = [shown[0], *shown[2:]]
    assert len(rows) == len(asked) == 4
    for row, messages in zip(rows, asked, strict=True):
        marked = [("<image>" if m.picture is not None else "") + m.text for m in messages]
        assert [(m["role"], m["content"]) for m in row["prompt"]] == [
            (m.role, t) for m, t in zip(messages, marked, strict=True)
        ]
        pictures = [np.asarray(Image.open(io.BytesIO(picture["bytes"]))) for picture in row["images"]]
        assert all(
            (a == m.picture).all() for a, m in zip(pictures, [m for m in messages if m.picture is not None], strict=True)
        )


def test_a_correction_teaches_what_it_adds(fresh, tmp_path):
    recorder = Recorder(fresh)
    volume, mask = disc()
    slice_, outcome, work = recorder.play(volume, GOOD, BAD, STOP)
    base = recorder.add(slice_, outcome, work, mask)
    correction = correction_of(base, slice_, mask, work)
    fresh.add([correction])
    recorder.grade(correction, mask)
    exported = export(ExportRequest("sharegpt", source="correction"), fresh, tmp_path / "out")
    assert GOOD not in replies(sharegpt(tmp_path / "out"))
    assert {key.partition(":")[0] for key in exported.card["learned_replies"]} == {"expert"}
    assert exported.card["dropped"]["steps"][ELSEWHERE] == 1


def test_an_annotators_click_gets_reasons_from_the_picture(store, tmp_path):
    export(ExportRequest("sharegpt"), store, tmp_path / "out")
    clicks = [text for text in replies(sharegpt(tmp_path / "out")) if "Positive Point (0.4000, 0.5000)" in text]
    assert len({parse(text).thought for text in clicks}) == 2
    assert all(parse(text).thought == "here" or len(parse(text).thought) > 40 for text in clicks)


def test_trl_shows_wrong_turns_and_learns_the_completion(store, tmp_path):
    export(ExportRequest("trl", history=True), store, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()]
    before = [part["text"] for row in rows for m in row["prompt"] if m["role"] == "assistant" for part in m["content"]]
    assert BAD in before
    assert all(len(row["completion"]) == 1 and row["completion"][0]["content"][0]["text"] != BAD for row in rows)


def test_states_hold_what_a_reward_needs(store, tmp_path):
    export(ExportRequest("verl", "turn"), store, tmp_path / "out")
    found = states(tmp_path / "out")
    recipe = recipe_named()
    for row in found:
        state = read_state(row)
        assert state.iou == pytest.approx(row["pre_iou"], abs=1e-6)
        assert row["best_iou"] >= row["pre_iou"]
        assert 1 <= row["current_step"] <= row["max_turns"] + 1
        assert len(row["clicklist"]) == len(row["labels"])
        action = parse(f"<think>x</think><action>{row['answer']}</action>").action
        right = score_reply(
            render(Reply("x", action)), state, state.reference.mask if isinstance(action, Click) else None, recipe
        )
        away = score_reply(
            render(Reply("x", Terminate("no")) if isinstance(action, Click) else parse(BAD)), state, None, recipe
        )
        assert right.total > away.total
    assert sum(row["stop"] for row in found) >= 4


def test_a_row_per_episode_shows_the_state_in_which_it_begins(store, tmp_path):
    export(ExportRequest("verl", "episode"), store, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert len(rows) == 7
    assert all(row["agent_name"] == "ibis_agent" and row["extra_info"]["current_step"] == 1 for row in rows)
    for row in rows:
        path = tmp_path / "out" / row["extra_info"]["picture"]
        assert path.read_bytes() == row["images"][0]["bytes"]


@pytest.mark.parametrize(("form", "rows"), KINDS)
def test_the_same_store_and_settings_give_the_same_bytes(store, tmp_path, form, rows):
    for name in ("one", "two"):
        export(ExportRequest(form, rows, split="0.5,0.3,0.2"), store, tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_no_identifier_leaves_the_house(store, tmp_path):
    for form, rows in KINDS:
        export(ExportRequest(form, rows, annotator="ann"), store, tmp_path / f"{form}-{rows}")
    names = {"ann", "simulated annotator", "run1", "sim"}
    for trajectory in store.recorded.values():
        names |= {
            trajectory.key,
            trajectory.run,
            trajectory.origin.image,
            trajectory.origin.patient,
            trajectory.origin.content_hash,
        }
    texts = "".join(
        path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"
    )
    for name in names:
        assert not re.search(rf"(?<![\w ]){re.escape(name)}(?![\w ])", texts), name
    assert "picture1" not in texts


def test_two_annotators_count_as_their_mean_unless_one_is_named(fresh, tmp_path):
    recorder = Recorder(fresh)
    volume, mask = disc()
    trajectory = recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    recorder.grade(trajectory, disc(radius=14)[1], "another")
    both = export(ExportRequest("sharegpt"), fresh, tmp_path / "both")
    mean = both.card["reward"]["mean"]
    alone = export(ExportRequest("sharegpt", annotator="ann"), fresh, tmp_path / "first").card
    first = alone["reward"]["mean"]
    assert "agent: stop" in alone["learned_replies"]
    assert "agent: stop" not in both.card["learned_replies"], "one of them would have clicked on"
    second = export(ExportRequest("sharegpt", annotator="another"), fresh, tmp_path / "second").card["reward"]["mean"]
    assert mean == pytest.approx((first + second) / 2, abs=1e-6)
    assert second < mean < first
    assert len(both.card["trajectories_by"]["annotator"]) == 2
    with pytest.raises(InputError, match="reward is too low"):
        export(ExportRequest("sharegpt", min_reward=(mean + first) / 2), fresh, tmp_path / "none")
    assert export(ExportRequest("sharegpt", annotator="ann", min_reward=(mean + first) / 2), fresh, tmp_path / "one").rows


def test_filters_narrow(store, tmp_path):
    def count(**filters) -> int:
        try:
            return sum(
                export(
                    ExportRequest("verl", "episode", **filters), store, tmp_path / str(filters), overwrite=True
                ).rows.values()
            )
        except InputError:
            return 0

    assert count(source="simulation") == count(lessons=("recover",)) == count(engine="simulated") == 1
    assert count(label="bright_disc") == 7
    assert count(label="liver") == count(lessons=("other",)) == count(until="2001-01-01") == 0
    assert count(since="2001-01-01") == 7
    with pytest.raises(InputError, match="source 'x' is unknown") as refused:
        export(ExportRequest("sharegpt", source="x"), store, tmp_path / "x")
    assert refused.value.field == "source"


def test_ungraded_and_rejected_trajectories_are_left_out(fresh, tmp_path):
    recorder = Recorder(fresh)
    volume, mask = disc(seed=1)
    recorder.add(*recorder.play(volume, GOOD, STOP), None)
    rejected = recorder.add(*recorder.play(disc(seed=2)[0], GOOD, STOP), mask)
    fresh.reject(rejected.run, 1, "ann", "the wrong organ")
    with pytest.raises(InputError, match="rejected by an annotator") as refused:
        export(ExportRequest("sharegpt"), fresh, tmp_path / "out")
    assert "not graded" in refused.value.message
    assert not list(tmp_path.glob("*out*"))


def test_a_prompt_with_a_frameworks_mark_is_left_out_and_counted(fresh, tmp_path):
    recorder = Recorder(fresh)
    volume, mask = disc(seed=1)
    recorder.add(*recorder.play(volume, GOOD, STOP, prompt="the <image> disc"), mask)
    volume, mask = disc(seed=2)
    recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    exported = export(ExportRequest("sharegpt"), fresh, tmp_path / "out")
    assert exported.rows == {"train": 2}
    assert sum(exported.card["dropped"]["rows"].values()) == 2


def test_the_same_row_is_written_once(fresh, tmp_path):
    recorder = Recorder(fresh)
    for _ in range(3):
        volume, mask = disc(seed=1)
        recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    exported = export(ExportRequest("sharegpt"), fresh, tmp_path / "out")
    assert exported.rows == {"train": 2}
    assert exported.card["dropped"]["rows"] == {"the same row stands there already": 4}


def test_burned_in_text_is_warned_about(fresh, tmp_path):
    recorder = Recorder(fresh)
    volume, mask = disc(seed=1, modality=Modality.US)
    recorder.add(*recorder.play(volume, GOOD, STOP), mask)
    volume, mask = disc(seed=2, modality=Modality.CT)
    slice_, outcome, work = recorder.play(volume, GOOD, STOP)
    origin = replace(origin_of(slice_.view, fresh, work.image_id), burned_in="YES")
    recorder.add(slice_, outcome, work, mask, origin=origin)
    exported = export(ExportRequest("sharegpt"), fresh, tmp_path / "out")
    assert all(word in text for word, text in zip(["BurnedInAnnotation YES", "US (1)"], exported.card["warnings"], strict=True))
    assert all(warning[1:] in (tmp_path / "out" / "README.md").read_text() for warning in exported.card["warnings"])


def test_an_existing_folder_is_kept_unless_it_is_an_export_to_replace(store, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="exists") as refused:
            export(ExportRequest("sharegpt"), store, folder, overwrite=overwrite)
        assert refused.value.field == "output"
    assert (folder / "thesis.txt").read_text() == "mine"
    export(ExportRequest("sharegpt"), store, tmp_path / "export")
    with pytest.raises(InputError, match="--overwrite"):
        export(ExportRequest("trl"), store, tmp_path / "export")
    export(ExportRequest("trl"), store, tmp_path / "export", overwrite=True)
    assert not (tmp_path / "export" / "train.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_nothing_behind_and_the_earlier_export_alone(store, tmp_path, monkeypatch):
    export(ExportRequest("sharegpt"), store, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr("lib.trajectories.exports.export.write_card", _disk_full)
    with pytest.raises(OSError, match="full"):
        export(ExportRequest("sharegpt"), store, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _disk_full(*_) -> None:
    raise OSError("the disk is full")


def test_a_file_that_is_not_as_written_is_noticed(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.trajectories.exports.sharegpt.ShareGpt.written", lambda self, part: iter([(1, 1)]))
    with pytest.raises(RuntimeError, match="rows"):
        export(ExportRequest("sharegpt"), store, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "0.5", "0.5,0.6", "a,b", "1,-0.5,0.5", "0.25,0.25,0.25,0.25", "nan", "inf,-inf"])
def test_shares_that_are_not_understood_are_refused(text):
    with pytest.raises(InputError, match="split") as refused:
        parse_shares(text)
    assert refused.value.field == "split"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("123456")), min_size=1))
def test_no_patient_and_no_image_is_in_two_parts(pairs):
    shares = parse_shares("0.4,0.3,0.3")
    groups = together(pairs)
    parts: dict[str, set[str]] = {}
    for patient, content in pairs:
        for name in (f"patient {patient}", f"content {content}"):
            parts.setdefault(name, set()).add(part_of(groups[patient], shares))
    assert all(len(found) == 1 for found in parts.values())


@given(st.text(min_size=1), st.sampled_from(["1", "0.9,0.1", "0.8,0.1,0.1", "0,0,1"]))
def test_a_patient_has_a_part_with_a_share(patient, text):
    shares = parse_shares(text)
    part = part_of(patient, shares)
    assert shares[PARTS.index(part)] > 0
    assert part == part_of(patient, shares)


def test_parts_have_about_their_shares():
    parts = [part_of(f"patient {n}", parse_shares("0.7,0.2,0.1")) for n in range(2000)]
    assert [parts.count(part) / 2000 for part in PARTS] == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


def test_the_command_writes_and_says_what_it_left_out(store, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export", "sharegpt", "--store", str(store.folder), "--output", str(tmp_path / "out"), "--split", "0.5,0.5"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert USELESS in said
    assert "mind:" in said
    assert (tmp_path / "out" / "card.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["parquet"], "sharegpt, trl, verl"),
        (["verl", "--rows", "sft"], "turn or episode"),
        (["verl", "--budget", "100"], "--model"),
        (["verl", "--split", "0.5"], "add up to 1"),
        (["verl", "--rewards", "mine"], "corrected or released"),
        (["verl", "--model", "nowhere"], "no processor"),
        (["verl", "--store", "nowhere"], "no trajectories"),
    ],
)
def test_bad_settings_are_one_line_and_exit_code_2(arguments, words, store, tmp_path, capsys):
    here = [] if "--store" in arguments else ["--store", str(store.folder)]
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments, *here, "--output", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert words in said
    assert not list(tmp_path.iterdir())


def test_rows_over_the_token_budget_are_left_out_and_counted(store, tmp_path):
    from lib.engines.tiny.qwen import make_tiny_qwen

    model = make_tiny_qwen(tmp_path / "model")
    every = export(ExportRequest("sharegpt", history=True), store, tmp_path / "all", model=model)
    longest = every.card["tokens"]["longest_row"]
    assert f"`cutoff_len` {longest} or more" in (tmp_path / "all" / "README.md").read_text()
    few = export(ExportRequest("sharegpt", history=True, budget=longest - 1), store, tmp_path / "few", model=model)
    assert few.card["tokens"]["longest_row"] < longest
    refused = few.card["dropped"]["rows"]["over the token budget"]
    assert sum(few.rows.values()) + refused == sum(every.rows.values())
