import pytest
from browser import launched, opened
from pages.sweep_samples import HOSTILE, network_sweep, privacy_sweep

from dfl_unlearn.pages import sweep_tables
from dfl_unlearn.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    root = privacy_sweep(tmp_path_factory.mktemp("page") / "made", name=HOSTILE)
    return write_report(root, root / "report.html")


def drawn(page, name):
    """What plotly holds for a figure: names, first values across and up."""
    return page.js(
        f"document.getElementById('{name}').data"
        ".map(t => [t.name, [...t.x], t.y ? [...t.y] : null])"
    )


def choose(page, name, label):
    page.tab.locator(f"#{name}").select_option(label=label)


def test_all_figures_are_drawn_and_hostile_texts_stay_texts(browser, file):
    with opened(browser, file) as page:
        assert page.js("document.querySelectorAll('.chart .main-svg').length") >= 4
        assert page.js("document.querySelector('h1').textContent") == (
            f"Sweep {HOSTILE}"
        )


def test_another_metric_changes_the_figure_and_its_words(browser, file):
    with opened(browser, file) as page:
        words = "document.getElementById('explorer-words').textContent"
        assert page.js(words).startswith("test-accuracy on test, after: newton-fisher")
        before = drawn(page, "explorer")
        choose(page, "explorer-metric", "cost-gradient-evaluations")
        assert drawn(page, "explorer") != before
        assert "newton-fisher 900 to 900 over 6 points" in page.js(words)
        assert page.js(words) == page.js(
            "document.getElementById('explorer').getAttribute('aria-label')"
        )


def test_another_axis_and_another_colour_change_the_figure(browser, file):
    with opened(browser, file) as page:
        choose(page, "explorer-x", "epsilon")
        by_protocol = drawn(page, "explorer")
        assert sorted(name for name, _, _ in by_protocol) == ["newton-fisher", "rr-du"]
        assert set(by_protocol[0][1]) == {0.5, 1, 4}
        choose(page, "explorer-colour", "topology")
        names = [name for name, _, _ in drawn(page, "explorer")]
        assert names == ["topology = ring n=8", "topology = torus n=9"]
        choose(page, "explorer-world", "retrained")
        values = {y for _, _, ys in drawn(page, "explorer") for y in ys}
        assert values == {0.9, 0.92} or values == {0.9}


def test_a_metric_is_shown_in_a_world_where_it_has_values(browser, file):
    with opened(browser, file) as page:
        choose(page, "explorer-world", "before")
        choose(page, "explorer-metric", "cost-gradient-evaluations")
        chosen = "document.getElementById('explorer-world').selectedOptions[0].label"
        assert page.js(chosen) == "after"


def test_the_setting_changes_the_curves_and_what_is_read_aloud(browser, file):
    with opened(browser, file) as page:
        before = drawn(page, "privacy-utility")
        choose(page, "privacy-utility-choice", "topology = torus n=9")
        after = drawn(page, "privacy-utility")
        newton = {name: y for name, _, y in after}["newton-fisher"]
        assert newton == pytest.approx([0.875, 0.88, 0.91])
        assert before != after
        label = "document.getElementById('privacy-utility').getAttribute('aria-label')"
        assert page.js(label).startswith("With topology = torus n=9: newton-fisher")


def test_the_map_follows_its_choices(browser, file):
    values = "[...document.getElementById('heat').data[0].z].map(row => [...row])"
    with opened(browser, file) as page:
        newton = page.js(values)
        assert newton[0] == pytest.approx([0.855, 0.875])
        choose(page, "heat-protocol", "rr-du")
        assert page.js(values)[0] == pytest.approx([0.705, 0.725])


def shown_rows(page, table):
    return page.js(
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        ".filter(r => !r.hidden).map(r => r.textContent)"
    )


def test_words_keep_the_rows_that_have_them_all(browser, file):
    with opened(browser, file) as page:
        assert len(shown_rows(page, "cases-table")) == 18
        page.tab.locator("#cases-table-filter").fill("torus done")
        kept = shown_rows(page, "cases-table")
        assert len(kept) == 9
        assert all("torus" in row for row in kept)
        status = "document.querySelector('#cases-table [role=status]').textContent"
        assert page.js(status) == "9 of 18 rows"
        page.tab.locator("#cases-table-filter").fill("")
        assert len(shown_rows(page, "cases-table")) == 18


def test_a_heading_sorts_its_table_with_the_keyboard(browser, file):
    with opened(browser, file) as page:
        head = page.tab.locator("#summary-table th", has_text="after").first
        column = (
            "[...document.querySelectorAll('#summary-table tbody tr')]"
            ".map(row => row.cells[7].textContent)"
        )
        before = page.js(column)
        button = head.locator("button")
        button.focus()
        page.tab.keyboard.press("Enter")
        after = page.js(column)
        assert sorted(before) == sorted(after)
        numbers = [float(v) for v in after if v != "-"]
        assert numbers == sorted(numbers)
        assert before != after
        assert head.get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_small_screen_needs_no_scrolling_sideways(browser, file, theme):
    with opened(browser, file, width=400, theme=theme) as page:
        assert page.js("document.documentElement.scrollWidth") <= 400


def test_colours_follow_the_theme_after_a_choice(browser, file):
    colour = "document.getElementById('explorer').data[0].marker.color[0]"
    with opened(browser, file) as page:
        choose(page, "explorer-metric", "cost-gradient-evaluations")
        light, figure = page.js(colour), drawn(page, "explorer")
        page.tab.emulate_media(color_scheme="dark")
        page.until(f"{colour} !== '{light}'")
        assert drawn(page, "explorer") == figure


def test_a_long_table_is_folded_until_asked_for(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_tables, "OPEN", 3)
    root = network_sweep(tmp_path / "made")
    file = write_report(root, root / "report.html")
    with opened(browser, file) as page:
        row = page.tab.locator("#cases-table tbody tr").first
        assert not row.is_visible()
        page.tab.get_by_text("Show 8 cases").click()
        assert row.is_visible()


def test_without_scripts_words_and_tables_are_there(browser, file):
    with opened(browser, file, scripts=False) as page:
        body = page.tab.inner_text("body")
        assert "newton-fisher keeps the most of the protocols with a claim" in body
        assert "newton-fisher: 85.5 %" in body  # in the place of the curves
        assert page.tab.locator("#cases-table tbody tr").count() == 18
