// What is looked at, in the address's fragment: a view can be shared, and Back undoes. Fragments never reach a server,
// so no proxy logs a history.

const LISTS = { h: "history", a: "allow", d: "deny" };
const TEXTS = { u: "user", s: "seen", w: "where", i: "item" };
const MODES = ["history", "user"];
const SEEN = ["", "hide", "show"];

export const EMPTY = Object.freeze({
  mode: "history", history: [], user: "", k: 10, seen: "", where: "", diversity: 0, allow: [], deny: [], item: "",
});

/** The fragment of a state; whatever is as in EMPTY is left out. */
export function format(state) {
  const parts = [];
  if (state.mode !== EMPTY.mode) parts.push(`m=${state.mode}`);
  for (const [short, name] of Object.entries(LISTS)) {
    if (state[name].length) parts.push(`${short}=${state[name].map(encodeURIComponent).join(",")}`);
  }
  for (const [short, name] of Object.entries(TEXTS)) {
    if (state[name]) parts.push(`${short}=${encodeURIComponent(state[name])}`);
  }
  if (state.k !== EMPTY.k) parts.push(`k=${state.k}`);
  if (state.diversity) parts.push(`v=${state.diversity}`);
  return parts.length ? `#${parts.join("&")}` : "";
}

/** The state of a fragment; what cannot be read is as in EMPTY. */
export function parse(fragment) {
  const state = structuredClone(EMPTY);
  for (const part of fragment.replace(/^#/, "").split("&")) {
    const [short, value = ""] = part.split(/=(.*)/s);
    if (LISTS[short] && value) state[LISTS[short]] = value.split(",").map(decoded).filter((id) => id !== "");
    else if (TEXTS[short]) state[TEXTS[short]] = decoded(value);
    else if (short === "m" && MODES.includes(value)) state.mode = value;
    else if (short === "v" && /^(1|0(\.\d{1,4})?)$/.test(value)) state.diversity = Number(value);
    else if (short === "k" && /^[1-9]\d{0,8}$/.test(value)) state.k = Number(value);
  }
  if (!SEEN.includes(state.seen)) state.seen = "";
  return state;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // cut in the middle of a character
  }
}

/** The state, and who wants to know of its changes. */
export class Store {
  constructor(onChange) {
    this.state = parse(location.hash);
    this.onChange = onChange;
    addEventListener("popstate", () => {
      const before = this.state;
      this.state = parse(location.hash);
      this.onChange(this.state, before);
    });
  }

  /** Change some of it; `replace`: without a step to go back to. */
  set(changes, replace = false) {
    const before = this.state;
    const after = { ...before, ...changes };
    if (format(after) === format(before)) return;
    this.state = after;
    const address = location.pathname + location.search + format(after);
    history[replace ? "replaceState" : "pushState"](null, "", address);
    this.onChange(after, before);
  }

  /** Put an item after the others, as the newest. */
  add(...ids) {
    this.set({ mode: "history", history: [...this.state.history, ...ids] });
  }

  /** Put an item on a list of filters, or take it off. */
  toggle(list, id) {
    const ids = this.state[list];
    this.set({ [list]: ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id] });
  }
}
