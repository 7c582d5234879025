import pytest
from pydicom.sr._concepts_dict import concepts

from lib.agent.anatomy import Anatomy, anatomy
from lib.errors import UnknownTarget
from lib.imaging.windows import window_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("liver", "liver"),
        ("Can you find a liver in this image?", "liver"),
        ("left kidney", "kidney_left"),
        ("kidney_left", "kidney_left"),
        ("Kidney, left.", "kidney_left"),
        ("the patient's right lung", "lung_right"),
        ("lung on the left side", "lung_left"),
        ("kidney", "kidneys"),
        ("both kidneys", "kidneys"),
        ("left and right lung", "lungs"),
        ("is there a spleen", "spleen"),
        ("the lien", "spleen"),
        ("skeleton", "bones"),
        ("skin outline", "body"),
        ("spinal cord", "spinal_cord"),
        ("spine", "vertebral_column"),
        ("liver and spleen", "liver"),
        ("spleen and liver", "spleen"),
        ("tumour in the liver", "liver_tumour"),
        ("brain tumor", "brain_tumour"),
        ("liver cyst", "liver_lesion"),
        ("lesion", "lesion"),
        ("gall-bladder", "gallbladder"),
        ("bladder", "urinary_bladder"),
    ],
)
def test_free_text_names_the_structure(text: str, name: str):
    found = anatomy().find(text)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("text", ["gizmo", "", "left", "deliver the pancake", "???"])
def test_other_text_names_nothing(text: str):
    assert anatomy().find(text) is None


def test_every_name_and_synonym_finds_its_own_structure():
    for structure in anatomy().structures:
        if structure.organ is None:
            for words in (structure.name, structure.label, *structure.synonyms):
                found = anatomy().find(words)
                assert found is not None
                assert found.name == structure.name, words


@pytest.mark.parametrize("text", ["gizmo", "pancreas"])
def test_what_the_rules_cannot_find_is_refused_with_what_they_can(text: str):
    with pytest.raises(UnknownTarget, match=rf"'{text}'. Without weights I know: .*body, bones, .*liver, .*spleen"):
        anatomy().rule_target(text)


def test_every_code_is_in_the_dicom_dictionary_with_that_meaning():
    known: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            known.setdefault(value, set()).add(meaning)
    for structure in anatomy().structures:
        for code in (structure.code, structure.category_code, structure.laterality_code):
            if code is not None:
                meanings = {meaning.removesuffix(" (qualifier value)") for meaning in known[code.value]}
                assert code.meaning in meanings, structure.name


def test_sides_and_pairs_agree():
    for structure in anatomy().structures:
        for part in structure.parts:
            assert anatomy()[part].side is not None
            assert anatomy()[part].code == structure.code
        if structure.side is not None:
            assert structure.name.endswith(structure.side)
            assert structure.label.startswith(structure.side)
            assert structure.laterality_code is not None


def test_windows_are_presets():
    assert {s.window for s in anatomy().structures} - {None} <= set(window_names())


def test_one_word_cannot_mean_two_structures():
    liver = anatomy()["liver"]
    with pytest.raises(ValueError, match="means both"):
        Anatomy(structures=(liver, liver.model_copy(update={"name": "hepar_alter"})))
