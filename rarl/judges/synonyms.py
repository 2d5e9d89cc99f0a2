"""Wordings that mean the same in radiology and pathology, so that one may stand for the other in an answer.

Unlike in `rarl/rewards/lexicon.yaml`, which groups what a reasoning may mention (a glioma is a tumor there), each
line holds in both directions. Plurals need no entry; hyphens count as blanks.
"""

import re
from functools import cache, lru_cache

from rarl.answers.spelling import open_hyphens, unify

SYNONYMS = """
x ray: xray, radiograph, radiography, radiographic, plain film, roentgenogram
chest x ray: cxr
mri: mr, mr image, mr imaging, magnetic resonance, magnetic resonance imaging, magnetic resonance image
ct: cat scan, ct scan, computed tomography, computerized tomography, computerised tomography
ultrasound: ultrasonography, sonography, sonogram
pet: positron emission tomography
mammography: mammogram
angiography: angiogram
pa: posteroanterior, postero anterior, posterior anterior, posterior to anterior
ap: anteroposterior, antero posterior, anterior posterior, anterior to posterior
axial: transverse, transaxial
lung: pulmonary
heart: cardiac
brain: cerebral
liver: hepatic
kidney: renal
spleen: splenic
stomach: gastric
pancreas: pancreatic
pleura: pleural
chest: thorax, thoracic, thoracic cavity, chest cavity
abdomen: abdominal, abdominal cavity
pelvis: pelvic
gallbladder: gall bladder
bladder: urinary bladder
brainstem: brain stem
left: left sided, left hand
right: right sided, right hand
bilateral: bilaterally, both sided
upper: superior
lower: inferior
anterior: ventral
posterior: dorsal
gray: grey
color: colour
tumor: tumour, neoplasm
edema: oedema
hemorrhage: haemorrhage, bleeding, bleed
hematoma: haematoma
cardiomegaly: enlarged heart, heart enlargement, cardiac enlargement, enlarged cardiac silhouette
infarct: infarction
metastasis: metastases
opacity: opacification
fracture: fractured
gallstone: gall stone, cholelithiasis
kidney stone: nephrolithiasis, renal stone, renal calculus, renal calculi
female: woman
male: man
right upper lobe: rul
right middle lobe: rml
right lower lobe: rll
left upper lobe: lul
left lower lobe: lll
subdural hematoma: sdh
subarachnoid hemorrhage: sah
small bowel obstruction: sbo
left ventricular hypertrophy: lvh
gastrointestinal: gi
endotracheal tube: ett, et tube
nasogastric tube: ngt, ng tube
hypodense: low density, low attenuation, hypoattenuating
hyperdense: high density, high attenuation, hyperattenuating
hypointense: low signal intensity, low signal
hyperintense: high signal intensity, high signal
1st: first
2nd: second
3rd: third
4th: fourth
5th: fifth
6th: sixth
7th: seventh
8th: eighth
9th: ninth
10th: tenth
"""


@cache
def _terms() -> tuple[re.Pattern, dict[str, str]]:
    lines = (line.split(": ") for line in SYNONYMS.strip().splitlines())
    terms = {wording: term for term, others in lines for wording in others.split(", ")}
    longest_first = "|".join(sorted(map(re.escape, terms), key=len, reverse=True))
    return re.compile(rf"(?<!\w)({longest_first})s?(?!\w)"), terms


@lru_cache(maxsize=1 << 14)
def in_one_wording(text: str) -> str:
    """Return a text in lower case with one wording for what means the same.

    >>> in_one_wording("A PA chest radiograph")
    'a pa chest x ray'
    """
    pattern, terms = _terms()
    plain = open_hyphens(unify(text))
    for _ in range(2):  # "renal radiograph": the second pass sees what the first has made
        plain = pattern.sub(lambda found: terms[found.group(1)], plain)
    return plain
