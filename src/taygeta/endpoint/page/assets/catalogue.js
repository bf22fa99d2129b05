// The catalogue: chips and models, each with the source of every number, or the reason and the range of an assumed one.

import { call, Refused } from "/page/api.js";
import { find, make } from "/page/dom.js";
import { drawView } from "/page/view.js";

let shown = "";

function lists(box, found) {
  const part = (title, name, kind) => {
    const here = make("div");
    drawView(here, found[name], { links: found[name].ids.map((id) => `#catalogue/${kind}/${id}`) });
    return here;
  };
  box.replaceChildren(make("h1", { textContent: "Catalogue" }), part("Chips", "chips", "chip"), part("Models", "models", "model"));
}

function sheet(box, found) {
  drawView(box, found, { heading: "h1" });
  box.prepend(make("p", {}, make("a", { href: "#catalogue", textContent: "← All chips and models" })));
  if (found.source) box.querySelector("h1").after(make("p", { className: "line", textContent: `Source: ${found.source}` }));
}

// path: "", "chip/ID" or "model/NAME".
export async function open(path) {
  if (shown === path && find("entries").children.length) return;
  const box = find("entries"), [kind, ...name] = path.split("/");
  box.setAttribute("aria-busy", "true");
  try {
    const where = name.map(encodeURIComponent).join("/");
    const found = await call(path ? `${kind === "model" ? "models" : "chips"}/${where}` : "catalogue");
    (path ? sheet : lists)(box, found);
    shown = path;
  } catch (error) {
    shown = "";
    box.replaceChildren(make("p", { className: "problem", role: "alert", textContent: error instanceof Refused ? error.message : "The server does not answer." }),
      make("p", {}, make("a", { href: "#catalogue", textContent: "← All chips and models" })));
  }
  box.removeAttribute("aria-busy");
  if (path) box.focus();
  scrollTo(0, 0);
}
