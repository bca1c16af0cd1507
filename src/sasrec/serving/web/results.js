// The recommendations: a row each, with its score, how it moved, and the reason once it is in view.

import { ApiError } from "./api.js";
import {
  announce, arrowsMove, at, bar, count, figure, h, iconButton, milliseconds, nameButton, plural, setBar, showRows, sliding,
} from "./dom.js";

const LONGEST_EXPLAINED = 64; // of longer histories, reasons are computed in an item's sheet only
const EXPLAINED_AT_ONCE = 2;

export class Results {
  constructor({ catalogue, store, openItem, onAnswer, onMisfit }) {
    this.catalogue = catalogue;
    this.store = store;
    this.openItem = openItem;
    this.onAnswer = onAnswer;
    this.onMisfit = onMisfit; // told what is wrong with the expression, or null
    this.list = at("results");
    this.answer = null;
    this.ranks = null; // of the answer before, id -> rank
    this.state = null; // that the answer is for
    arrowsMove(this.list);
  }

  /** Ask again, and show what comes, unless another question overtakes it. */
  async refresh() {
    this.running?.abort();
    const { signal } = (this.running = new AbortController());
    const { state } = this.store;
    if (state.mode === "user" && !state.user) {
      this.#clear();
      this.#problem(null);
      return;
    }
    this.list.setAttribute("aria-busy", "true");
    try {
      const answer = await this.catalogue.recommend(state, signal);
      if (signal.aborted) return;
      this.#take(state, answer);
      await this.catalogue.learnTitles([...state.history, ...state.allow, ...state.deny, state.item]);
    } catch (error) {
      if (!signal.aborted) this.fail(error);
    } finally {
      if (!signal.aborted) this.list.removeAttribute("aria-busy");
    }
  }

  #clear() {
    this.answer = null;
    this.list.removeAttribute("aria-busy");
    this.list.replaceChildren();
    at("took").textContent = "";
    for (const id of ["fallback", "unknown", "results-empty"]) at(id).hidden = true;
    this.onAnswer();
  }

  #take(state, answer) {
    const before = this.answer;
    const isComparable = before && this.state.mode === state.mode && this.state.user === state.user;
    this.ranks = isComparable && before.fallback === answer.fallback
      ? new Map(before.items.map((item) => [item.item_id, item.rank]))
      : null;
    this.answer = answer;
    this.state = state;
    this.#problem(null);
    this.onMisfit(null);
    const server = answer.serverMs === null ? "" : `, server ${milliseconds(answer.serverMs)} ms`;
    at("took").textContent = `${milliseconds(answer.ms)} ms${server}`;
    at("results-empty").hidden = answer.items.length > 0;
    sliding(this.list, () => this.render());
    this.#explainVisible();
    const first = answer.items[0];
    const found = first ? `${plural(answer.items.length, "recommendation")}, first ${this.catalogue.name(first.item_id)}` : "No recommendation";
    announce(answer.fallback ? `${found}; these are the most popular items` : found);
    this.onAnswer();
  }

  /** Show an error in the API's words; what was there stays, dimmed, unless there is nothing to show. */
  fail(error) {
    const isOurs = !(error instanceof ApiError);
    if (error.status === 404) this.#clear();
    const isMisfit = error.status === 422 && error.message.startsWith("where");
    this.#problem(isOurs ? `the page failed: ${error.message}` : isMisfit ? "The expression under Filters does not fit; it says there why." : error.message);
    this.onMisfit(isMisfit ? error.message : null);
    if (isOurs) throw error;
  }

  #problem(message) {
    at("error").hidden = message === null;
    at("error-text").textContent = message ?? "";
    this.list.classList.toggle("stale", message !== null);
  }

  /** Show what is there; titles may have come since. */
  render() {
    if (!this.answer) return;
    const { items, fallback, unknown_items: unknown } = this.answer;
    this.#explainWhatItIs(fallback, unknown);
    const scores = items.map((item) => item.score);
    const low = Math.min(0, ...scores);
    const span = Math.max(0, ...scores) - low || 1;
    const share = (score) => (score - low) / span;
    showRows(
      this.list,
      items,
      (item) => item.item_id,
      (item) => this.#row(item),
      (row, item) => this.#fill(row, item, share(item.score)),
    );
  }

  #explainWhatItIs(fallback, unknown) {
    const { history, mode } = this.state;
    const nothing = mode === "history" && !history.length;
    at("fallback").hidden = !fallback;
    at("fallback").classList.toggle("calm", nothing);
    at("fallback").textContent = nothing
      ? "Without a history these are the most popular items, with their events in the log. Add items to see what the model makes of them."
      : "The model knows none of these items, so these are the most popular ones instead, with their events in the log.";
    at("unknown").hidden = !unknown.length;
    const shown = unknown.slice(0, 5).map((id) => `\u201c${id}\u201d`).join(", ");
    const more = unknown.length > 5 ? ` and ${count(unknown.length - 5)} more` : "";
    at("unknown").textContent = `Not in the log this model was trained on, and left out: ${shown}${more}.`;
  }

  #row({ item_id: id }) {
    return h(
      "li",
      { class: "row" },
      h("span", { class: "rank" }),
      h(
        "div",
        { class: "what" },
        h("div", { class: "naming" },
          h("button", { type: "button", class: "name", onclick: () => this.openItem(id) }),
          h("span", { class: "id" }),
          h("span", { class: "moved" })),
        h("p", { class: "why" }),
      ),
      h("div", { class: "score" }, bar(0, 0), h("span", { class: "number" })),
      h("div", { class: "acts" },
        iconButton("add", "", () => this.store.add(id)),
        iconButton("hide", "", () => this.store.toggle("deny", id))),
    );
  }

  #fill(row, { item_id: id, score, rank }, share) {
    const name = this.catalogue.name(id);
    row.querySelector(".rank").textContent = rank;
    row.querySelector(".name").textContent = name;
    row.querySelector(".id").textContent = this.catalogue.hasTitle(id) ? id : "";
    const { fallback } = this.answer;
    row.querySelector(".number").textContent = fallback ? plural(score, "event") : figure(score);
    setBar(row.querySelector(".bar"), 0, Math.max(share, 0.01));
    this.#fillMoved(row.querySelector(".moved"), id, rank);
    const [add, hide] = row.querySelectorAll(".acts button");
    nameButton(add, `Add ${name} to the history`);
    nameButton(hide, `Never recommend ${name}`);
    row.querySelector(".why").hidden = fallback || this.state.mode === "user";
  }

  #fillMoved(place, id, rank) {
    const before = this.ranks?.get(id);
    const by = before === undefined ? 0 : before - rank;
    const isNew = this.ranks && before === undefined;
    const arrow = by > 0 ? "\u2191" : "\u2193";
    place.className = `moved ${isNew || by > 0 ? "up" : ""}`;
    if (isNew) place.replaceChildren("new");
    else if (!by) place.replaceChildren();
    else {
      const words = h("span", { class: "sr" }, by > 0 ? "up " : "down ");
      place.replaceChildren(h("span", { "aria-hidden": "true" }, arrow), words, String(Math.abs(by)));
    }
  }

  /** Ask for the reasons of the rows that are looked at, a few at once. */
  #explainVisible() {
    this.watch?.disconnect();
    const { signal } = this.running;
    for (const place of this.list.querySelectorAll(".why")) place.replaceChildren();
    const { history, mode } = this.state;
    if (mode === "user" || this.answer.fallback || history.length > LONGEST_EXPLAINED) return;
    const wanted = [];
    let busy = 0;
    const next = async () => {
      if (signal.aborted || busy >= EXPLAINED_AT_ONCE || !wanted.length) return;
      busy += 1;
      const row = wanted.shift();
      const place = row.querySelector(".why");
      try {
        place.replaceChildren(...this.reason(await this.catalogue.explain(history, row.dataset.key, signal)));
        place.title = place.textContent; // it may be cut
      } catch (error) {
        if (!signal.aborted) place.textContent = `no reason: ${error.message}`;
      }
      busy -= 1;
      next();
    };
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        this.watch.unobserve(entry.target);
        wanted.push(entry.target);
      }
      for (let i = 0; i < EXPLAINED_AT_ONCE; i++) next();
    });
    for (const row of this.list.children) this.watch.observe(row);
  }

  /** An explanation in one line. */
  reason({ reasons }) {
    const helping = [...new Set(reasons.filter((r) => r.contribution > 0).map((r) => r.item_id))].slice(0, 2);
    const only = reasons.length === 1 ? [reasons[0].item_id] : helping;
    if (!only.length) return ["not because of any single item"];
    return ["because of ", ...only.flatMap((id, i) => [i ? " and " : "", h("b", {}, this.catalogue.name(id))])];
  }
}
