// Comparisons and simulations, computed by the server.

import { call, Refused } from "/page/api.js";
import { fill, find, show } from "/page/dom.js";
import { drawView } from "/page/view.js";

async function compute(form, path, body) {
  const buttons = [...document.querySelectorAll("#results button")];
  for (const button of buttons) button.disabled = true;
  find("computing").textContent = "Computing…";
  show(find("refused"), "");
  try {
    const found = await call(path, body);
    drawView(find("result"), found);
    find("computing").textContent = "";
    find("result").focus();
    find("result").scrollIntoView({ block: "start" });
  } catch (error) {
    find("computing").textContent = "";
    show(find("refused"), error instanceof Refused ? error.message : "The server does not answer.");
  }
  for (const button of buttons) button.disabled = false;
}

export function start() {
  find("compare").addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target, chips = form.chips.value.split(",").map((chip) => chip.trim()).filter(Boolean);
    compute(form, "compare", {
      model: form.model.value, chips, isl: form.isl.valueAsNumber, osl: form.osl.valueAsNumber,
      concurrency: form.concurrency.valueAsNumber, weights: form.weights.value || null,
    });
  });
  find("simulate").addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target;
    compute(form, "simulate", {
      model: form.model.value, fleet: form.fleet.value.trim(), isl: form.isl.valueAsNumber, osl: form.osl.valueAsNumber,
      rate: form.rate.valueAsNumber, requests: form.requests.valueAsNumber,
    });
  });
}

export function fillForms(choices, fleets) {
  const models = choices.models.map((name) => [name, name]);
  const own = fleets.all[0]?.names.find((name) => choices.models.includes(name));
  if (!own && fleets.served) models.unshift([fleets.served, fleets.served]);
  for (const id of ["compare", "simulate"]) fill(find(id).model, models, own ?? fleets.served);
  fill(find("compare").weights, [["", "as stored"], ...choices.formats.map((name) => [name, name])], "");
  find("compare").chips.value ||= "maia-100:4, h100:4, b200:4";
  find("simulate").fleet.value ||= "maia-100:8";
}
