// The panel of a fleet: its latest step by part and by engine, queue, batch, KV cache, and the answer that it gives.

import { fill, find, make, numbers, seconds } from "/page/dom.js";

const ENGINES = {
  tensor: "tensor units", memory: "main memory", on_chip: "on-chip memory", vector: "vector units", link: "links",
  fixed: "launch and sync",
};
const PARTS = ["attention", "ffn", "experts", "collectives", "norms", "head", "embedding", "shared"];
const SMALL = 0.01; // parts below this share of a step are summed up
const panels = new Map();

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) / 2)] : NaN;
}

// TTFT, the median gap and tokens/s of an answer, in the fleet's seconds: [label, text] each.
export function timing(answer) {
  const gaps = answer.times.slice(1).map((time, i) => time - answer.times[i]);
  const lasted = (answer.times.at(-1) ?? NaN) - (answer.times[0] ?? NaN);
  return [
    ["TTFT", seconds((answer.times[0] ?? NaN) - answer.arrived)],
    ["ITL", seconds(median(gaps))],
    ["tokens", answer.tokens ? numbers(answer.tokens, 7) : "–"],
    ["tokens/s", lasted > 0 ? numbers((answer.tokens - 1) / lasted) : "–"],
  ];
}

function tiles(pairs) {
  return make("dl", { className: "numbers" }, ...pairs.map(([name, text]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: text }))));
}

function gauge(share) {
  const bar = make("i");
  bar.style.width = `${Math.min(100, share * 100)}%`;
  return make("td", { className: "gauge", "aria-hidden": "true" }, make("span", {}, bar));
}

function work(step) {
  const said = [];
  if (step.prompts) said.push(`${numbers(step.prompt_tokens, 7)} tokens of ${step.prompts === 1 ? "a prompt" : `${step.prompts} prompts`}`);
  if (step.decodes) said.push(`${step.decodes === 1 ? "1 sequence decodes" : `${numbers(step.decodes, 7)} sequences decode`} at ${numbers(step.context, 7)} tokens`);
  return said.join(", ");
}

function stepParts(step, longest) {
  const colour = (name) => (PARTS.includes(name) ? name : "other");
  const all = [...step.parts, { name: "host and engine", seconds: step.host }].filter((p) => p.seconds > 0);
  const total = all.reduce((sum, part) => sum + part.seconds, 0);
  const parts = all.filter((part) => part.seconds >= SMALL * total);
  const rest = total - parts.reduce((sum, part) => sum + part.seconds, 0);
  if (rest > 0) parts.push({ name: "all others", seconds: rest });
  const bar = make("div", { className: "bar", "aria-hidden": "true" }, ...parts.map((part) => {
    const piece = make("i", { className: colour(part.name) });
    piece.style.width = `${(part.seconds / total) * 100}%`;
    return piece;
  }));
  bar.style.width = `${Math.max(2, (step.seconds / longest) * 100)}%`;
  const rows = parts.map((part) => make("tr", {},
    make("th", { scope: "row" }, make("span", { className: `dot ${colour(part.name)}`, "aria-hidden": "true" }), part.name),
    make("td", { textContent: seconds(part.seconds) })));
  return [bar, make("table", {}, make("caption", { className: "hidden", textContent: "The step by part of the model" }), make("tbody", {}, ...rows))];
}

function stepEngines(step) {
  const rows = step.engines.map((engine) => make("tr", {},
    make("th", { scope: "row", textContent: ENGINES[engine.name] ?? engine.name }),
    gauge(engine.seconds / step.seconds),
    make("td", { textContent: seconds(engine.seconds) })));
  return make("table", {}, make("caption", { className: "hidden", textContent: "The step by engine" }), make("tbody", {}, ...rows));
}

function build(name) {
  const panel = make("details", { className: "panel", open: matchMedia("(min-width: 56.01rem)").matches });
  const head = make("strong"), brief = make("span"), body = make("div");
  panel.append(make("summary", {}, head, brief), body);
  panel.dataset.fleet = name;
  return { panel, head, brief, body, drawn: "" };
}

function draw(parts, fleet, answer, longest) {
  const { head, brief, body } = parts, step = fleet.step;
  head.textContent = fleet.chips;
  brief.textContent = step ? `step ${seconds(step.seconds)}` : "idle";
  const children = fleet.lines.map((line) => make("p", { className: "soft", textContent: line }));
  if (fleet.speed !== 1) {
    const pace = fleet.speed === null ? "as fast as possible" : `${numbers(fleet.speed)} s of the fleet in a second`;
    children.push(make("p", { className: "soft", textContent: `Pace: ${pace}` }));
  }
  if (answer) children.push(make("h3", { textContent: "This answer" }), tiles(timing(answer)));
  children.push(make("h3", { textContent: "The fleet now" }), tiles([
    ["queue", numbers(fleet.waiting, 7)], ["batch", numbers(fleet.running, 7)],
    ["KV use", `${(fleet.kv * 100).toFixed(fleet.kv < 0.1 ? 2 : 0)} %`], ["tokens/s", fleet.rate ? numbers(fleet.rate) : "0"],
  ]));
  if (fleet.lag > 0.02) children.push(make("p", { className: "problem", textContent: `Up to ${seconds(fleet.lag)} late: the server cannot keep this pace.` }));
  if (step) {
    children.push(
      make("h3", { textContent: `Last step ${seconds(step.seconds)}` }), make("p", { className: "soft", textContent: work(step) }),
      ...stepParts(step, longest), make("h3", { textContent: "Engines at work in it" }), stepEngines(step));
  }
  body.replaceChildren(...children);
}

// Draws the panels of the fleets that are chosen; `answers` holds the latest answer of each by name.
export function drawPanels(chosen, answers) {
  const box = find("panels"), names = chosen.map((fleet) => fleet.name);
  for (const [name, parts] of panels) {
    if (!names.includes(name)) {
      parts.panel.remove();
      panels.delete(name);
    }
  }
  box.classList.toggle("two", chosen.length > 1);
  const longest = Math.max(...chosen.map((fleet) => fleet.step?.seconds ?? 0), 1e-9);
  chosen.forEach((fleet, place) => {
    if (!panels.has(fleet.name)) panels.set(fleet.name, build(fleet.name));
    const parts = panels.get(fleet.name), answer = answers.get(fleet.name);
    if (box.children[place] !== parts.panel) box.insertBefore(parts.panel, box.children[place] ?? null);
    const state = JSON.stringify([{ ...fleet, time: 0 }, answer?.id, answer?.tokens, longest]); // time alone changes nothing
    if (state !== parts.drawn) {
      parts.drawn = state;
      draw(parts, fleet, answer, longest);
    }
  });
}

export const fillChips = (select, choices, chosen) =>
  fill(select, choices.chips.map((chip) => [chip.id, chip.name]), chosen);
