// The conversation: what was asked, the answers of one fleet or two side by side, and what may be done next.

import { answer, call, Refused } from "/page/api.js";
import { drawPanels, fillChips, timing } from "/page/chip.js";
import { fill, find, make, show } from "/page/dom.js";
import { fleetOf, fleets, look, watch } from "/page/fleets.js";

const STORE = "taygeta.chat";
const KEPT = 50; // turns that survive a reload
const state = { turns: [], first: "", second: "" }; // of each turn: group (asked again: the same), seed, question, answers
const live = new Map(); // answers that stream now: their controllers
const drawn = new Map(); // answers by id: their elements
let dirty = new Set(), framed = false, said = "", leaving = false;

export const busy = () => live.size > 0;
const chosen = () => [state.first, state.second].filter(Boolean).map(fleetOf).filter(Boolean);
const lastTurn = () => state.turns.at(-1);

function save() {
  const turns = state.turns.slice(-KEPT);
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ ...state, turns }));
  } catch {
    sessionStorage.removeItem(STORE); // too long to be kept: a reload begins anew
  }
}

function restore() {
  try {
    Object.assign(state, JSON.parse(sessionStorage.getItem(STORE)) ?? {});
  } catch {
    sessionStorage.removeItem(STORE);
  }
  for (const turn of state.turns) for (const one of turn.answers) one.ended ??= "Cut off by a reload.";
  state.turns.forEach(drawTurn);
}

// What a fleet is told: of every group before this one the last turn, with its own answer where it gave one.
function messages(turn, name) {
  const before = new Map();
  for (const other of state.turns) if (other.group < turn.group) before.set(other.group, other);
  const out = [];
  for (const other of before.values()) {
    const mine = other.answers.find((one) => one.fleet === name) ?? other.answers[0];
    out.push({ role: "user", content: other.question });
    if (mine.text) out.push({ role: "assistant", content: mine.text });
  }
  return [...out, { role: "user", content: turn.question }];
}

function drawTurn(turn) {
  find("welcome").hidden = true;
  const answers = turn.answers.map((one) => {
    const text = make("p", { className: "text" }), ended = make("p", { className: "ended", hidden: true });
    const times = make("dl", { className: "timing" });
    const box = make("section", { className: "answer", "aria-label": `Answer of ${one.chips}` },
      make("h3", { textContent: `${one.chips}, ${one.weights}` }), text, ended, times);
    box.dataset.fleet = one.fleet;
    drawn.set(one.id, { box, text, ended, times });
    return box;
  });
  const box = make("article", { className: "turn", "aria-label": `Question: ${turn.question.slice(0, 80)}` },
    make("h2", { className: "question", textContent: turn.question }),
    make("div", { className: answers.length > 1 ? "answers two" : "answers" }, ...answers));
  find("turns").append(box);
  turn.answers.forEach(drawAnswer);
}

function drawAnswer(one) {
  const parts = drawn.get(one.id);
  if (!parts) return; // the conversation was cleared meanwhile
  const { box, text, ended, times } = parts;
  box.classList.toggle("streaming", live.has(one.id));
  text.textContent = one.text;
  show(ended, live.has(one.id) ? "" : one.ended ?? "");
  times.replaceChildren(...(one.tokens ? timing(one) : []).map(([name, value]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
}

function later(one) { // many tokens, one drawing
  dirty.add(one);
  if (framed) return;
  framed = true;
  requestAnimationFrame(() => {
    const box = scroller(), near = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    framed = false;
    for (const each of dirty) drawAnswer(each);
    dirty = new Set();
    if (near) box.scrollTop = box.scrollHeight;
    drawState();
  });
}

// On a narrow screen the page scrolls, on a wide one the conversation.
const scroller = () => (getComputedStyle(find("turns")).overflowY === "visible" ? document.scrollingElement : find("turns"));

function speak(one, last) { // whole sentences, of the first answer: what a screen reader reads out while it streams
  if (one !== lastTurn()?.answers[0]) return;
  const fresh = one.text.slice(said.length), end = last ? fresh.length : fresh.lastIndexOf(". ") + 1;
  if (end <= 0) return;
  find("said").textContent = fresh.slice(0, end).trim();
  said += fresh.slice(0, end);
}

async function run(turn, one) {
  const control = new AbortController();
  live.set(one.id, control);
  later(one);
  let problem = "";
  try {
    const events = answer(one.fleet, messages(turn, one.fleet), turn.seed, control.signal, (at) => (one.arrived = at));
    for await (const event of events) {
      one.text += event.text;
      one.tokens = event.tokens;
      one.times.push(event.at);
      if (event.reason === "length") problem = "Cut off: the longest answer.";
      later(one);
      speak(one, false);
    }
  } catch (error) {
    if (leaving) return; // what breaks off now is cut off by the reload, and saved as it is
    if (control.signal.aborted) problem = "Stopped.";
    else if (error instanceof Refused) problem = error.message;
    else problem = "The connection was lost.";
  }
  one.ended = problem;
  live.delete(one.id);
  drawAnswer(one); // at once: whoever sees that nothing runs sees the last word too
  speak(one, true);
  if (problem && one === turn.answers[0]) find("said").textContent += ` ${problem}`;
  save();
  later(one);
  if (!busy()) look();
}

function ask(question, group, seed) {
  const turn = { group, seed, question, answers: [] };
  for (const fleet of chosen()) {
    turn.answers.push({
      id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, fleet: fleet.name, chips: fleet.chips, weights: fleet.weights,
      text: "", tokens: 0, arrived: NaN, times: [], ended: null,
    });
  }
  if (!turn.answers.length) return;
  state.turns.push(turn);
  said = "";
  save();
  drawTurn(turn);
  for (const one of turn.answers) run(turn, one);
  drawState();
  scroller().scrollTop = scroller().scrollHeight;
  look();
}

function askNew(event) {
  event?.preventDefault();
  const box = find("question"), question = box.value.trim();
  if (!question || busy()) return;
  box.value = "";
  ask(question, (lastTurn()?.group ?? 0) + 1, Math.floor(Math.random() * 2 ** 31));
}

function stop() {
  for (const control of live.values()) control.abort();
  find("question").focus();
}

function clear() {
  stop();
  state.turns = [];
  drawn.clear();
  find("turns").replaceChildren(find("welcome"));
  find("welcome").hidden = false;
  save();
  drawState();
}

function drawState() {
  const many = state.turns.length > 0;
  find("made-up").hidden = !chosen().some((fleet) => fleet.made_up);
  find("send").disabled = busy() || !fleets.connected || !chosen().length;
  find("stop").hidden = !busy();
  find("again").disabled = busy() || !many || !fleets.connected;
  find("clear").disabled = !many;
  const latest = new Map();
  for (const one of lastTurn()?.answers ?? []) latest.set(one.fleet, one);
  drawPanels(chosen(), latest);
}

function drawChoices() {
  const all = fleets.all.map((fleet) => [fleet.name, `${fleet.chips}, ${fleet.weights}`]);
  const known = JSON.stringify(all), box = find("first");
  if (box.dataset.known !== known) {
    box.dataset.known = known;
    fill(box, all, state.first || all[0]?.[0]);
    fill(find("second"), [["", "nothing"], ...all], state.second);
    take();
  }
  drawState();
}

function take() {
  state.first = find("first").value;
  const second = find("second");
  for (const option of second.options) option.disabled = option.value === state.first && option.value !== "";
  if (second.value === state.first) second.value = "";
  state.second = second.value;
  save();
  drawState();
}

async function add(event) {
  event.preventDefault();
  const form = event.target, problem = form.querySelector(".problem"), button = form.querySelector("button");
  const weights = form.weights.value ? `,weights=${form.weights.value}` : "";
  button.disabled = true;
  button.textContent = "Adding…";
  show(problem, "");
  try {
    const fleet = await call("fleets", { fleet: `${form.chip.value}:${form.count.value}${weights}` });
    await look();
    fleets.all.some((one) => one.name === fleet.name) || fleets.all.push(fleet);
    drawChoices();
    find("second").value = fleet.name;
    take();
    find("adding").open = false;
    find("second").focus();
  } catch (error) {
    show(problem, error instanceof Refused ? error.message : "The server does not answer.");
  }
  button.disabled = false;
  button.textContent = "Add";
}

export function start() {
  restore();
  find("ask").addEventListener("submit", askNew);
  find("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) askNew(event);
  });
  find("stop").addEventListener("click", stop);
  find("again").addEventListener("click", () => {
    const turn = lastTurn();
    ask(turn.question, turn.group, turn.seed);
  });
  find("clear").addEventListener("click", clear);
  find("first").addEventListener("change", take);
  find("second").addEventListener("change", take);
  find("add").addEventListener("submit", add);
  addEventListener("beforeunload", () => {
    leaving = true;
    save();
    setTimeout(() => (leaving = false), 2000); // where the page stays after all
  });
  watch(drawChoices);
}

export function fillForm(choices) {
  const form = find("add");
  fillChips(form.chip, choices, "h100");
  fill(form.weights, [["", "as stored"], ...choices.formats.map((name) => [name, name])], "");
}
