// What is served and what it does now, asked for again and again; and whether the server is there at all.

import { call } from "/page/api.js";
import { find, show } from "/page/dom.js";

const BUSY = 400, IDLE = 1500, LOST = 1000, HIDDEN = 5000; // milliseconds between two looks
const PATIENCE = 5000; // without an answer for so long, the connection is lost
const SHOWN = 3000; // for so long the page says that it is connected again
const WINDOW = 3000; // milliseconds over which tokens/s is a mean

export const fleets = { all: [], most: 0, served: "", version: "", connected: true };
const listeners = [];
const past = new Map(); // by name: what was generated, when
let timer = 0, looking = false, anew = false, busy = () => false;

export const watch = (listener) => listeners.push(listener);
export const fleetOf = (name) => fleets.all.find((fleet) => fleet.name === name);

function rate(fleet, now) {
  let seen = past.get(fleet.name) ?? [];
  if (seen.length && seen.at(-1).generated > fleet.generated) seen = []; // the server has started anew
  seen = [...seen.filter((x) => now - x.now < WINDOW), { now, generated: fleet.generated, time: fleet.time }];
  past.set(fleet.name, seen);
  const made = fleet.generated - seen[0].generated, time = fleet.time - seen[0].time;
  return made && time > 0 ? made / time : 0;
}

export async function look() {
  anew = looking; // what is on its way may be older than what made somebody ask
  if (looking) return;
  looking = true;
  clearTimeout(timer);
  const box = find("connection"), was = fleets.connected;
  try {
    const said = await call("fleets", undefined, AbortSignal.timeout(PATIENCE));
    const now = performance.now();
    for (const fleet of said.fleets) fleet.rate = rate(fleet, now);
    Object.assign(fleets, { all: said.fleets, most: said.most, served: said.served, version: said.version });
    fleets.connected = true;
    if (!was) {
      show(box, "Connected again.");
      setTimeout(() => fleets.connected && show(box, ""), SHOWN);
    }
  } catch (error) {
    fleets.connected = false;
    const why = error.status ? ` (${error.message})` : "";
    if (was) show(box, `The connection to the server is lost${why}. The page tries again every second.`);
  } finally {
    looking = false;
  }
  for (const listener of listeners) listener(fleets);
  timer = setTimeout(look, !fleets.connected ? LOST : anew ? 0 : document.hidden ? HIDDEN : busy() ? BUSY : IDLE);
}

export function start(isBusy) {
  busy = isBusy;
  document.addEventListener("visibilitychange", () => document.hidden || look());
  return look();
}
