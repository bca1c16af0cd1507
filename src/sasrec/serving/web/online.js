// What came of the lists that were shown: hit rate by kind of feedback, and coverage, of each model version.

import { at, count, h } from "./dom.js";

const REFRESH_MS = 10_000;

/** The panel, on servers that measure; it asks only while it is open. */
export class Online {
  constructor(api) {
    this.api = api;
    this.timer = null;
    at("online-box").addEventListener("toggle", () => this.#ask());
  }

  /** Whether this server measures. */
  show(measures) {
    at("online-box").hidden = !measures;
  }

  async #ask() {
    clearTimeout(this.timer);
    if (!at("online-box").open) return;
    try {
      const { data } = await this.api.get("v1/online");
      at("online").replaceChildren(...table(data.versions));
    } catch (error) {
      at("online").replaceChildren(h("p", { class: "bad" }, error.message));
    }
    this.timer = setTimeout(() => this.#ask(), REFRESH_MS);
  }
}

function table(versions) {
  if (!versions.length) return [h("p", { class: "hint" }, "No list has been kept yet. Those of this page are not: nobody else sees them.")];
  const kinds = [...new Set(versions.flatMap((version) => Object.keys(version.kinds)))].sort();
  const names = kinds.length > 1 ? ["any", ...kinds] : kinds;
  const head = ["Version", "Arm", "Lists", "Catalogue shown", ...(names.length ? names : ["Hits"])];
  return [
    h("p", { class: "hint" }, "Shares of the lists that had feedback, by kind, and of the catalogue that was shown. Whether one model is better says sasrec online-report."),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Hit rates by model version" },
      h("table", {},
        h("thead", {}, h("tr", {}, head.map((name, place) => h("th", { scope: "col", class: place > 1 && "figure" }, name)))),
        h("tbody", {}, versions.map((version) => row(version, names))))),
  ];
}

function row(version, names) {
  const figures = names.length ? names.map((name) => (name === "any" ? version.any : version.kinds[name])) : [version.any];
  return h("tr", {},
    h("th", { scope: "row" }, version.model_version),
    h("td", {}, version.answers_now ? `${version.arm}, now` : version.arm),
    h("td", { class: "figure" }, count(version.exposures)),
    h("td", { class: "figure" }, percent(version.coverage)),
    figures.map((kind) => h("td", { class: "figure", title: kind && `${count(kind.hits)} lists, ${count(kind.feedback)} pieces of feedback` },
      kind?.hit_rate == null ? "" : percent(kind.hit_rate))));
}

function percent(share) {
  return `${(100 * share).toFixed(share >= 0.1 ? 1 : 2)} %`;
}
