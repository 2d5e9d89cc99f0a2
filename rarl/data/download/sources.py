"""Where each release is published, and which version of it this project pins.

Commits and checksums are from public records of people who pinned the same files; those of the question files of SLAKE
and VQA-RAD were also measured on real copies. What is None is pinned by the first download, in `download.json`.
"""

from dataclasses import dataclass, field


class Source:
    """Where a release is published; prints as its page."""

    page: str

    def __str__(self) -> str:
        return self.page


@dataclass(frozen=True)
class Hub(Source):
    """Files of a data set repository on the Hugging Face hub.

    Attributes:
        repository: Owner and name.
        commit: 40 hexadecimal digits; None is resolved, and recorded, by the first download.
        files: Patterns of the files that an adapter reads.
        sha256: file -> hash, of files whose hash is known independently of the hub.
        about_mb: Size of the download; the disk check takes the hub's own figures.
    """

    repository: str
    commit: str | None
    files: tuple[str, ...]
    sha256: dict[str, str] = field(default_factory=dict)
    about_mb: int | None = None

    @property
    def page(self) -> str:
        """The repository's address."""
        return f"https://huggingface.co/datasets/{self.repository}"


@dataclass(frozen=True)
class File:
    """One file on a web server; `sha256` is None if no record of it is known."""

    name: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Web(Source):
    """Plain files over HTTP."""

    page: str
    files: tuple[File, ...]
    about_mb: int | None = None


@dataclass(frozen=True)
class ByHand(Source):
    """A release that no program may or can download: `what` names the files to put into the folder."""

    page: str
    what: str
    about_mb: int | None = None


@dataclass(frozen=True)
class Published:
    """One data set; the first of its forms is the default."""

    forms: dict[str, Hub | Web | ByHand]
    without: str = ""
    """What to do where the download is refused; empty where there is no alternative."""


_SLAKE = Hub(
    "BoKelvin/SLAKE",
    "a9083ce6c34ac3ffb17671a605962924d8a8f9e9",
    ("train.json", "validation.json", "test.json", "imgs.zip"),
    {
        "train.json": "7a9fb81f9d7bb145c3d7e9bc8d3b9016ba18b6539ea5031a53bae8fd3cd991c3",
        "validation.json": "32b016440b0c3be11056a78a18eeab46333268407fbb6e6b32f9f4c2debc50f6",
        "test.json": "6be8f7b4c5a46cdbc713a5210a25b6ed5aa1fd1574c83cefb4f998131f17c2c3",
        "imgs.zip": "44eb7d9214e1ac5b7946e237b669401866df9114fd9a3618c5a84fbffcded0b0",
    },
    about_mb=217,
)
_VQA_RAD_HASHES = {
    "data/train-00000-of-00001-eb8844602202be60.parquet": (
        "b07c3441467b99060e5ec412ddd05be06f86f01f23bfa3debfbbcab47874a06e"
    ),
    "data/test-00000-of-00001-e5bc3d208bb4deeb.parquet": (
        "eb520bdab1116dd4f420120da19049d2315389fa126d031f65ec42e153264ea7"
    ),
}
_OSF = "https://files.osf.io/v1/resources/89kps/providers/osfstorage"
_ZENODO = "https://zenodo.org/records/10499039"
_CV_BENCH = "bc284db50d036958861cb60cdd7b77612052ce0d"

SOURCES: dict[str, Published] = {
    # The hub repository holds the original files.
    "slake": Published({"original": _SLAKE, "hub": _SLAKE}),
    "vqa_rad": Published(
        {
            "original": Web(
                "https://osf.io/89kps",
                (
                    File(
                        "VQA_RAD Dataset Public.json",
                        "https://osf.io/download/6qdas/",
                        "bfa8950fbffbaa414d1e97b2956d88d2f4fa984d21852bc5f30545f27538f6ca",
                    ),
                    # OSF packs this archive again for each download, so that it has no checksum to pin.
                    File("VQA_RAD Image Folder.zip", f"{_OSF}/5b21453986d8510011c277bc/?zip="),
                ),
                about_mb=17,
            ),
            "hub": Hub(
                "flaviagiammarino/vqa-rad",
                "bcf91e7654fb9d51c8ab6a5b82cacf3fafd2fae9",
                ("data/*.parquet",),
                _VQA_RAD_HASHES,
                about_mb=35,
            ),
        }
    ),
    "vqa_med": Published(
        {
            "original": Web(
                _ZENODO,
                tuple(
                    File(f"{name}.zip", f"{_ZENODO}/files/{name}.zip?download=1")
                    for name in (
                        "ImageClef-2019-VQA-Med-Training",
                        "ImageClef-2019-VQA-Med-Validation",
                        "VQAMed2019Test",
                    )
                ),
                about_mb=186,
            )
        }
    ),
    "path_vqa": Published(
        {
            "hub": Hub(
                "flaviagiammarino/path-vqa",
                "1685832883334b5bb5beaf4e4b333fdeecaa4ad9",
                ("data/*.parquet",),
                about_mb=750,
            ),
            "original": ByHand(
                "https://github.com/UCSD-AI4H/PathVQA",
                "pvqa_train.json, pvqa_val.json, pvqa_test.json, and the images as images/{train,val,test}/*.jpg or "
                "as an archive images.zip of these (the link to Google Drive is on that page; if it is broken, in the "
                "page's issue 10)",
            ),
        }
    ),
    "cv_bench": Published(
        {
            "hub": Hub(
                "nyu-visionx/CV-Bench",
                _CV_BENCH,
                ("test_2d.parquet", "test_3d.parquet"),
                {
                    "test_2d.parquet": "33196034ef4bf3265cae4a7ff5c4071b2ff1cc21123e8e285c6a91393897ecbc",
                    "test_3d.parquet": "ef91fe8b5392eb2a16e318ca68fa02449d45ba1e152afece12a0a526e9fbbc25",
                },
                about_mb=405,
            ),
            "original": Hub("nyu-visionx/CV-Bench", _CV_BENCH, ("test_2d.jsonl", "test_3d.jsonl", "img/*")),
        }
    ),
    "sat": Published(
        {
            "hub": Hub(
                "array/SAT",
                "bda5dde942d7f7b41bff7935f086ed9a9e348ae3",
                ("SAT_train.parquet", "SAT_val.parquet", "SAT_test.parquet"),
                about_mb=5200,
            )
        }
    ),
    # Images and questions of Silvar-Med are SLAKE's; only the explanations are needed.
    "silvar_med": Published(
        {"original": Hub("Hanhpt23/Silvar-Med", None, ("*.json", "*.jsonl", "*.parquet"))},
        without="put the authors' JSON files (img_name, question, answer), or explanations from elsewhere, there by "
        "hand; without them everything runs, and the reasoning reward is idle",
    ),
}
