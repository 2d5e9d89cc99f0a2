"""`dvc plots show` and `dvc plots diff` on a machine without network: the project's own page draws the plots."""

import re
import shutil

import pytest
from project import ROOT, Project
from ruamel.yaml import YAML


@pytest.fixture
def project(tmp_path) -> Project:
    """The plots of the real `dvc.yaml` over made-up tables, with the real configuration of DVC."""
    folder = tmp_path / "project"
    for file in (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html", ".gitignore"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"plots": plots}, file)
    for name in ("sft", "grpo", "rarl"):
        rows = [f"{step},{step / 7},{step * step},{step if step % 10 == 0 else ''}" for step in range(1, 31)]
        put(folder / f"metrics/train/{name}.csv", ["step,loss,reward,dev_score", *rows])
    put(folder / "metrics/tables/own_test.csv", ["label,final", "base,40.5", "rarl,61.0", "none,"])
    project = Project(folder)
    project.git("init", "--quiet")
    project.git("config", "user.name", "a")
    project.git("config", "user.email", "a@localhost")
    project.commit()
    return project


def put(path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_page_of_plots_loads_nothing(project):
    project.dvc("plots", "show")
    html = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=|@import|url\(", html)
    assert html.count("vegaEmbed('#") == 4


def test_every_plot_is_drawn(project, chromium):
    project.dvc("plots", "show")
    asked = []
    with chromium.new_context() as context:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto((project.folder / "dvc_plots/index.html").as_uri())
        titles = page.locator("main h2").all_text_contents()
        assert titles == ["Reward", "Development score: dev_score", "SFT loss", "Own test set, final score"]
        # Reward and loss: a noisy curve and its mean for each method; few points: one curve.
        curves = [box.locator("polyline").count() for box in page.locator("main > div").all()]
        assert curves == [4, 3, 2, 0]
        widths = page.locator("rect").evaluate_all("(bars) => bars.map((bar) => bar.getAttribute('width'))")
        assert len(widths) == 2 and float(widths[1]) / float(widths[0]) == pytest.approx(61 / 40.5)
    assert len(asked) == 1, "the page itself"


def test_revisions_are_told_apart(project, chromium):
    put(project.folder / "metrics/tables/own_test.csv", ["label,final", "base,50.0", "rarl,60.0"])
    project.dvc("plots", "diff", "HEAD")
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto((project.folder / "dvc_plots/index.html").as_uri())
        colours = page.locator("rect").evaluate_all("(bars) => bars.map((bar) => bar.getAttribute('fill'))")
        assert len(colours) == 4 and len(set(colours)) == 2
        keys = page.locator("main > div").last.locator(".key").all_text_contents()
        assert sorted(keys) == ["HEAD", "workspace"]
