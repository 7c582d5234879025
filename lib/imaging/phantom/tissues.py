"""Hounsfield units of the phantom's tissues, by contrast phase."""

from enum import StrEnum


class Phase(StrEnum):
    """When the scan was made after the injection of iodinated contrast medium."""

    NON_CONTRAST = "non-contrast"
    ARTERIAL = "arterial"
    """About 35 s: aorta and renal cortex bright, veins and liver hardly."""
    PORTAL_VENOUS = "portal venous"
    """About 70 s: the liver and the portal vein at their peak; metastases stand out dark."""


AIR = -1000.0

_PLAIN: dict[str, float] = {
    "gas": -985,
    "lung": -845,
    "subcutaneous_fat": -106,
    "torso_fat": -100,
    "skin": 10,
    "gallbladder": 8,
    "urine": 6,
    "fluid": 18,
    "stool": 35,
    "cartilage": 95,
    "disc": 80,
    "cord": 32,
    "cortex": 780,
    "marrow": 165,
    "shaft": -20,
    "couch": -250,
    "foam": -940,
}
"""The same in every phase."""

_PHASED: dict[str, tuple[float, float, float]] = {
    "blood_artery": (42, 320, 148),
    "blood_vein": (42, 62, 128),
    "blood_portal": (42, 85, 165),
    "blood_pulmonary": (42, 250, 140),
    "myocardium": (46, 95, 108),
    "muscle": (54, 58, 64),
    "liver": (57, 68, 112),
    "liver_lesion": (38, 48, 62),
    "spleen": (49, 108, 122),
    "pancreas": (42, 98, 92),
    "adrenal": (22, 62, 66),
    "renal_cortex": (33, 165, 182),
    "renal_medulla": (30, 72, 150),
    "bowel_wall": (40, 82, 88),
    "prostate": (40, 58, 76),
    "uterus": (48, 82, 108),
    "gland": (30, 38, 44),
}
"""HU without contrast, arterial, portal venous."""


def tissues(phase: Phase) -> dict[str, float]:
    """HU by tissue, adult, 120 kV.

    Sources: unenhanced soft tissue, Lamba et al., AJR 2014;203:1013-1020; enhancement by phase, Bae, Radiology 2010;256:32-61;
    trabecular bone of the lumbar spine, Pickhardt et al., Ann Intern Med 2013;158:588-595; fat, lung, cartilage and cortical
    bone, Schneider et al., Phys Med Biol 1996;41:111-124. Means within the ranges reported there; thin cortical bone is set
    lower than compact bone is, for a soft-tissue kernel cannot resolve it.
    """
    column = list(Phase).index(phase)
    return _PLAIN | {name: values[column] for name, values in _PHASED.items()}
