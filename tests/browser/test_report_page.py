"""The report in a real browser: what the script does, with pointer and keyboard, in light, dark and narrow.

Needs Chromium, so it is asked for by name: `pytest -m browser`.
"""

import pytest

from mlx_lora.report.comparison import comparison_page
from mlx_lora.report.pages import run_page
from mlx_lora.report.runs import read_run
from tests.report.run_folders import result, write_run

pytestmark = pytest.mark.browser
NASTY = "</script><script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"
MANY = ["fixed"] * 20 + ["kept right"] * 5 + ["broken", "kept wrong", "kept wrong"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    question = {"question": NASTY, "answer": NASTY}
    written = write_run(folder / "one", results=[result(MANY, questions=[question])])
    path = folder / "report.html"
    path.write_text(run_page(read_run(written)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [read_run(write_run(folder / name, results=[result()])) for name in ("one", "two")]
    path = folder / "comparison.html"
    path.write_text(comparison_page(runs), encoding="utf-8")
    return path


def shown(page):
    """How many questions are to be seen, and what the page says of them."""
    rows = page.run("[...document.querySelectorAll('.questions tbody tr')].filter(r => r.offsetParent).length")
    return rows, page.run("document.querySelector('.questions-card [role=status]').textContent")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_fault_a_request_or_a_sideways_scroll(page, report, comparison, width, scheme):
    for path in (report, comparison):
        page.open(path, width=width, scheme=scheme)
        assert page.problems == []
        assert page.requests == [path.as_uri()]
        assert page.run("document.documentElement.scrollWidth") == width
        assert page.run("getComputedStyle(document.body).colorScheme") == "light dark"
        ground = {"light": "rgb(245, 246, 248)", "dark": "rgb(16, 18, 20)"}[scheme]
        assert page.run("getComputedStyle(document.body).backgroundColor") == ground


def test_a_question_with_a_script_in_it_runs_nothing(page, report):
    page.open(report)
    assert page.run("window.hacked") is None
    assert page.run("document.querySelector('.questions tbody th').textContent") == NASTY
    page.run("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked = 1\">')")
    page.run("new Promise(done => setTimeout(done, 100))")
    assert page.run("window.hacked") is None
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_the_theme_button_changes_the_colours_and_its_name(page, report):
    page.open(report, scheme="dark")
    assert page.run("document.getElementById('theme').textContent") == "Light"
    page.run("document.getElementById('theme').click()")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    assert page.run("document.getElementById('theme').getAttribute('aria-label')") == "Show in dark colours"


def test_questions_are_filtered_and_searched_with_the_keyboard(page, report):
    page.open(report)
    assert shown(page) == (12, "28 of 28 questions")
    page.run("document.querySelector('.questions-card input[type=radio]').focus()")
    page.press("ArrowRight")
    assert shown(page) == (12, "20 of 28 questions")
    page.press("ArrowRight")
    assert shown(page) == (1, "1 of 28 questions")
    page.press("ArrowRight")
    assert shown(page) == (3, "3 of 28 questions")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.press("/", "/")
    assert page.run("document.activeElement.type") == "search"
    page.type("ANSWER 7")  # 7, 17 and 27
    assert shown(page) == (3, "3 of 28 questions")
    page.press("Escape")
    assert shown(page) == (12, "28 of 28 questions")


def test_the_rest_of_the_questions_is_one_press_away(page, report):
    page.open(report)
    assert page.run("document.querySelector('.more').textContent") == "Show 16 more"
    page.run("document.querySelector('.more').focus()")
    page.press("Enter", "\r")
    assert shown(page) == (28, "28 of 28 questions")
    assert page.run("document.querySelector('.more').hidden") is True


def test_a_chart_tells_its_values_to_pointer_and_keyboard(page, report):
    page.open(report)
    page.run("document.querySelector('#chart-loss').scrollIntoView({behavior: 'instant'})")
    plot = "document.querySelector('#chart-loss .plot')"
    box = page.run(f"(({{left, top, width, height}}) => [left, top, width, height])({plot}.getBoundingClientRect())")
    page.move(box[0] + box[2] / 2, box[1] + box[3] / 2)
    words = page.run(f"{plot}.querySelector('.readout').innerText").replace("\n", " ")
    assert words.startswith("step 3, epoch 1.00 training, each step 1.333 nats a token")
    assert words.endswith("validation 1.25 nats a token")
    assert page.run(f"{plot}.querySelectorAll('.pointer i').length") == 3
    page.run(f"{plot}.focus()")
    page.press("End")
    page.press("ArrowLeft")
    assert page.run("document.querySelector('#chart-loss [role=status]').textContent").startswith(
        "step 5, epoch 1.67; training, each step 0.8 nats a token;"
    )
    page.press("Escape")
    assert page.run(f"{plot}.querySelector('.readout').hidden") is True


def test_the_curve_lies_where_its_axis_says(page, report):
    """The dot over a value stands at that value's height, between the labels next to it."""
    page.open(report)
    page.run("document.querySelector('#chart-tokens .plot').focus()")
    page.press("End")
    seen = page.run(
        """(() => {
            const figure = document.querySelector('#chart-tokens'), view = figure.querySelector('.view');
            const middle = (element) => {
                const box = element.getBoundingClientRect();
                return box.top + box.height / 2;
            };
            const labels = [...view.querySelectorAll('.ups span')].map(one => [Number(one.textContent), middle(one)]);
            return [middle(view.querySelector('.pointer i')), labels];
        })()"""
    )
    dot, labels = seen
    (low, bottom), (high, top) = labels[0], labels[-1]
    assert bottom + (50 - low) / (high - low) * (top - bottom) == pytest.approx(dot, abs=1.5)


def test_linear_and_logarithmic_axes_take_turns(page, report):
    page.open(report)
    visible = "[...document.querySelectorAll('#chart-loss .view')].filter(v => v.offsetParent).map(v => v.className)"
    assert page.run(visible) == ["view log"]
    page.run("document.querySelector('#chart-loss input[value=linear]').click()")
    assert page.run(visible) == ["view linear"]


def test_on_paper_it_is_light_and_without_controls(page, report):
    page.open(report, scheme="dark")
    page.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    page.send("Emulation.setEmulatedMedia", media="")


def test_without_script_everything_is_there_but_the_controls(page, report):
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(report)
        names = page.send("DOM.getDocument", depth=-1)["root"]
        count = page.send("DOM.querySelectorAll", nodeId=names["nodeId"], selector=".questions tbody tr")["nodeIds"]
        assert len(count) == 28
        hidden = page.send("DOM.querySelectorAll", nodeId=names["nodeId"], selector=".tools[hidden], #theme[hidden]")
        assert len(hidden["nodeIds"]) == 2
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)


def test_everything_that_can_be_used_has_a_name(page, report, comparison):
    for path in (report, comparison):
        page.open(path)
        nodes = page.send("Accessibility.getFullAXTree")["nodes"]
        used = {"button", "radio", "searchbox", "link", "image", "img", "group", "table"}
        nameless = [
            (node["role"]["value"], node.get("backendDOMNodeId"))
            for node in nodes
            if not node.get("ignored") and node["role"]["value"] in used and not node.get("name", {}).get("value")
        ]
        assert nameless == []
