// A field that finds items: an ARIA combobox with a list popup and manual selection. Focus stays in the field, arrows go
// through the list, Enter takes, Escape closes and then empties.

import { announce, count, h, plural } from "./dom.js";

const DEBOUNCE_MS = 120;
const SHOWN = 12;

export class Combobox {
  /**
   * @param root an element with an id, to be filled
   * @param label of the field
   * @param search (text, k, signal) => Promise of items
   * @param take called with the ids chosen and their titles
   * @param onError called with an error of the search, null when it went well
   */
  constructor(root, { label, placeholder = "Title or id", hint = null, search, take, onError }) {
    this.search = search;
    this.take = take;
    this.onError = onError;
    this.options = [];
    this.active = -1;
    this.isFresh = false; // whether the list is of what is written
    this.takesFirst = false; // whether Enter has come before the list
    const { id } = root;
    this.input = h("input", {
      id: `${id}-field`, type: "text", role: "combobox", "aria-expanded": "false", "aria-controls": `${id}-list`,
      "aria-autocomplete": "list", autocomplete: "off", autocapitalize: "off", spellcheck: "false",
      enterkeyhint: "done", placeholder,
    });
    this.list = h("ul", { id: `${id}-list`, role: "listbox", "aria-label": `${label}: items found`, hidden: true });
    root.append(
      h("label", { for: this.input.id }, label),
      h("div", { class: "field" }, this.input, hint && h("kbd", { "aria-hidden": "true" }, hint)),
      this.list,
    );
    this.input.addEventListener("input", () => {
      this.takesFirst = false;
      this.#later();
    });
    this.input.addEventListener("paste", (event) => this.#paste(event));
    this.input.addEventListener("click", () => this.#later(0));
    this.input.addEventListener("keydown", (event) => this.#onKey(event));
    this.input.addEventListener("blur", () => this.close());
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
    this.list.addEventListener("mousedown", (event) => event.preventDefault());
  }

  get isOpen() {
    return !this.list.hidden;
  }

  #later(ms = DEBOUNCE_MS) {
    this.isFresh = false;
    clearTimeout(this.timer);
    this.running?.abort();
    this.timer = setTimeout(() => this.#find(), ms);
  }

  async #find() {
    const text = this.input.value.trim();
    this.running?.abort();
    const { signal } = (this.running = new AbortController());
    try {
      const items = await this.search(text, SHOWN, signal);
      if (signal.aborted || document.activeElement !== this.input) return;
      this.#show(items, text);
      this.onError(null);
      if (this.takesFirst && this.options.length) this.#choose(0);
    } catch (error) {
      if (!signal.aborted) {
        this.close();
        this.onError(error);
      }
    }
  }

  #show(items, text) {
    this.options = items.map((item) => ({ ids: [item.item_id], title: item.title, count: item.count }));
    const typed = idsIn(text);
    const exact = typed.length === 1 ? items.findIndex((item) => item.item_id === typed[0]) : -1;
    if (exact >= 0) this.options.unshift(...this.options.splice(exact, 1));
    else if (typed.length) this.options.push({ ids: typed, isTyped: true });
    this.isFresh = true;
    this.list.replaceChildren(...this.options.map((option, i) => this.#row(option, i)));
    this.list.hidden = !this.options.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    this.#point(text && this.options.length ? 0 : -1);
    announce(items.length ? `${plural(items.length, "item")} found` : "No item found");
  }

  #row(option, i) {
    return h(
      "li",
      { role: "option", id: `${this.list.id}-${i}`, "aria-selected": "false", onclick: () => this.#choose(i) },
      option.isTyped
        ? h("span", { class: "option-name typed" }, typedText(option.ids))
        : [
            h("span", { class: "option-name" }, option.title ?? option.ids[0]),
            option.title != null && h("span", { class: "id" }, option.ids[0]),
            h("span", { class: "option-count" }, plural(option.count, "event")),
          ],
    );
  }

  #point(i) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = i;
    const row = this.list.children[i];
    row?.setAttribute("aria-selected", "true");
    row?.scrollIntoView({ block: "nearest" });
    if (row) this.input.setAttribute("aria-activedescendant", row.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  #choose(i) {
    const { ids, title } = this.options[i];
    this.input.value = "";
    this.close();
    this.take(ids, title);
  }

  /** Close the list, and forget what is being looked for. */
  close() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.takesFirst = false;
    this.options = [];
    this.list.hidden = true;
    this.list.replaceChildren();
    this.input.setAttribute("aria-expanded", "false");
    this.#point(-1);
  }

  #onKey(event) {
    if (event.isComposing || event.altKey || event.ctrlKey || event.metaKey) return;
    const n = this.options.length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const down = event.key === "ArrowDown";
      if (!this.isOpen) this.#later(0);
      else this.#point(this.active < 0 ? (down ? 0 : n - 1) : (this.active + (down ? 1 : n - 1)) % n);
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.#enter();
    } else if (event.key === "Escape" && (this.isOpen || this.input.value)) {
      event.preventDefault();
      if (!this.isOpen) this.input.value = "";
      this.close();
    }
  }

  /** Take what is pointed at; of a list that has not come yet, the first. */
  #enter() {
    if (this.isFresh && this.active >= 0) {
      this.#choose(this.active);
    } else if (this.input.value.trim()) {
      this.takesFirst = true;
      this.#later(0);
    }
  }

  /** Lines become a list with commas; a field would join them. */
  #paste(event) {
    const text = event.clipboardData.getData("text").trim();
    if (!text.includes("\n")) return;
    event.preventDefault();
    this.input.setRangeText(text.replace(/\s*\n\s*/g, ", "), this.input.selectionStart, this.input.selectionEnd, "end");
    this.#later();
  }
}

/** What is written as ids: several where there are commas, one otherwise. */
function idsIn(text) {
  return text.split(/\s*[,\n\t;]\s*/).filter(Boolean);
}

function typedText(ids) {
  return ids.length === 1 ? `Take \u201c${ids[0]}\u201d as an id` : `Take these ${count(ids.length)} ids: ${ids.join(", ")}`;
}
