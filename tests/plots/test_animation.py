"""The moving picture of influence: what is in it, and that it repeats."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dfl_unlearn.errors import InvalidArgumentError, InvalidTypeError, StoreWriteError
from dfl_unlearn.plots import animation
from dfl_unlearn.plots._style import INFLUENCE
from dfl_unlearn.plots.animation import write_influence_gif
from dfl_unlearn.plots.influence import trace_title
from dfl_unlearn.record.influence import InfluenceTrace, mixing_power
from dfl_unlearn.topology.files import load_topology


@pytest.fixture(scope="module")
def ring():
    topology = load_topology("ring", n=8)
    return topology, mixing_power(topology, 3, 60)


def opened(path):
    """Times in milliseconds and pixels of every frame."""
    times, frames = [], []
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        assert picture.info["loop"] == 0
        for k in range(picture.n_frames):
            picture.seek(k)
            times.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("RGB")))
    return times, frames


def test_every_frame_has_its_time_and_the_sum_is_what_was_asked(ring, tmp_path):
    path = write_influence_gif(*ring, tmp_path / "new" / "a.gif", frames=9, seconds=2.5)
    times, frames = opened(path)
    assert path == tmp_path / "new" / "a.gif"
    assert sum(times) == 2500
    assert len(frames) == 9
    assert times[-1] > 3 * times[1]
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    for one, two in pairwise(frames):
        assert (one != two).any()


def test_equal_input_gives_equal_bytes_and_other_input_does_not(ring, tmp_path):
    def made(name, **fields):
        path = write_influence_gif(*ring, tmp_path / name, frames=3, **fields)
        return path.read_bytes()

    assert made("a.gif") == made("b.gif")
    assert made("a.gif") != made("c.gif", title="another")
    write_influence_gif(*ring, tmp_path / "a.gif", rounds=[1, 2])
    assert len(opened(tmp_path / "a.gif")[1]) == 2  # replaced


def test_the_frame_of_a_round_is_the_same_whatever_the_others_are(ring, tmp_path):
    a = write_influence_gif(*ring, tmp_path / "a.gif", rounds=[1, 7, 60])
    b = write_influence_gif(*ring, tmp_path / "b.gif", rounds=np.array([2, 7, 8, 60]))
    np.testing.assert_array_equal(opened(a)[1][1], opened(b)[1][1])


def test_a_peer_has_the_colour_of_its_share_and_white_before_it_is_reached(
    ring, tmp_path, monkeypatch
):
    drawn = []
    real = animation.draw_network

    def watch(axes, *args, **fields):
        real(axes, *args, **fields)
        for text in list(axes.texts):
            text.remove()
        drawn.append(axes)

    monkeypatch.setattr(animation, "draw_network", watch)
    topology, trace = ring
    path = write_influence_gif(topology, trace, tmp_path / "a.gif", rounds=[2, 60])
    frames = opened(path)[1]
    places = animation.layout(topology, 3)
    norm = animation.influence_scale(8)
    for frame, t in zip(frames, (2, 60), strict=True):
        shares = trace.shares()[t - 1]
        x, y = drawn[0].transData.transform(places).T.round().astype(int)
        for i in range(8):
            got = frame[frame.shape[0] - 1 - y[i], x[i]]
            wanted = (
                255 * np.array(INFLUENCE(norm(shares[i]))[:3])
                if shares[i]
                else np.full(3, 255.0)
            )
            assert np.abs(got - wanted).max() <= 3, (t, i)
    assert (trace.shares()[1] == 0).sum() == 3  # beyond two hops


@pytest.mark.parametrize("count", [1, 2, 3, 30, 400])
@pytest.mark.parametrize("frames", [2, 7, 24])
def test_rounds_are_dense_at_first_and_reach_the_end(count, frames):
    trace = mixing_power(load_topology("ring", n=5), 0, count)
    rows = animation._log_rows(trace, frames)
    assert len(rows) == min(frames, count)
    assert rows[0] == 0
    assert rows[-1] == count - 1
    assert (np.diff(rows) >= 1).all()
    if count == 400 and frames > 2:
        assert np.diff(rows)[0] < np.diff(rows)[-1]


def test_rounds_before_any_influence_are_skipped(ring):
    _, trace = ring
    norms = trace.norms.copy()
    norms[:5] = 0
    assert animation._log_rows(replace(trace, norms=norms), 4)[0] == 5
    assert animation._log_rows(replace(trace, norms=0 * norms), 4)[0] == 0


def test_colours_are_found_exactly():
    palette = animation._palette()
    assert palette.shape == (256, 3)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    got = animation._Nearest(palette)(picture)
    apart = np.linalg.norm(picture[:, :, None].astype(float) - palette, axis=-1)
    np.testing.assert_array_equal(got, apart.argmin(axis=-1))
    assert palette[animation._Nearest(palette)(np.full((1, 1, 3), 255, np.uint8))].min()


def test_a_hostile_title_is_drawn_as_it_is_written(ring, tmp_path):
    write_influence_gif(*ring, tmp_path / "a.gif", frames=2, title="$\\frac{ \x1b[31m")


def test_a_network_without_influence_is_white(ring, tmp_path):
    topology, trace = ring
    still = replace(trace, norms=0 * trace.norms)
    assert len(opened(write_influence_gif(topology, still, tmp_path / "a.gif"))[1]) > 1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"path": "a.png"}, InvalidArgumentError, r"path: must end in \.gif.*a\.png"),
        ({"path": 3}, InvalidTypeError, "path: must be a str or Path"),
        ({"topology": "ring"}, InvalidTypeError, "topology: must be a Topology"),
        ({"trace": None}, InvalidTypeError, "trace: must be a InfluenceTrace"),
        ({"frames": 1}, InvalidArgumentError, "frames: .*>= 2.*got 1"),
        ({"frames": 501}, InvalidArgumentError, "frames: .*<= 500.*got 501"),
        ({"frames": 2.0}, InvalidTypeError, r"frames: .*got 2\.0"),
        ({"seconds": 0}, InvalidArgumentError, r"seconds: .*24 frames need 0\.02"),
        ({"seconds": float("nan")}, InvalidArgumentError, "seconds: .*got nan"),
        ({"seconds": 4000}, InvalidArgumentError, "seconds: .*<= 3600"),
        ({"title": 3}, InvalidTypeError, "title: must be a str"),
        ({"rounds": 3}, InvalidTypeError, "rounds: must be a list or tuple"),
        ({"rounds": []}, InvalidArgumentError, r"rounds: must be 2\.\.500"),
        ({"rounds": [1, 61]}, InvalidArgumentError, "rounds: .*from 1 to 60, got 61"),
        ({"rounds": [1, 2.5]}, InvalidTypeError, r"rounds: .*got 2\.5"),
        ({"rounds": [2, 1]}, InvalidArgumentError, "rounds: must be ascending"),
        ({"rounds": [2, 2]}, InvalidArgumentError, "rounds: must be ascending"),
    ],
)
def test_bad_input_is_refused_by_name(ring, tmp_path, fields, error, message):
    given = {"topology": ring[0], "trace": ring[1], "path": tmp_path / "a.gif"}
    with pytest.raises(error, match=message):
        write_influence_gif(**{**given, **fields})
    assert list(tmp_path.iterdir()) == []


def test_a_trace_of_another_network_is_refused(ring, tmp_path):
    other = mixing_power(load_topology("ring", n=5), 0, 4)
    with pytest.raises(InvalidArgumentError, match=r"trace: .*8 peers, .*\(4, 5\)"):
        write_influence_gif(ring[0], other, tmp_path / "a.gif")


def test_a_place_that_cannot_be_written_is_named(ring, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreWriteError, match="must be writable"):
        write_influence_gif(*ring, tmp_path / "file" / "a.gif", frames=2)


@pytest.mark.parametrize(("family", "n"), [("erdos-renyi", 64), ("single", 1)])
def test_networks_of_any_size_stay_small_files(family, n, tmp_path):
    topology = load_topology(family, n=n)
    trace = mixing_power(topology, 0, 200)
    path = write_influence_gif(topology, trace, tmp_path / "a.gif")
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exact", "exact"),
        ("norm_bound", "norm bound"),
        ("mixing_power", "mixing matrix"),
    ],
)
def test_the_title_says_how_influence_was_measured(mode, words):
    trace = InfluenceTrace(
        source=1,
        mode=mode,
        rounds=np.array([1]),
        norms=np.eye(3)[1:2],
        hops=np.array([1, 0, 1]),
        vacuous=np.zeros(3, dtype=bool),
    )
    title = trace_title(trace, "peer {}'s influence on every peer")
    assert title == f"Peer 1's influence on every peer ({words})"
