// Draws a result as the reports do: lines, facts, tables, plots, notes.

import { make } from "/page/dom.js";

const LINK = /https?:\/\/[^\s<>"'(),;]+[^\s<>"'(),;.]/g;

function linked(text) { // addresses in a text become links; nothing is fetched until somebody follows one
  const out = [];
  let place = 0;
  for (const found of text.matchAll(LINK)) {
    out.push(text.slice(place, found.index), make("a", { href: found[0], rel: "noreferrer", target: "_blank", textContent: found[0] }));
    place = found.index + found[0].length;
  }
  return [...out, text.slice(place)];
}

function cell(tag, value, column, more = {}) {
  const element = make(tag, { className: column.numeric ? "number" : "", ...more }, ...linked(value.text));
  if (value.below) element.append(make("span", { className: "below", textContent: value.below }));
  return element;
}

function table(grid, links) {
  const heads = grid.columns.map((c) => make("th", { scope: "col", className: c.numeric ? "number" : "", textContent: c.head }));
  const rows = grid.rows.map((row, n) => {
    const first = cell("th", row[0], grid.columns[0], { scope: "row" });
    if (links) first.replaceChildren(make("a", { href: links[n], textContent: row[0].text }));
    const rest = row.slice(1).map((value, i) => cell("td", value, grid.columns[i + 1]));
    return make("tr", { className: n === grid.marked ? "marked" : "" }, first, ...rest);
  });
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

function section(grid, links) {
  const title = grid.title || "Table";
  const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": title }, table(grid, links));
  return make("section", {}, make("h2", { textContent: title, className: grid.title ? "" : "hidden" }), scroll, ...(grid.caption ? [make("p", { textContent: grid.caption })] : []));
}

function picture(p) {
  const svg = new DOMParser().parseFromString(p.svg, "text/html").querySelector("svg");
  const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": p.title }, document.importNode(svg, true));
  return make("figure", {}, make("figcaption", { textContent: p.title }), scroll);
}

function facts(found) {
  const rows = found.map((f) => make("tr", {}, make("th", { scope: "row", textContent: f.name }),
    make("td", { className: "value" }, ...linked(f.value)), make("td", { className: "more", textContent: f.more })));
  return make("table", { className: "facts" }, make("caption", { className: "hidden", textContent: "Summary" }), make("tbody", {}, ...rows));
}

export function drawView(box, { view, pictures = [] }, { links, heading = "h2" } = {}) {
  const [first, ...rest] = view.grids.map((grid) => section(grid, links));
  box.replaceChildren(
    make(heading, { textContent: view.title }),
    ...view.lines.filter(Boolean).map((line) => make("p", { className: "line", textContent: line })),
    ...(view.warning ? [make("p", { className: "warning", role: "note", textContent: view.warning })] : []),
    ...(view.facts.length ? [facts(view.facts)] : []),
    ...(first ? [first] : []), ...pictures.map(picture), ...rest,
  );
  if (view.notes.length) {
    box.append(make("section", {}, make("h2", { textContent: "Notes" }), make("ul", {}, ...view.notes.map((n) => make("li", {}, ...linked(n))))));
  }
}
