// The page: its views, its theme, and what starts them.

import { call } from "/page/api.js";
import * as catalogue from "/page/catalogue.js";
import * as chat from "/page/chat.js";
import { find } from "/page/dom.js";
import * as fleets from "/page/fleets.js";
import * as results from "/page/results.js";

const VIEWS = { chat: "Chat", results: "Results", catalogue: "Catalogue" };

function route() {
  const [asked, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
  const name = asked in VIEWS ? asked : "chat";
  for (const view of Object.keys(VIEWS)) {
    find(view).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name]} · Taygeta`;
  if (name === "catalogue") catalogue.open(rest.join("/"));
}

function themes() {
  const box = find("theme"), root = document.documentElement;
  box.value = root.dataset.theme ?? "auto";
  box.addEventListener("change", () => {
    if (box.value === "auto") delete root.dataset.theme;
    else root.dataset.theme = box.value;
    localStorage.setItem("taygeta.theme", box.value);
  });
}

async function fillForms() {
  for (;;) {
    try {
      const choices = await call("choices");
      chat.fillForm(choices);
      results.fillForms(choices, fleets.fleets);
      return;
    } catch {
      await new Promise((done) => setTimeout(done, 2000)); // the server is away: the banner says so
    }
  }
}

find("skip").addEventListener("click", (event) => {
  event.preventDefault();
  find("main").focus();
});
addEventListener("hashchange", route);
themes();
route();
chat.start();
results.start();
await fleets.start(chat.busy);
await fillForms();
document.documentElement.dataset.ready = "yes";
