// Elements without markup: every text is text, whatever it holds.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export const find = (id) => document.getElementById(id);

export function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.value = options.some(([value]) => value === chosen) ? chosen : options[0]?.[0] ?? "";
}

export function show(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

export const numbers = (value, digits = 3) =>
  Number.isFinite(value) ? value.toLocaleString("en-US", { maximumSignificantDigits: digits }) : "–";

export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  const [scale, unit] = value >= 0.9995 ? [1, "s"] : value >= 0.9995e-3 || value === 0 ? [1e-3, "ms"] : [1e-6, "µs"];
  return `${(value / scale).toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "")} ${unit}`;
}
