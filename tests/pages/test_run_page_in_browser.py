import re

import networkx as nx
import pytest
from browser import launched, opened
from results.handmade import made_outcome, made_run, three_outcomes

from dfl_unlearn.data.forget import ForgetRequest
from dfl_unlearn.report import write_report
from dfl_unlearn.topology.graph import Topology

pytestmark = pytest.mark.browser

COLOURS = "page.charts.get(document.getElementById('network')).data"
SHOWN = f"{COLOURS}.find(t => t.name === 'peers').marker.color"
DRAWN = (
    "[...document.querySelectorAll('#network .scatterlayer .trace')]"
    ".flatMap(t => [...t.querySelectorAll('.point')]).map(p => p.style.fill)"
)


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    run = made_run(n=6, name="<script>alert(1)</script>")
    request = ForgetRequest.samples(
        peer=1, indices=[0], request_id="r0", reason="<img src=x onerror=alert(2)>"
    )
    outcomes = [
        made_outcome(run, charged=True, request=request),
        *three_outcomes(run, request=request)[1:],
    ]
    return write_report(outcomes, tmp_path_factory.mktemp("page") / "report.html")


def click_peer(page, peer):
    page.tab.locator("#network").scroll_into_view_if_needed()
    place = page.js(
        f"""(() => {{
          const figure = document.getElementById('network');
          const peers = {COLOURS}.find(t => t.name === 'peers');
          const frame = figure.querySelector('.nsewdrag').getBoundingClientRect();
          const {{ xaxis, yaxis }} = figure._fullLayout;
          return [frame.left + xaxis.d2p(peers.x[{peer}]),
                  frame.top + yaxis.d2p(peers.y[{peer}])];
        }})()"""
    )
    page.tab.mouse.move(*place)
    page.until("!!document.querySelector('#network .hovertext')")
    page.tab.mouse.click(*place)
    page.until(f"document.querySelector('.peer').value === '{peer}'")


def test_all_figures_are_drawn_and_hostile_texts_stay_texts(browser, file):
    with opened(browser, file) as page:
        places = page.js("document.querySelectorAll('.chart').length")
        drawn = page.js("document.querySelectorAll('.chart .main-svg').length")
        assert places == 9
        assert drawn >= places
        assert page.js("document.querySelectorAll('main img').length") == 0
        assert "<img src=x onerror=alert(2)>" in page.tab.inner_text("main")
        assert (
            page.js("document.querySelectorAll('main script:not([type])').length") == 0
        )


def test_the_slider_changes_colours_and_words(browser, file):
    with opened(browser, file) as page:
        page.tab.locator(".round").fill("0")
        first, filled, words = (
            page.js(SHOWN),
            page.js(DRAWN),
            page.tab.inner_text(".now"),
        )
        assert words.startswith("round 1: peer 1's influence is on ")
        page.tab.locator(".round").focus()
        page.tab.keyboard.press("End")
        last = page.js(SHOWN)
        assert page.tab.inner_text(".now").startswith("round 30: ")
        # Peer 4 is three hops away: unreached in round 1, and not at last.
        assert first[4] == min(first) < last[4]
        assert page.js(DRAWN) != filled


def test_play_moves_through_the_rounds_and_stops(browser, file):
    with opened(browser, file) as page:
        page.tab.locator(".round").fill("0")
        page.tab.click(".play")
        page.until("document.querySelector('.round').value > 2")
        assert page.tab.inner_text(".play") == "Pause"
        page.tab.click(".play")
        assert page.tab.inner_text(".play") == "Play"
        stopped = page.tab.input_value(".round")
        page.tab.wait_for_timeout(300)
        assert page.tab.input_value(".round") == stopped


def test_a_click_on_a_peer_shows_whom_it_reached_and_who_reached_it(browser, file):
    with opened(browser, file) as page:
        before, colours = page.tab.inner_text(".peers"), page.js(SHOWN)
        assert re.search(r"Peer 1 has reached \d of 5 others", before)
        click_peer(page, 4)
        after = page.tab.inner_text(".peers")
        assert re.search(r"Peer 4 has reached \d of 5 others", after)
        assert re.search(r"Peer 4 has been reached by \d of 5 others", after)
        # Its neighbours on the ring come first, and were reached in the first round.
        rows = page.js(
            "[...document.querySelectorAll('.peers table.out tbody tr')].slice(0, 2)"
            ".map(r => [r.cells[0].textContent, r.cells[2].textContent])"
        )
        assert sorted(rows) == [["peer 3", "1"], ["peer 5", "1"]]
        assert page.js(SHOWN) != colours
        assert page.js(SHOWN)[4] == max(page.js(SHOWN))


def test_a_peer_s_label_stays_text_in_lists_and_beside_the_pointer(browser, tmp_path):
    label = "<b>x</b><img src=x onerror=alert(3)>"
    topology = Topology.from_graph(nx.path_graph(3), labels=("a", "b", label))
    run = made_run(n=3)
    file = write_report(run.replaced(topology=topology), tmp_path / "page.html")
    with opened(browser, file) as page:
        page.tab.locator(".round").focus()
        page.tab.keyboard.press("End")
        assert f"peer 2 ({label})" in page.tab.inner_text(".peers table.in")
        click_peer(page, 2)
        words = "document.querySelector('#network .hovertext').textContent"
        assert f"peer 2 ({label})" in page.js(words)


def test_the_choices_do_what_a_click_does_and_turn_the_question_round(browser, file):
    with opened(browser, file) as page:
        page.tab.select_option(".peer", "4")
        assert "Peer 4 has reached" in page.tab.inner_text(".peers")
        page.tab.locator(".round").fill("0")
        page.tab.select_option(".way", "in")
        assert (
            page.tab.inner_text(".now")
            == "round 1: peer 4 holds influence of 3 of 6 peers"
        )


def test_tables_are_sorted_by_click_and_by_key(browser, file):
    with opened(browser, file) as page:
        table = page.tab.locator("table", has_text="test gap to retrained").first
        head = table.locator("th", has_text="protocol")
        names = lambda: table.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
        given = names()
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert names() == sorted(given) != given
        head.locator("button").focus()
        page.tab.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert names() == sorted(given, reverse=True)
        other = table.locator("th", has_text="claim")
        other.locator("button").click()
        assert head.get_attribute("aria-sort") == "none"


def test_numbers_are_sorted_as_numbers_and_what_is_missing_stays_last(browser, file):
    with opened(browser, file) as page:
        table = page.tab.locator(
            "table", has_text="standard deviation over peers"
        ).first
        head = table.locator("th", has_text="retrained")
        cells = lambda: table.locator("tbody td:nth-child(5)").all_inner_texts()  # noqa: E731
        for direction in (1, -1):
            head.locator("button").click()
            found = cells()
            full = [c for c in found if c != "-"]
            values = [float(c.replace(",", "").split()[0]) for c in full]
            assert "-" in found
            assert found[: len(full)] == full
            assert values == sorted(values, reverse=direction < 0)


def test_the_button_and_the_system_change_the_theme_of_page_and_figures(browser, file):
    ink = "getComputedStyle(document.querySelector('#accuracy .xtick text')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, file) as page:
        light = page.js(paper), page.js(ink)
        page.tab.click(".theme")
        page.until(f"{ink} !== '{light[1]}'")
        dark = page.js(paper), page.js(ink)
        assert dark[0] != light[0]
        assert page.tab.inner_text(".theme") == "Light colours"
    with opened(browser, file, theme="dark") as page:
        assert (page.js(paper), page.js(ink)) == dark


def test_a_narrow_window_scrolls_tables_and_never_the_page(browser, file):
    with opened(browser, file, width=400) as page:
        assert page.js("document.documentElement.scrollWidth") <= 400
        widths = page.js(
            "[...document.querySelectorAll('.chart .main-svg')]"
            ".map(s => s.getBoundingClientRect().right)"
        )
        assert max(widths) <= 400
        assert page.js(
            "[...document.querySelectorAll('.scroll')]"
            ".some(s => s.scrollWidth > s.clientWidth)"
        )


def test_printing_shows_every_figure_in_light_colours_and_no_controls(browser, file):
    with opened(browser, file, theme="dark") as page:
        page.js("page.fitToPaper(true)")
        page.tab.emulate_media(media="print")
        assert not page.tab.locator(".round").is_visible()
        assert page.js("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        widths = page.js(
            "[...document.querySelectorAll('.chart .main-svg')]"
            ".map(s => s.getBoundingClientRect().width)"
        )
        assert set(widths) == {660}
        page.tab.emulate_media(media="screen")
        page.js("page.fitToPaper(false)")
        width = "document.querySelector('#accuracy .main-svg').clientWidth"
        page.until(f"{width} > 660")


def test_without_scripts_words_tables_and_findings_are_there(browser, file):
    with opened(browser, file, scripts=False) as page:
        text = page.tab.inner_text("main")
        assert "This browser runs no scripts" in text
        assert "A network of 6 peers and 6 links." in text
        assert "What is guaranteed" in text
        assert not page.tab.locator(".round").is_visible()
        assert page.tab.locator("th button").count() == 0


def test_a_page_that_was_changed_runs_nothing(browser, file, tmp_path):
    """The policy names its scripts by hash: any other one is refused."""
    changed = tmp_path / "changed.html"
    extra = "<script>document.title = 'taken'</script></body>"
    changed.write_text(file.read_text().replace("</body>", extra))
    with pytest.raises(AssertionError, match="Content Security Policy"):  # noqa: SIM117
        with opened(browser, changed) as page:
            assert page.tab.title() != "taken"
