// Elements from plain values. Text is always text: nothing here, and nothing that uses it, parses markup.

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/**
 * A new element. Properties are attributes, or listeners when their name begins with "on";
 * false, null and undefined are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const ICONS = {
  add: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  down: "M12 5v14M6 13l6 6 6-6",
  hide: "M5 12a7 7 0 1 0 14 0a7 7 0 1 0-14 0M7 7l10 10",
  up: "M12 19V5M6 11l6-6 6 6",
};

/** A line drawing that says nothing: the button around it is named. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A small button that shows a drawing and is called by its label. */
export function iconButton(name, label, onclick, more = {}) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

/** A bar from `from` to `to`, both shares of its width; it can be told again with `setBar`. */
export function bar(from, to, kind = "") {
  const fill = h("span", { class: `fill ${kind}` });
  const element = h("span", { class: "bar", "aria-hidden": "true" }, fill);
  setBar(element, from, to);
  return element;
}

/** Move a bar. */
export function setBar(element, from, to) {
  const fill = element.firstElementChild;
  fill.style.setProperty("left", `${(100 * from).toFixed(2)}%`);
  fill.style.setProperty("width", `${(100 * Math.max(to - from, 0)).toFixed(2)}%`);
}

/**
 * Make a list show these items: rows are found again by their key, so that focus and place survive an update; where
 * the row in focus goes, the one in its place gets the focus.
 * `create(item)` makes a row, `update(row, item, position)` fills it.
 */
export function showRows(list, items, keyOf, create, update) {
  const focus = focusIn(list);
  const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
  const keys = items.map(keyOf);
  const kept = new Set(keys);
  for (const [key, row] of rows) if (!kept.has(key)) row.remove();
  items.forEach((item, position) => {
    const row = rows.get(keys[position]) ?? create(item);
    row.dataset.key = keys[position];
    update(row, item, position);
    if (list.children[position] !== row) list.insertBefore(row, list.children[position] ?? null);
  });
  if (!focus) return;
  const row = list.children[Math.min(focus.row, list.children.length - 1)];
  const target = focus.element.isConnected ? focus.element : row?.querySelectorAll("button")[focus.control];
  if (target && document.activeElement !== target) target.focus({ preventScroll: true });
}

/** Which control of which row has the focus; null = none of this list. */
function focusIn(list) {
  const element = document.activeElement;
  if (!list.contains(element)) return null;
  const row = element.closest("li");
  return { element, row: [...list.children].indexOf(row), control: [...row.querySelectorAll("button")].indexOf(element) };
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Run `change`, then let the rows of a list slide from where they were to where they are. */
export function sliding(list, change) {
  const before = new Map([...list.children].map((row) => [row, row.getBoundingClientRect().top]));
  change();
  if (still.matches || list.children.length > 100) return;
  for (const row of list.children) {
    const from = before.get(row);
    const by = from === undefined ? 0 : from - row.getBoundingClientRect().top;
    if (from === undefined) row.animate([{ opacity: 0 }, { opacity: 1 }], 180);
    else if (by) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 180, easing: "ease-out" });
  }
}

/** Let arrow keys go from row to row, on the same control. */
export function arrowsMove(list) {
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const { row, control } = focusIn(list);
    const target = list.children[row + step]?.querySelectorAll("button")[control];
    if (!target) return;
    event.preventDefault();
    target.focus();
  });
}

const ANNOUNCED_MS = 4000;

/** Tell a screen reader, after what it is being told. */
export function announce(text) {
  const line = h("p", {}, text);
  at("live").append(line);
  setTimeout(() => line.remove(), ANNOUNCED_MS);
}

/** Name a button that shows only a drawing. */
export function nameButton(button, text) {
  button.setAttribute("aria-label", text);
  button.title = text;
}

const whole = new Intl.NumberFormat("en");

/** 1,234 */
export const count = (number) => whole.format(number);

/** 3 items, 1 item */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A score in about four digits. */
export function figure(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3).replace("-", "\u2212");
}

/** Milliseconds, short. */
export const milliseconds = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
