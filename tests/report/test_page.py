"""The HTML report: one file that says everything, also in a real browser, without a network."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from torch_initpolicy.api import plan_policy
from torch_initpolicy.report.page import Page
from torch_initpolicy.report.repairs import judged, refused
from torch_initpolicy.signal.run import audit_signal
from torch_initpolicy.symmetry.findings import Finding

DEPTH = 12


def net(gain: float) -> nn.Sequential:
    """Build a plain net whose signal vanishes unless the gain is He's."""
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=gain / 8 if parameter.ndim > 1 else 0.0)
    return model


@pytest.fixture(scope="module")
def page():
    """A page with everything on it."""
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    sick, well = net(0.7), net(2**0.5)
    before, after = audit_signal(sick, x), audit_signal(well, x)
    return Page(
        "Audit of <Net> & co",
        {"as it is": before, "signal": after},
        plan_policy(sick, "signal", example_inputs=x),
        [Finding("0.weight", ((0, 1), (2, 3)), "tied", "equal rows", remedy="draw them")],
        json.dumps({"seed": 0}),
        headline="The signal vanishes at '5:relu'. apply_policy(model) repairs it.",
        repairs=[
            judged("signal", 'apply_policy(model, "signal")', before, after),
            judged("he", "apply_policy(model)", before, before),
            refused("odd", 'apply_policy(model, "odd")', "1 < 2"),
        ],
        cost="3 starts tried",
        made="made with",
    )


class Outline(html.parser.HTMLParser):
    """Collects the elements of a page."""

    VOID = frozenset({"meta", "input", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(page: Page) -> Outline:
    """Parse a page; every element must be closed in its place."""
    parser = Outline()
    parser.feed(str(page))
    assert parser.open == []
    return parser


def test_the_page_is_one_file(page):
    """Nothing is fetched: no link to a style or script, no address but within the page."""
    assert not re.search(r"@import|url\((?!#)", str(page))
    elements = outline(page).elements
    assert not [a for tag, a in elements if tag == "link" or a.get("src")]
    links = [a.get("href") or a.get("xlink:href") or "#" for _, a in elements]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_names_are_escaped(page):
    """A title or name with markup in it is shown, not obeyed."""
    assert "<h1>Audit of &lt;Net&gt; &amp; co</h1>" in str(page)


def test_everything_is_there(page):
    """Verdicts, both profiles of both signals, each step of the plan, findings, receipt."""
    text, elements = str(page), outline(page).elements
    assert "vanishes" in text
    assert 'apply_policy(model, "signal")</code> <strong>repairs it</strong>: second' in text
    assert "apply_policy(model)</code> <strong>does not repair it</strong>: still" in text
    assert "<strong>cannot be applied</strong>: 1 &lt; 2." in text
    assert "3 starts tried" in text
    assert [tag for tag, _ in elements].count("svg") == 1
    assert ">as it is</text>" in text
    assert ">signal</text>" in text
    assert all(step.name in text for step in page.plan)
    assert "equal rows" in text
    assert "seed" in text
    assert '<p class="note">made with</p>' in text
    assert "Plan of the recommended start: signal" in text
    assert text.count('class="copy"') == len(page.repairs)


def test_the_outcome_comes_first(page):
    """What goes wrong, where, and what repairs it stand above everything else, names as code."""
    text = str(page)
    assert "vanishes at <code>5:relu</code>. <code>apply_policy(model)</code> repairs it." in text
    assert text.index('class="headline"') < text.index("<h2>")
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:3] == ["What the signal does", "What repairs it", "Signal over the depth"]


def test_each_direction_has_its_mark(page):
    """A line in the picture stands where the signal, or the gradient, first goes wrong."""
    first, *_ = page.signals.values()
    assert [verdict.kind for verdict in first.verdicts] == ["vanishes", "gradient vanishes"]
    assert str(page).count("here it goes wrong") == 1
    well = page.signals["signal"]
    assert "here it goes wrong" not in str(Page("well", {"as it is": well}))


def test_without_matplotlib(page, monkeypatch):
    """The page is whole but for its picture, and says what draws it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = str(page)
    assert "<svg" not in text
    assert "the extra &#x27;plots&#x27;" in text


def test_advice_makes_room_for_what_was_tried(page):
    """Where repairs were tried they stand in place of the general advice; else that is given."""
    first, *_ = page.signals.values()
    advice = "keeps second moments at 1"
    assert advice not in str(page)
    assert advice in str(Page("sick", {"as it is": first}))


def test_where_nothing_repairs(page):
    """Then the heading promises nothing."""
    failed = [repair for repair in page.repairs if not repair.works]
    text = str(dataclasses.replace(page, repairs=failed))
    assert "<h2>What was tried to repair it</h2>" in text
    assert "What repairs it" not in text


def test_what_is_closed_is_noted():
    """A gradient of zero behind zeros has its note, and the zeros' name in its row."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    nn.init.zeros_(model[2].weight)
    text = str(Page("closed", {"as it is": audit_signal(model, torch.eye(8))}))
    assert "Note: the gradient is zero at {0-1}.weight, as is meant" in text
    assert text.count("<td>2.weight</td>") == 2 + 1


def test_it_can_be_used_without_a_mouse(page):
    """Headings, labels and roles: what a keyboard and a screen reader need."""
    elements = outline(page).elements
    fields = [i for i, (tag, _) in enumerate(elements) if tag == "input"]
    assert all(elements[i - 1][0] == "label" for i in fields)  # each within its label
    assert all(a.get("aria-label") for tag, a in elements if tag == "svg")
    scrolling = [a for _, a in elements if a.get("class") in ("scroll", "plot")]
    assert len(scrolling) == 3 + 1
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    assert [tag for tag, _ in elements].count("h1") == 1


def test_light_and_dark(page):
    """Colours follow the reader's choice."""
    assert "prefers-color-scheme: dark" in str(page)
    assert 'content="light dark"' in str(page)


def test_an_empty_page():
    """A page of nothing but a title is a page."""
    assert outline(Page("nothing")).elements


def test_a_healthy_signal_is_said():
    """Where nothing is wrong the page says so first."""
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    signal = audit_signal(net(2**0.5), x)
    text = str(Page("well", {"as it is": signal}))
    assert signal.ok
    assert "keeps its size" in text or "wanders" in text


def test_a_way_back_that_nobody_could_go_is_not_praised():
    """Where no gradient exists, the page speaks of the way forward, and says why."""

    class Choice(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(-1)

    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    text = str(Page("choice", {"as it is": audit_signal(Choice(64, 64), x)}))
    assert "The signal keeps its size on its way forward." in text
    assert "Note: no gradients were followed: the model returns int64" in text
    assert "forward and back" not in text


SCRIPT = """
<script>
const found = {};
const plan = document.querySelector("[aria-label=plan]").parentElement;
const rows = () => [...plan.querySelectorAll("tbody tr")];
const filter = plan.querySelector("input");
filter.value = "4.weight";
filter.dispatchEvent(new Event("input"));
found.filtered = rows().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
filter.value = "";
filter.dispatchEvent(new Event("input"));
found.all = rows().filter((row) => !row.hidden).length;
const heads = [...plan.querySelectorAll("th")];
const std = heads.findIndex((head) => head.textContent === "std");
heads[std].querySelector("button").click();
found.sort = heads[std].getAttribute("aria-sort");
found.stds = rows().map((row) => row.cells[std].textContent).filter(Boolean).map(Number);
filter.focus();
found.focused = document.activeElement === filter;
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const result = document.createElement("pre");
result.id = "found";
result.textContent = JSON.stringify(found);
document.body.append(result);
</script>
"""


def test_in_a_real_browser(page, tmp_path):
    """Filtering and sorting work in a browser; nothing juts out sideways."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no chromium here")
    path = tmp_path / "report.html"
    path.write_text(str(page).replace("</body>", SCRIPT + "</body>"), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    found = json.loads(match.group(1))
    assert found["filtered"] == ["4.weight", "14.weight", "24.weight"]
    assert found["all"] == len(page.plan)
    assert found["sort"] == "ascending"
    assert found["stds"] == sorted(found["stds"])
    assert found["focused"]
    assert not found["wide"]
