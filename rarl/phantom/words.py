"""The medical words that the embedded base was trained on, and that the phantoms may use.

A real base model knows the names of organs, modalities and diseases, but not which finding an image shows. The tiny
base starts in the same way: these words are in its tokenizer and its text; what a disease *looks* like is left to
fine-tuning.
"""

MODALITIES = {"xray": "X-ray", "mri": "MRI", "ct": "CT"}
VIEWS = {"xray": "chest X-ray", "mri": "brain MRI", "ct": "abdominal CT"}
ORGANS = {"xray": ("lung", "heart"), "mri": ("brain",), "ct": ("liver", "kidney", "spleen")}
PLANES = ("axial", "coronal", "sagittal", "frontal")
DISEASES = {
    "xray": ("Pneumonia", "Nodule", "Mass", "Effusion", "Cardiomegaly"),
    "mri": ("Brain Tumor", "Brain Edema"),
    "ct": ("Liver Cancer", "Kidney Cancer"),
}
ORGAN_OF = {
    "Pneumonia": "lung", "Nodule": "lung", "Mass": "lung", "Effusion": "lung", "Cardiomegaly": "heart",
    "Brain Tumor": "brain", "Brain Edema": "brain", "Liver Cancer": "liver", "Kidney Cancer": "kidney",
}  # fmt: skip
OTHER_WORDS = (
    "microscope", "cell", "cells", "tissue", "nucleus", "nuclei", "stain", "pink", "purple", "pathology",
    "picture", "image", "scan", "patient", "chest", "abdomen", "head", "body", "organ", "part", "shown", "seen",
    "observed", "present", "included", "abnormality", "abnormalities", "abnormal", "normal", "healthy", "unhealthy",
    "disease", "diseases", "finding", "findings", "size", "shape", "clear", "enlarged", "fluid", "infection",
    "modality", "plane", "taken", "type", "kind", "position", "side", "view", "with", "what", "which", "where", "how",
    "many", "much", "does", "do", "have", "has", "can", "be", "any", "or", "and", "none", "both", "this", "that",
    "because", "so", "suggests", "means", "looks", "appears", "usual", "outline", "fields", "field",
)  # fmt: skip


def view(modality: str) -> str:
    """Return the view with its article.

    >>> view("xray"), view("ct")
    ('a chest X-ray', 'an abdominal CT')
    """
    name = VIEWS[modality]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
