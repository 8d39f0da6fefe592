"use strict";
// What every page does: draw its figures in the colours of its theme, sort its tables.
//
// A figure is `<div class="chart" data-hook="...">` followed by its specification as
// JSON. A string "var(--name)" anywhere in it stands for a colour of the style sheet.
// A hook gets the place, the specification and a function that draws it again; it
// changes the specification, never the drawing, so that a change of theme keeps it.

const page = { hooks: {}, charts: new Map() };

page.colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

page.resolve = function (value) {
  if (typeof value === "string") {
    const found = /^var\((--[a-z-]+)\)$/.exec(value);
    return found ? page.colour(found[1]) : value;
  }
  if (Array.isArray(value)) return value.map(page.resolve);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, page.resolve(inner)]),
  );
};

// plotly reads a few tags in texts.
page.escape = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

page.themed = function (layout) {
  const axis = {
    gridcolor: "var(--line)",
    linecolor: "var(--soft)",
    zerolinecolor: "var(--line)",
    tickcolor: "var(--soft)",
    automargin: true,
    fixedrange: true,
  };
  const named = (own) => (own.title ? { title: { standoff: 12, ...own.title } } : {});
  const own = Object.fromEntries(
    Object.entries(layout).map(([key, value]) =>
      /^[xy]axis\d*$/.test(key) ? [key, { ...axis, ...value, ...named(value) }] : [key, value],
    ),
  );
  return page.resolve({
    xaxis: axis,
    yaxis: axis,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 55, r: 15, t: 15, b: 45 },
    dragmode: false,
    autosize: true,
    legend: { orientation: "h", x: 0, y: -0.25, yanchor: "top" },
    ...own,
    font: { family: "system-ui, sans-serif", size: 12, color: "var(--ink)", ...own.font },
    hoverlabel: {
      bgcolor: "var(--tint)",
      bordercolor: "var(--soft)",
      font: { color: "var(--ink)" },
      ...own.hoverlabel,
    },
  });
};

page.draw = (place, spec) =>
  Plotly.react(place, page.resolve(spec.data), page.themed(spec.layout), {
    displayModeBar: false,
    responsive: true,
  });

page.start = async function () {
  for (const place of document.querySelectorAll(".chart")) {
    const text = place.parentElement.querySelector('script[type="application/json"]');
    const spec = JSON.parse(text.textContent);
    place.textContent = "";
    place.classList.add("drawn");
    page.charts.set(place, spec);
    await page.draw(place, spec);
    const hook = page.hooks[place.dataset.hook];
    if (hook) hook(place, spec, () => page.draw(place, spec));
    await new Promise((resolve) => setTimeout(resolve)); // lets the page answer between
  }
  document.documentElement.dataset.drawn = "yes";
};

page.redraw = () => page.charts.forEach((spec, place) => page.draw(place, spec));

// --- theme and print ----------------------------------------------------------------

page.dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

page.addThemeButton = function () {
  const button = document.createElement("button");
  button.className = "button theme";
  button.type = "button";
  const name = () => (button.textContent = page.dark() ? "Light colours" : "Dark colours");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = page.dark() ? "light" : "dark";
    name();
    page.redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    name();
    page.redraw();
  });
  name();
  document.querySelector("main").prepend(button);
};

page.fitToPaper = function (printing) {
  const width = 660; // pixels of an A4 or letter page between its margins
  const theme = document.documentElement.dataset.theme;
  if (printing) {
    page.before = theme;
    document.documentElement.dataset.theme = "light";
  } else if (page.before) document.documentElement.dataset.theme = page.before;
  else delete document.documentElement.dataset.theme;
  page.charts.forEach((spec, place) => {
    const layout = printing ? { ...spec.layout, width, autosize: false } : spec.layout;
    page.draw(place, { ...spec, layout });
    if (!printing) Plotly.Plots.resize(place);
  });
};

// --- tables -------------------------------------------------------------------------

page.NUMBER = /^[+\u2212-]?(\d[\d,]*\.?\d*|\.\d+)(e[+-]?\d+)?/i;

page.cell = function (row, column) {
  const cell = row.cells[column];
  return (cell.dataset.value ?? cell.textContent).trim();
};

page.number = function (text) {
  const found = page.NUMBER.exec(text);
  return found ? parseFloat(found[0].replaceAll(",", "").replace("\u2212", "-")) : NaN;
};

page.sort = function (table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, text: page.cell(row, column) }));
  const blank = ({ text }) => text === "" || text === "-" || text === "not measured";
  const full = rows.filter((entry) => !blank(entry));
  const numeric = full.every(({ text }) => page.NUMBER.test(text));
  const compare = numeric
    ? (a, b) => page.number(a.text) - page.number(b.text)
    : (a, b) => a.text.localeCompare(b.text, "en", { numeric: true });
  full.sort((a, b) => (descending ? -1 : 1) * compare(a, b));
  body.append(...[...full, ...rows.filter(blank)].map(({ row }) => row));
};

page.makeSortable = function (table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads)
        if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      page.sort(table, column, descending);
    });
  });
};

window.page = page;
document.addEventListener("DOMContentLoaded", () => {
  page.addThemeButton();
  document.querySelectorAll("table").forEach((table) => {
    if (table.tHead && table.tBodies.length) page.makeSortable(table);
  });
  window.addEventListener("beforeprint", () => page.fitToPaper(true));
  window.addEventListener("afterprint", () => page.fitToPaper(false));
  page.start();
});
