// The page: a history, or a user, on the left; what the model recommends after it on the right.

import { Api } from "./api.js";
import { Catalogue } from "./catalogue.js";
import { Combobox } from "./combobox.js";
import { announce, arrowsMove, at, count, h, iconButton, nameButton, showRows, sliding } from "./dom.js";
import { Calls, showCurl, showModel } from "./facts.js";
import { ItemSheet } from "./item.js";
import { Online } from "./online.js";
import { Results } from "./results.js";
import { Store } from "./state.js";

const TYPING_MS = 250;
const SHOWN_COLUMNS = 12;

const calls = new Calls();
const api = new Api(askKey, (call) => calls.add(call), showWait);
const catalogue = new Catalogue(api, takeModel, renderNames);
const store = new Store(changed);
const sheet = new ItemSheet({ catalogue, store });
const online = new Online(api);
const openItem = (id) => sheet.open(id);
const results = new Results({ catalogue, store, openItem, onAnswer: () => render(store.state), onMisfit: showMisfit });

const fields = Object.fromEntries([
  ["search", "Add an item", "/", (ids) => addToHistory(ids)],
  ["allow", "Recommend only these", null, (ids) => extend("allow", ids)],
  ["deny", "Never recommend these", null, (ids) => extend("deny", ids)],
].map(([id, label, hint, take]) => [id, new Combobox(at(id), {
  label, hint, take,
  search: (text, k, signal) => catalogue.search(text, k, signal),
  onError: showNotice,
})]));

function addToHistory(ids) {
  store.add(...ids);
  announce(`${ids.map((id) => catalogue.name(id)).join(", ")} added to the history`);
}

function extend(list, ids) {
  store.set({ [list]: [...new Set([...store.state[list], ...ids])] });
}

/** What another state means for the parts of the page. */
function changed(state, before) {
  render(state);
  sheet.render(state);
  const { item: _, ...question } = state;
  const { item: __, ...asked } = before;
  if (JSON.stringify(question) !== JSON.stringify(asked)) results.refresh();
}

function render(state) {
  for (const radio of document.querySelectorAll("#modes input")) radio.checked = radio.value === state.mode;
  at("by-history").hidden = state.mode !== "history";
  at("by-user").hidden = state.mode !== "user";
  setValue(at("user"), state.user);
  setValue(at("k"), String(state.k));
  at("seen").value = state.seen;
  setValue(at("where"), state.where);
  at("diversity").value = state.diversity;
  at("diversity-value").textContent = state.diversity || "off";
  renderHistory(state);
  for (const list of ["allow", "deny"]) renderChips(list, state[list]);
  const active = nActive(state);
  at("filter-count").textContent = active ? `${active} set` : "";
  showCurl(api.base, state, catalogue.body(state), api.key !== null);
  at("forget").hidden = api.key === null;
}

/** How many filters are not as at first. */
function nActive({ allow, deny, seen, k, where, diversity }) {
  return allow.length + deny.length + [seen, k !== 10, where, diversity].filter(Boolean).length;
}

/** Say below the expression what is wrong with it; null = nothing. */
function showMisfit(message) {
  at("where-error").hidden = message === null;
  at("where-hint").hidden = message !== null; // the message has the columns, too
  at("where-error").textContent = message ?? "";
  at("where").setAttribute("aria-invalid", String(message !== null));
  if (message !== null) at("filters").open = true;
}

/** Titles have come. */
function renderNames() {
  render(store.state);
  results.render();
  sheet.showTitle();
}

/** Leave a field alone while somebody types into it. */
function setValue(field, value) {
  if (document.activeElement !== field) field.value = value;
}

function renderHistory({ history }) {
  const newestFirst = history.map((id, place) => ({ id, place })).reverse();
  at("history-empty").hidden = history.length > 0;
  at("history-count").textContent = history.length ? count(history.length) : "";
  at("clear").hidden = !history.length;
  const unknown = new Set(results.answer?.unknown_items ?? []);
  const reads = catalogue.facts?.max_seq_len ?? Infinity;
  const seen = new Map();
  let nKnown = 0;
  for (const entry of newestFirst) {
    entry.nth = seen.get(entry.id) ?? 0; // an item may be there twice
    seen.set(entry.id, entry.nth + 1);
    entry.note = unknown.has(entry.id) ? "not known" : nKnown++ >= reads ? "too old to be read" : "";
  }
  sliding(at("history"), () =>
    showRows(at("history"), newestFirst, ({ id, nth }) => `${nth} ${id}`, historyRow,
      (row, entry) => fillHistoryRow(row, entry, history.length)));
}

function historyRow({ id }) {
  const place = (event) => Number(event.currentTarget.closest("li").dataset.place);
  return h("li", { class: "row" },
    h("span", { class: "rank" }),
    h("div", { class: "what naming" },
      h("button", { type: "button", class: "name", onclick: () => openItem(id) }),
      h("span", { class: "id" })),
    h("div", { class: "acts" },
      iconButton("up", "", (event) => move(place(event), 1)),
      iconButton("down", "", (event) => move(place(event), -1)),
      iconButton("close", "", (event) => remove(place(event)))));
}

function fillHistoryRow(row, { id, place, note }, n) {
  const name = catalogue.name(id);
  row.dataset.place = place;
  row.classList.toggle("off", note !== "");
  row.querySelector(".rank").textContent = place + 1;
  row.querySelector(".name").textContent = name;
  row.querySelector(".id").classList.toggle("note", note !== "");
  row.querySelector(".id").textContent = note || (catalogue.hasTitle(id) ? id : "");
  const [up, down, close] = row.querySelectorAll(".acts button");
  nameButton(up, `Make ${name} newer`);
  nameButton(down, `Make ${name} older`);
  nameButton(close, `Remove ${name}`);
  up.setAttribute("aria-disabled", String(place === n - 1)); // not disabled: it keeps the focus when it gets there
  down.setAttribute("aria-disabled", String(place === 0));
}

/** Exchange an item of the history with its neighbour. */
function move(place, by) {
  const history = [...store.state.history];
  const to = place + by;
  if (to < 0 || to >= history.length) return;
  [history[place], history[to]] = [history[to], history[place]];
  store.set({ history });
  announce(`${catalogue.name(history[to])} is number ${to + 1} of ${history.length} now`);
}

function remove(place) {
  const history = [...store.state.history];
  const [id] = history.splice(place, 1);
  store.set({ history });
  announce(`${catalogue.name(id)} removed from the history`);
  if (!history.length) fields.search.input.focus();
}

function renderChips(list, ids) {
  showRows(at(`${list}-chips`), ids, (id) => id,
    (id) => h("li", {},
      h("button", { type: "button", class: "name", onclick: () => openItem(id) }),
      iconButton("close", "", () => removeChip(list, id))),
    (chip, id) => {
      const [name, close] = chip.children;
      name.textContent = catalogue.name(id);
      nameButton(close, `Take ${catalogue.name(id)} off the list`);
      chip.classList.toggle("off", results.answer?.unknown_items.includes(id) ?? false);
    });
}

function removeChip(list, id) {
  store.toggle(list, id);
  if (!store.state[list].length) fields[list].input.focus();
}

function showWait(seconds, message) {
  showNotice(seconds ? { message: `The server says: ${message}. Trying again in ${seconds} s.` } : null);
}

function showNotice(problem) {
  const reload = catalogue.facts?.reload_error ?? catalogue.facts?.challenger?.reload_error;
  const text = problem?.message ?? (reload ? `The newest model was not taken, and the one before it answers: ${reload}` : "");
  at("notice").hidden = !text;
  if (at("notice").textContent !== text) at("notice").textContent = text;
}

function takeModel(facts, isOther) {
  showModel(facts);
  online.show(facts.accepts_feedback === true);
  at("k").max = facts.limits.max_k;
  const columns = Object.entries(facts.columns).map(([name, kind]) => `${name} (${kind})`);
  at("where-hint").textContent = `By ${columns.slice(0, SHOWN_COLUMNS).join(", ")}${columns.length > SHOWN_COLUMNS ? ", ..." : ""}; for example count > 100.`;
  at("seen").options[0].textContent = facts.hides_seen ? "as trained: left out" : "as trained: included";
  document.querySelector("#modes input[value=user]").disabled = !facts.has_histories;
  at("modes").title = facts.has_histories ? "" : "This model was saved without the histories of its users.";
  if (isOther) {
    announce("The server has another model now");
    results.refresh();
  }
  renderNames();
  showNotice(null);
}

function askKey(reason) {
  const dialog = at("key-dialog");
  at("key-reason").textContent = `The server says: ${reason}.`;
  at("key").value = "";
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? at("key").value.trim() : null), { once: true });
    dialog.showModal();
    at("key").focus();
  });
}

/** Call it once nothing has happened for a while. */
function afterTyping(listener) {
  let timer;
  return (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => listener(event), TYPING_MS);
  };
}

function listen() {
  arrowsMove(at("history"));
  at("modes").addEventListener("change", (event) => {
    store.set({ mode: event.target.value });
    if (event.target.value === "user") at("user").focus();
  });
  at("by-user").addEventListener("submit", (event) => {
    event.preventDefault();
    store.set({ user: at("user").value.trim() });
  });
  at("clear").addEventListener("click", () => {
    store.set({ history: [] });
    announce("The history is empty");
    fields.search.input.focus();
  });
  at("k").addEventListener("input", afterTyping(() => {
    const k = Number(at("k").value);
    if (Number.isInteger(k) && k > 0) store.set({ k }, true);
  }));
  at("k").addEventListener("blur", () => setTimeout(() => setValue(at("k"), String(store.state.k)), TYPING_MS));
  at("seen").addEventListener("change", () => store.set({ seen: at("seen").value }));
  at("where").addEventListener("change", () => store.set({ where: at("where").value.trim() }));
  at("diversity").addEventListener("input", () => store.set({ diversity: Number(at("diversity").value) }, true));
  at("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment holds the state
    at("results-title").focus();
  });
  at("forget").addEventListener("click", () => {
    api.key = null;
    location.reload();
  });
  at("key-cancel").addEventListener("click", () => at("key-dialog").close());
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, dialog");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (store.state.mode !== "history") store.set({ mode: "history" });
    fields.search.input.focus();
  });
  at("share").hidden = !navigator.clipboard;
  at("share").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href).catch(() => {});
    at("share").textContent = "Link copied";
    setTimeout(() => (at("share").textContent = "Copy link"), 2000);
  });
}

async function start() {
  listen();
  at("filters").open = nActive(store.state) > 0;
  at("retry").addEventListener("click", connect);
  render(store.state);
  await connect();
  sheet.render(store.state);
}

/** Get what is missing: the facts of the model, and the recommendations. */
async function connect() {
  try {
    if (!catalogue.facts) await catalogue.load();
  } catch (error) {
    at("summary").textContent = "not connected";
    results.fail(error);
    return;
  }
  await results.refresh();
}

start();
