// One item, in a sheet beside the page: why it is recommended, what is like it, and what to do with it.

import { announce, arrowsMove, at, bar, figure, h, icon, iconButton } from "./dom.js";

const SIMILAR = 10;
const REASONS = 12;

export class ItemSheet {
  constructor({ catalogue, store }) {
    this.catalogue = catalogue;
    this.store = store;
    this.sheet = at("sheet");
    this.id = "";
    this.explained = ""; // the history that the reasons are of
    at("sheet-close").append(icon("close"));
    at("sheet-close").addEventListener("click", () => this.sheet.close());
    this.sheet.addEventListener("click", (event) => {
      if (event.target === this.sheet) this.sheet.close(); // beside it
    });
    this.sheet.addEventListener("close", () => this.#closed());
  }

  /** Show an item; the address then has it, too. */
  open(id) {
    this.store.set({ item: id }, this.sheet.open);
  }

  /** Show what the state says. */
  render(state) {
    if (!state.item) {
      if (this.sheet.open) this.sheet.close();
      return;
    }
    if (!this.sheet.open) {
      this.opener = document.activeElement;
      this.sheet.showModal();
    }
    if (this.id !== state.item) this.#begin(state.item);
    this.#showActions(state);
    this.#showWhy(state);
  }

  #closed() {
    this.asked?.abort();
    this.explaining?.abort();
    this.id = "";
    this.store.set({ item: "" }, true);
    if (this.opener?.isConnected) this.opener.focus();
    else at("results-title").focus();
  }

  /** Lay the sheet out for another item, and ask what is like it. */
  #begin(id) {
    const { store } = this;
    this.id = id;
    this.explained = "";
    this.asked?.abort();
    this.asked = new AbortController();
    this.showTitle();
    const button = (onclick) => h("button", { type: "button", onclick });
    this.add = button(() => this.#addToHistory(id));
    this.only = button(() => store.toggle("allow", id));
    this.never = button(() => store.toggle("deny", id));
    this.add.classList.add("primary");
    this.about = h("section", { class: "sheet-part" });
    this.why = h("section", { class: "sheet-part" });
    const like = h("section", { class: "sheet-part" });
    at("sheet-body").replaceChildren(h("div", { class: "buttons" }, this.add, this.only, this.never), this.about, this.why, like);
    this.sheet.scrollTop = 0;
    at("sheet-title").focus();
    const { signal } = this.asked;
    this.#fill(like, signal, () => this.#similar(id, signal));
  }

  /** Its title, which may come later than the sheet. */
  showTitle() {
    const { catalogue, id } = this;
    const more = catalogue.hasTitle(id) ? [" ", h("span", { class: "id" }, id)] : [];
    at("sheet-title").replaceChildren(catalogue.name(id), ...more);
  }

  #addToHistory(id) {
    this.store.add(id);
    announce(`${this.catalogue.name(id)} added to the history`);
  }

  #showActions({ history, allow, deny }) {
    const { id, add, only, never } = this;
    add.textContent = history.includes(id) ? "Add to history again" : "Add to history";
    only.textContent = "Only recommend this";
    only.setAttribute("aria-pressed", String(allow.includes(id)));
    never.textContent = "Never recommend";
    never.setAttribute("aria-pressed", String(deny.includes(id)));
  }

  #showWhy({ mode, history }) {
    const question = mode === "history" && history.length ? JSON.stringify(history) : "";
    if (question === this.explained) return;
    this.explained = question;
    this.explaining?.abort();
    this.explaining = new AbortController();
    const { signal } = this.explaining;
    if (question) this.#fill(this.why, signal, () => this.#reasons(history, this.id, signal));
    else this.why.replaceChildren();
  }

  async #fill(place, signal, make) {
    try {
      const children = await make();
      if (signal.aborted) return;
      place.replaceChildren(...children.filter(Boolean));
      this.showTitle();
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(h("p", { class: "hint" }, error.message));
    }
  }

  async #reasons(history, id, signal) {
    const { score, reasons } = await this.catalogue.explain(history, id, signal);
    const most = Math.max(...reasons.map((reason) => Math.abs(reason.contribution))) || 1;
    const rest = reasons.length - REASONS;
    const says = reasons.length > 1
      ? "Without one of the items it would be lower by so much, or higher where the bar goes left:"
      : "There is but one item it can come from:";
    return [
      h("h3", {}, "Why"),
      h("p", { class: "hint" }, `Its score after this history is ${figure(score)}. ${says}`),
      h("ul", { class: "rows reasons" }, reasons.slice(0, REASONS).map((reason) => this.#reason(reason, most))),
      rest > 0 && h("p", { class: "hint" }, `and ${rest} more that say less for it`),
    ];
  }

  #reason({ item_id: id, contribution }, most) {
    const size = Math.abs(contribution) / most / 2;
    const [from, to] = contribution < 0 ? [0.5 - size, 0.5] : [0.5, 0.5 + size];
    return h("li", { class: "row" },
      h("div", { class: "what" }, this.#name(id)),
      h("div", { class: "score" },
        h("span", { class: "middle" }, bar(from, to, contribution < 0 ? "against" : "")),
        h("span", { class: "number" }, figure(contribution))));
  }

  async #similar(id, signal) {
    const { items, item } = await this.catalogue.similar(id, SIMILAR, signal);
    if (!signal.aborted && item?.attributes) this.about.replaceChildren(...known(item.attributes));
    const list = h("ol", { class: "rows similar" }, items.map(({ item_id: other, score }) =>
      h("li", { class: "row" },
        h("div", { class: "what" }, this.#name(other)),
        h("div", { class: "score" }, bar(0, Math.max(score, 0)), h("span", { class: "number" }, figure(score))),
        h("div", { class: "acts" },
          iconButton("add", `Add ${this.catalogue.name(other)} to the history`, () => this.#addToHistory(other))))));
    arrowsMove(list);
    return [
      h("h3", {}, "Similar items"),
      h("p", { class: "hint" }, "By the cosine of what the model has learnt of each: 1 is the same."),
      list,
    ];
  }

  #name(id) {
    return h("button", { type: "button", class: "name", onclick: () => this.open(id) }, this.catalogue.name(id));
  }
}

/** What is known of an item, a line for each attribute. */
function known(attributes) {
  const rows = Object.entries(attributes).flatMap(([name, value]) => [
    h("dt", {}, name),
    h("dd", {}, [value].flat().join(", ")),
  ]);
  return [h("h3", {}, "About it"), h("dl", {}, rows)];
}
