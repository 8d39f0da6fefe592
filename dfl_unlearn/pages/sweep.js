"use strict";
// What a sweep's figures do beyond plotly's own: choices of what is drawn. And a box
// above long tables that keeps the rows with some words.

{
  const element = (id) => document.getElementById(id);
  const escape = (text) =>
    String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (value) => String(+Number(value).toPrecision(4));
  const written = (value, unit) =>
    unit === "fraction" ? `${(100 * value).toFixed(1)} %` : short(value);

  // A long name on several lines: a small screen shows 36 letters.
  const legendName = function (name) {
    const lines = [""];
    for (const word of name.split(" ")) {
      const last = lines.at(-1);
      if (last && last.length + word.length >= 36) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.map(escape).join("<br>");
  };

  const show = function (place, spec, redraw, data, layout, words) {
    spec.data = data;
    spec.layout = layout;
    place.setAttribute("aria-label", words);
    redraw();
  };

  // --- one figure in several variants, all computed before -------------------------

  page.hooks.variants = function (place, spec, redraw) {
    const choice = element(`${place.id}-choice`);
    choice.addEventListener("change", () => {
      const { data, layout, alt } = spec.extra.variants[choice.value];
      show(place, spec, redraw, data, layout, alt);
    });
  };

  // --- the summary, and figures that are computed from it ---------------------------

  let summary;
  const read = function () {
    summary ??= JSON.parse(element("sweep-data").textContent);
    return summary;
  };

  const chosen = (figure, name) => Number(element(`${figure}-${name}`).value);

  const valuesOf = (metric, world) =>
    read()
      .values.filter((value) => value[0] === metric && value[1] === world)
      .map(([, , group, mean, spread, count]) => {
        const [place, protocol, request, status, claim, epsilon, holds] =
          read().groups[group];
        return {
          group, place: read().places[place], protocol, request, status, claim, epsilon,
          holds, mean, spread, count,
        };
      });

  const pointWords = (point) =>
    read()
      .axes.map((axis, k) => [axis, point.place[k]])
      .filter(([, value]) => value !== "")
      .map(([axis, value]) => `${axis} = ${value}`);

  const wide = (values) =>
    values.length > 0 && Math.min(...values) > 0 &&
    Math.max(...values) / Math.min(...values) >= 20;

  const numericAxis = function (values, title) {
    const log = wide(values);
    return { type: log ? "log" : "linear", title: { text: escape(title) }, ...(log ? { dtick: "D2" } : {}) };
  };

  const orderOf = (values) =>
    [...new Set(values)].sort((a, b) =>
      typeof a === "number" && typeof b === "number" ? a - b : 0,
    );

  // The worlds in which a metric has values, after the request first.
  const worldsOf = (metric) =>
    [1, 0, 2].filter((world) => read().values.some((v) => v[0] === metric && v[1] === world));

  // A metric that has no values in the chosen world is shown in one where it has.
  const settle = function (figure) {
    const metric = chosen(figure, "metric");
    const worlds = worldsOf(metric);
    const choice = element(`${figure}-world`);
    for (const option of choice.options) option.disabled = !worlds.includes(Number(option.value));
    if (!worlds.includes(Number(choice.value))) choice.value = worlds[0];
  };

  // What stands across: protocol, epsilon, an axis, or another metric.
  const across = function (number) {
    const { axes, metrics } = read();
    if (number === 0) return { name: "protocol", of: (point) => point.protocol };
    if (number === 1) return { name: "epsilon", of: (point) => point.epsilon };
    const axis = number - 2;
    if (axis < axes.length) return { name: axes[axis], of: (point) => point.place[axis] };
    const metric = axis - axes.length;
    const [world] = worldsOf(metric);
    const found = new Map(valuesOf(metric, world).map((point) => [point.group, point.mean]));
    return { name: metrics[metric][0], of: (point) => found.get(point.group) ?? null };
  };

  const colouring = function (number) {
    const { axes } = read();
    if (number === 0) return (point) => point.protocol;
    if (number === 1) return (point) => point.claim.split(" at ε")[0].split(": ε")[0];
    return (point) => `${axes[number - 2]} = ${point.place[number - 2]}`;
  };

  const trace = function (name, points, x, colour, numeric, unit) {
    const { symbols, grey, ink } = read();
    const sorted = numeric ? [...points].sort((a, b) => x.of(a) - x.of(b)) : points;
    const places = sorted.map((point) => x.of(point));
    const single = new Set(sorted.map((p) => `${p.protocol} ${p.request}`)).size === 1;
    const line = numeric && single && new Set(places).size === places.length;
    const colours = sorted.map((point) =>
      point.status === "exact" ? ink : point.holds ? colour : grey,
    );
    return {
      type: "scatter",
      mode: line ? "lines+markers" : "markers",
      name: legendName(name),
      x: places.map((value) => (numeric ? value : escape(value))),
      y: sorted.map((point) => point.mean),
      error_y: { array: sorted.map((point) => point.spread), thickness: 1, width: 3, color: colours[0] },
      line: { color: colours[0], width: 1.5, dash: sorted[0].holds ? "solid" : "dot" },
      marker: {
        size: 9,
        symbol: sorted.map((point) => symbols[point.status]),
        color: colours,
        line: { width: 1.5, color: colours },
      },
      text: sorted.map((point) =>
        [
          point.protocol,
          ...pointWords(point),
          `${written(point.mean, unit)}${point.spread === null ? "" : ` ± ${written(point.spread, unit)}`}` +
            `, ${point.count} seed${point.count === 1 ? "" : "s"}`,
          point.claim,
        ].map(escape).join("<br>"),
      ),
      hovertemplate: "%{text}<extra></extra>",
    };
  };

  const rangeWords = function (title, points, unit) {
    if (points.length === 0) return `${title}: no values.`;
    const ranges = new Map();
    for (const point of points) {
      const [low, high, count] = ranges.get(point.protocol) ?? [Infinity, -Infinity, 0];
      ranges.set(point.protocol, [
        Math.min(low, point.mean), Math.max(high, point.mean), count + 1,
      ]);
    }
    const words = [...ranges].map(
      ([protocol, [low, high, count]]) =>
        `${protocol} ${written(low, unit)} to ${written(high, unit)} over ${count} point${count === 1 ? "" : "s"}`,
    );
    return `${title}: ${words.join("; ")}.`;
  };

  page.hooks.sweepExplorer = function (place, spec, redraw) {
    const { metrics, worlds, colours } = read();
    const names = ["metric", "world", "x", "colour"];
    const draw = function () {
      settle("explorer");
      const [metric, world, by, colour] = names.map((name) => chosen("explorer", name));
      const [name, unit] = metrics[metric];
      const x = across(by);
      const points = valuesOf(metric, world).filter(
        (point) => x.of(point) !== null && x.of(point) !== "",
      );
      const values = points.map(x.of);
      const numeric = values.length > 0 && values.every((value) => typeof value === "number");
      const groups = new Map();
      for (const point of points) {
        const name = colouring(colour)(point);
        groups.set(name, [...(groups.get(name) ?? []), point]);
      }
      const data = [...groups].map(([name, inside], k) =>
        trace(name, inside, x, colours[k % colours.length], numeric, unit),
      );
      const title = `${name}, ${worlds[world]}`;
      const layout = {
        xaxis: numeric
          ? numericAxis(values, x.name)
          : { type: "category", title: { text: escape(x.name) }, categoryorder: "array",
              categoryarray: orderOf(values).map(escape) },
        yaxis: {
          ...numericAxis(points.map((point) => point.mean), unit && unit !== "fraction" ? `${name}, ${unit}` : name),
          ...(unit === "fraction" ? { type: "linear", tickformat: ".1~%", dtick: null } : {}),
        },
        showlegend: data.length > 1,
        legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
        hovermode: "closest",
      };
      const words =
        points.length === 0
          ? `${title} has no values against ${x.name}; choose another metric, world or axis.`
          : rangeWords(title, points, unit);
      element("explorer-words").textContent = words;
      show(place, spec, redraw, data, layout, words);
    };
    for (const name of names) element(`explorer-${name}`).addEventListener("change", draw);
    draw();
  };

  page.hooks.sweepHeat = function (place, spec, redraw) {
    const { axes, metrics, worlds } = read();
    const names = ["metric", "world", "x", "y"];
    const draw = function () {
      settle("heat");
      const [metric, world, right, down] = names.map((name) => chosen("heat", name));
      const wanted = element("heat-protocol").selectedOptions[0].textContent;
      const points = valuesOf(metric, world).filter((point) => point.protocol === wanted);
      const xs = orderOf(points.map((point) => point.place[right]));
      const ys = orderOf(points.map((point) => point.place[down]));
      const cells = ys.map((y) =>
        xs.map((x) =>
          points.filter((point) => point.place[right] === x && point.place[down] === y)
            .map((point) => point.mean),
        ),
      );
      const means = cells.map((row) =>
        row.map((cell) => (cell.length ? cell.reduce((a, b) => a + b) / cell.length : null)),
      );
      const unit = metrics[metric][1];
      const several = cells.some((row) => row.some((cell) => cell.length > 1));
      const data = [
        {
          type: "heatmap",
          x: xs.map((value) => escape(value)),
          y: ys.map((value) => escape(value)),
          z: means,
          text: cells.map((row, i) =>
            row.map((cell, k) =>
              cell.length === 0 ? "" :
              written(means[i][k], unit) + (several ? `<br>${cell.length} point${cell.length === 1 ? "" : "s"}` : ""),
            ),
          ),
          texttemplate: xs.length <= 12 ? "%{text}" : "",
          colorscale: "Cividis",
          colorbar: { tickformat: unit === "fraction" ? ".1~%" : "", thickness: 12, outlinewidth: 0 },
          hovertemplate: `${escape(axes[right])} = %{x}<br>${escape(axes[down])} = %{y}<br>%{text}<extra></extra>`,
          xgap: 2,
          ygap: 2,
        },
      ];
      const layout = {
        xaxis: { type: "category", title: { text: escape(axes[right]) }, showgrid: false },
        yaxis: { type: "category", title: { text: escape(axes[down]) }, showgrid: false, autorange: "reversed" },
      };
      let words = rangeWords(`${metrics[metric][0]}, ${worlds[world]}`, points, unit);
      if (right === down) words = "Choose two different axes. " + words;
      element("heat-words").textContent = words;
      show(place, spec, redraw, data, layout, words);
    };
    for (const name of [...names, "protocol"]) element(`heat-${name}`).addEventListener("change", draw);
    draw();
  };

  // --- tables: keep the rows that have all the words, and show the first ones ---------

  const MOST_ROWS = 200; // laid out at once; more make sorting slow
  const FEW_ROWS = 8; // are found without a box

  const addFilter = function (frame) {
    const table = frame.querySelector("table");
    if (table.tBodies[0].rows.length <= FEW_ROWS) return;
    const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
    const box = make("input", { type: "search", id: `${frame.id}-filter` });
    const label = make("label", { htmlFor: box.id, textContent: "Keep rows with" });
    const told = make("p", { className: "note" }); // printed, as the box is not
    told.setAttribute("role", "status");
    const all = make("button", { type: "button", className: "button", textContent: "Show all" });
    const bar = make("div", { className: "controls" });
    bar.append(label, box, all);
    frame.prepend(bar, told);

    const texts = new Map();
    const textOf = function (row) {
      if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
      return texts.get(row);
    };
    let most = MOST_ROWS;
    const apply = function () {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      let kept = 0;
      for (const row of rows) {
        const keep = words.every((word) => textOf(row).includes(word));
        kept += keep ? 1 : 0;
        row.hidden = !keep || kept > most;
      }
      const found = kept === rows.length ? `${kept} rows` : `${kept} of ${rows.length} rows`;
      told.textContent = kept > most ? `the first ${most} of ${found}` : found;
      all.hidden = kept <= most;
    };
    box.addEventListener("input", apply);
    all.addEventListener("click", () => {
      most = Infinity;
      apply();
    });
    table.tHead.addEventListener("click", apply); // comes after the sorting itself
    apply();
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".filtered").forEach(addFilter);
  });
}
