"""Common terms of radiology reports with their synonyms: our own list.

`TERMS` maps a group to its terms, and a term to its other wordings, separated by commas. Plurals need no entry;
hyphens count as blanks. The list is short on purpose: it covers what SLAKE, VQA-RAD and Silvar-Med ask about chest
X-rays, brain MRI and abdominal CT. To add a term, add it here and a line to `tests/unit/test_reward_terms.py`.
"""

TERMS: dict[str, dict[str, str]] = {
    "modality": {
        "x ray": "xray, radiograph, radiography, plain film, roentgenogram, cxr",
        "mri": "mr, mr image, magnetic resonance, magnetic resonance imaging",
        "ct": "cat scan, computed tomography, tomography",
        "ultrasound": "ultrasonography, sonography, sonogram",
        "pet": "positron emission tomography",
        "mammography": "mammogram",
        "angiography": "angiogram",
    },
    "organ": {
        "lung": "pulmonary, lung field",
        "heart": "cardiac, cardiac silhouette, heart shadow",
        "brain": "cerebral, intracranial, brain parenchyma",
        "liver": "hepatic, hepatic parenchyma",
        "kidney": "renal",
        "spleen": "splenic",
        "pleura": "pleural, pleural space, pleural cavity",
        "mediastinum": "mediastinal",
        "hilum": "hilar, hila, perihilar",
        "diaphragm": "hemidiaphragm, diaphragmatic, costophrenic angle",
        "trachea": "tracheal, airway",
        "bronchus": "bronchi, bronchial",
        "aorta": "aortic",
        "ventricle": "ventricular",
        "cerebellum": "cerebellar",
        "brainstem": "brain stem",
        "white matter": "",
        "cortex": "cortical, gray matter, grey matter",
        "skull": "cranial, calvarium",
        "pancreas": "pancreatic",
        "gallbladder": "gall bladder",
        "bile duct": "biliary",
        "stomach": "gastric",
        "bowel": "intestine, intestinal, colon, colonic",
        "bladder": "urinary bladder",
        "adrenal": "adrenal gland",
        "lymph node": "lymphatic, nodal",
        "rib": "costal",
        "spine": "spinal, vertebra, vertebrae, vertebral",
        "bone": "osseous, bony, skeletal",
    },
    "side": {
        "left": "left sided, left hand side",
        "right": "right sided, right hand side",
        "bilateral": "bilaterally, both sided",
    },
    "level": {
        "upper": "superior, apical, apex",
        "middle": "mid, mid zone",
        "lower": "inferior, basal, basilar, base",
    },
    "depth": {
        "anterior": "ventral",
        "posterior": "dorsal",
    },
    "zone": {
        "peripheral": "periphery",
        "central": "centrally, midline",
        "lateral": "laterally",
        "medial": "medially",
    },
    "lobe": {
        "frontal": "",
        "temporal": "",
        "parietal": "",
        "occipital": "",
    },
    "size": {
        "large": "big, sizable, sizeable, massive, extensive",
        "small": "tiny, subcentimeter, minute, minimal",
    },
    "tone": {
        "bright": "hyperdense, hyperintense, hyperintensity, high signal, high density, radiopaque, white",
        "dark": "hypodense, hypointense, hypodensity, low signal, low density, radiolucent, hypoattenuating, black",
    },
    "shape": {
        "round": "rounded, circular, spherical, oval",
        "hazy": "ill defined, indistinct, blurred, blurry, cloudy",
        "well defined": "circumscribed, well circumscribed, sharply defined",
        "irregular": "lobulated, spiculated",
        "linear": "band like",
        "diffuse": "diffusely, widespread",
        "focal": "localized, localised",
    },
    "sign": {
        "lesion": "spot, focus, foci",
        "opacity": "opacification, opacified, density, infiltrate, infiltration, shadowing, hazy area, haze",
        "consolidation": "consolidated, airspace disease, air bronchogram",
        "fluid": "liquid",
        "enlargement": "enlarged, dilated, dilation, dilatation, widened",
        "thickening": "thickened",
        "calcification": "calcified, calcific",
        "mass effect": "midline shift, shift",
        "enhancement": "enhancing",
        "inflammation": "inflammatory, inflamed",
        "infection": "infectious, infected",
    },
    "diagnosis": {
        "pneumonia": "pneumonic, bronchopneumonia",
        "nodule": "nodular, coin lesion",
        "mass": "",
        "effusion": "pleural effusion, pleural fluid, fluid collection",
        "cardiomegaly": "enlarged heart, large heart, heart enlargement, enlarged cardiac silhouette, "
        "cardiac enlargement",
        "pneumothorax": "",
        "atelectasis": "collapse, collapsed lung, atelectatic",
        "edema": "oedema, edematous, oedematous",
        "tumor": "tumour, neoplasm, neoplastic, cancer, carcinoma, malignancy, malignant, glioma, meningioma",
        "metastasis": "metastases, metastatic",
        "cyst": "cystic",
        "abscess": "",
        "infarct": "infarction, stroke, ischemia, ischemic",
        "hemorrhage": "haemorrhage, bleed, bleeding, hematoma, haematoma",
        "aneurysm": "",
        "hydrocephalus": "",
        "fracture": "fractured",
        "emphysema": "copd, hyperinflation",
        "fibrosis": "fibrotic, scarring, scar",
        "tuberculosis": "",
        "cirrhosis": "cirrhotic",
        "stone": "calculus, calculi, nephrolithiasis, gallstone",
        "hydronephrosis": "",
        "ascites": "",
        "splenomegaly": "",
        "hepatomegaly": "",
        "pancreatitis": "",
        "appendicitis": "",
        "hernia": "herniation",
        "obstruction": "obstructed",
    },
    "state": {
        "abnormal": "abnormality, abnormally, disease, diseased, unhealthy, pathology, pathologic, pathological, "
        "irregularity",
    },
}

#: Wordings that state a term by denying it: "normal" is "not abnormal".
DENIALS: dict[str, str] = {
    "abnormal": "normal, healthy, unremarkable, intact, is clear, are clear, appear clear, look clear, lung clear, "
    "clear lung",
}

#: Wordings in which a term's word means something else.
IDIOMS = ("is clear that",)

#: Of these at most one fits a finding: another one in its place contradicts.
RIVALS = ("modality", "organ", "side", "level", "size", "tone", "diagnosis")
#: Groups whose terms can be denied; the others say where a finding is or how it looks.
DENIABLE = ("size", "sign", "diagnosis", "state")
#: Groups that a denial in the same clause leaves as they are: "no nodule in the left lung" is about the left lung.
PLACES = ("modality", "organ", "side", "level", "depth", "zone", "lobe")
