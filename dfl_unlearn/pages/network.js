"use strict";
// The network: a slider over rounds, and for a chosen peer whom it reached and who
// reached it. Shares are bytes on a logarithmic scale: 0 is nothing, else low ... 1.

page.hooks.network = function (place, spec, redraw) {
  const known = spec.extra;
  const { n, rounds } = known;
  const figure = place.parentElement;
  const find = (name) => figure.querySelector(`.${name}`);
  const peers = spec.data.find((trace) => trace.name === "peers");
  const ring = spec.data.find((trace) => trace.name === "chosen");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const own = bytes(known.own);
  const pairs = known.pairs ? bytes(known.pairs) : null;
  const state = { peer: known.source, frame: known.start, way: "out", timer: 0 };

  const share = (byte) =>
    byte === 0 ? 0 : Math.exp(Math.log(known.low) * (1 - (byte - 1) / known.levels));
  const isOwn = (source) => source === known.source;
  // The requester's own trace is the most exact one; lists compare all peers alike.
  const held = (source, peer) =>
    share(
      isOwn(source) && state.way === "out"
        ? own[state.frame * n + peer]
        : pairs[(state.frame * n + source) * n + peer],
    );
  const arrival = (source, peer) =>
    isOwn(source) && state.way === "out"
      ? known.ownArrival[peer]
      : known.pairsArrival[source][peer];
  const percent = (value) =>
    value === 0 ? "0 %" : value <= known.low * 1.001
      ? `< ${(100 * known.low).toPrecision(2)} %`
      : `${Number((100 * value).toPrecision(2))} %`;
  const since = (round) => (round === null ? "never" : String(round));
  const name = (peer) =>
    known.labels[peer] === String(peer) ? `peer ${peer}` : `peer ${peer} (${known.labels[peer]})`;
  const effective = (values) => {
    const total = values.reduce((sum, value) => sum + value, 0);
    if (total === 0) return 0;
    return Math.exp(-values.reduce(
      (sum, value) => sum + (value ? (value / total) * Math.log(value / total) : 0), 0));
  };

  function list(way) {
    const kept = state.way;
    state.way = way;
    const rows = [];
    for (let other = 0; other < n; other++) {
      if (other === state.peer) continue;
      const [source, peer] = way === "out" ? [state.peer, other] : [other, state.peer];
      rows.push({ other, share: held(source, peer), since: arrival(source, peer) });
    }
    state.way = kept;
    rows.sort((a, b) => b.share - a.share || a.other - b.other);
    return rows;
  }

  function table(way) {
    const rows = list(way);
    const now = rounds[state.frame];
    const reached = rows.filter((row) => row.since !== null && row.since <= now);
    const table = document.createElement("table");
    table.className = way;
    table.createCaption().textContent =
      way === "out"
        ? `Peer ${state.peer} has reached ${reached.length} of ${n - 1} others`
        : `Peer ${state.peer} has been reached by ${reached.length} of ${n - 1} others`;
    const head = table.createTHead().insertRow();
    for (const text of [way === "out" ? "holder" : "source", "share", "reached in round"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = text;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows.filter((row) => row.share > 0).slice(0, 8)) {
      const line = body.insertRow();
      for (const text of [name(row.other), percent(row.share), since(row.since)])
        line.insertCell().textContent = text;
    }
    return table;
  }

  function tellPeers() {
    const box = find("peers");
    if (pairs) {
      const words = document.createElement("p");
      words.className = "soft";
      const measured = isOwn(state.peer) ? known.ownMeasured : known.pairsMeasured;
      const same = measured === known.pairsMeasured;
      words.textContent =
        `First list: parts of peer ${state.peer}'s influence, by ${measured}. Second list: which ` +
        `part of each other peer's influence peer ${state.peer} holds, by ` +
        `${known.pairsMeasured}.` +
        (same ? "" : " The two scales are not the same measure.");
      box.replaceChildren(table("out"), table("in"), words);
      return;
    }
    const words = document.createElement("p");
    const value = own[state.frame * n + state.peer];
    words.textContent = isOwn(state.peer)
      ? `Peer ${state.peer} keeps ${percent(share(value))} of its influence.`
      : `Peer ${state.peer} holds ${percent(share(value))} of peer ${known.source}'s ` +
        `influence; reached in round: ${since(known.ownArrival[state.peer])}.`;
    box.replaceChildren(words);
  }

  function show() {
    const all = [...Array(n).keys()];
    const centre = pairs ? state.peer : known.source;
    const values = all.map((other) =>
      state.way === "out" ? held(centre, other) : held(other, centre));
    const levels = values.map((value) =>
      value === 0 ? known.band : Math.log10(Math.max(value, known.low)));
    const dark = (level) => level !== known.band && level > 0.5 * Math.log10(known.low);
    peers.marker.color = levels;
    peers.textfont.color = levels.map((level) =>
      level === known.band ? "var(--ink)" : dark(level) ? "#ffffff" : "#1c2128");
    peers.hovertext = all.map((other) => {
      const [from, to] = state.way === "out" ? [centre, other] : [other, centre];
      const first = `<b>${page.escape(name(other))}</b><br>`;
      return state.way === "out"
        ? `${first}holds ${percent(values[other])} of peer ${centre}'s influence` +
            `<br>reached in round: ${since(arrival(from, to))}`
        : `${first}peer ${centre} holds ${percent(values[other])} of its influence` +
            `<br>reached in round: ${since(arrival(from, to))}`;
    });
    const marked = state.peer;
    ring.x = [peers.x[marked]];
    ring.y = [peers.y[marked]];
    const where =
      state.way === "out"
        ? `peer ${centre}'s influence is on ${effective(values).toFixed(1)} of ${n} peers`
        : `peer ${centre} holds influence of ${values.filter((v) => v > 0).length} of ${n} peers`;
    const text = `round ${rounds[state.frame]}: ${where}`;
    find("now").textContent = text;
    find("round").value = state.frame;
    find("round").setAttribute("aria-valuetext", text);
    tellPeers();
    return redraw();
  }

  function stop() {
    clearTimeout(state.timer);
    state.timer = 0;
    find("play").textContent = "Play";
  }

  function step() {
    state.frame = Math.min(state.frame + 1, rounds.length - 1);
    show();
    if (state.frame === rounds.length - 1) stop();
    else state.timer = setTimeout(step, 120);
  }

  const scale = Math.min(1, place.clientWidth / 520);
  peers.marker.size *= scale;
  ring.marker.size *= scale;
  peers.textfont.size *= Math.max(scale, 0.8);
  figure.querySelectorAll(".controls").forEach((part) => (part.hidden = false));
  find("peer").value = String(known.source);
  find("peer").addEventListener("change", (event) => {
    state.peer = Number(event.target.value);
    show();
  });
  find("way").addEventListener("change", (event) => {
    state.way = event.target.value;
    show();
  });
  find("round").addEventListener("input", (event) => {
    stop();
    state.frame = Number(event.target.value);
    show();
  });
  find("play").addEventListener("click", () => {
    if (state.timer) return stop();
    if (state.frame === rounds.length - 1) state.frame = -1;
    find("play").textContent = "Pause";
    step();
  });
  place.on("plotly_click", (event) => {
    const point = event.points.find((each) => each.data.name === "peers");
    if (!point) return;
    state.peer = point.pointNumber;
    if (pairs) find("peer").value = String(state.peer);
    show();
  });
  show();
};
