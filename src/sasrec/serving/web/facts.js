// What is known about the model, and about the calls of this page.

import { KEPT_CALLS } from "./api.js";
import { at, count, h, milliseconds, plural } from "./dom.js";

/** The line at the top, and the panel below. */
export function showModel(facts) {
  const { data, n_items: items, n_users: users, n_events: events, model_version: version } = facts;
  at("summary").replaceChildren(
    h("b", {}, data || "model"),
    ` ${[plural(items, "item"), users && plural(users, "user"), plural(events, "event")].filter(Boolean).join(", ")}`,
    h("span", { class: "id", title: "model version" }, version),
  );
  document.title = data ? `${data}: sasrec` : "sasrec";
  at("model").replaceChildren(
    h("dl", {}, rows(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
    results(facts.results),
  );
}

function rows(facts) {
  const { limits } = facts;
  return [
    ["Data", facts.data],
    ["Items", count(facts.n_items)],
    ["Users", facts.has_histories ? count(facts.n_users) : "saved without histories"],
    ["Events", count(facts.n_events)],
    ["Titles", facts.has_titles ? "yes" : "no, ids only"],
    ["Known of items", facts.attributes.join(", ")],
    ["Model version", facts.model_version],
    ["Challenger", facts.challenger && `${facts.challenger.model_version}, for ${+(100 * facts.challenger.share).toPrecision(3)} % of the users`],
    ["In service since", new Date(1000 * facts.loaded_at).toLocaleString()],
    ["Block", `${facts.block}, ${plural(facts.n_blocks, "block")}, ${plural(facts.n_heads, "head")}, ${facts.embedding_dim} dimensions`],
    ["Reads", `the newest ${plural(facts.max_seq_len, "item")}`],
    ["Loss", facts.loss],
    ["Preset", facts.preset],
    ["Items already met", facts.hides_seen ? "left out, unless asked for" : "included, unless asked not to"],
    ["Engine", [facts.engine, facts.isa].filter(Boolean).join(", ")],
    ["Trained with", facts.trained_with],
    ["Served by", facts.package_version],
    ["Limits", `k ${count(limits.max_k)}, history ${count(limits.max_history)}, filters ${count(limits.max_filter)}, histories in a call ${count(limits.max_requests)}`],
  ].filter(([, value]) => value != null && value !== "");
}

/** The metrics of the run, each beside the baselines and with its protocol. */
function results(all) {
  const tables = all.map((result) => {
    const scorers = [["model", result.metrics], ...Object.entries(result.baselines)];
    const names = Object.keys(result.metrics).filter((name) => /^(ndcg|hr|mrr)@/.test(name)).slice(0, 6);
    const caption = `On ${result.split}, ${result.protocol}: ${result.candidates}; without ${result.excluded}; ties ${result.ties}; ${plural(result.n_users, "user")}`;
    return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Metrics on ${result.split}, ${result.protocol}` },
      h("table", {},
        h("caption", {}, caption),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Scorer"), names.map((name) => h("th", { scope: "col", class: "figure" }, name)))),
        h("tbody", {}, scorers.map(([scorer, metrics]) =>
          h("tr", {}, h("th", { scope: "row" }, scorer), names.map((name) => h("td", { class: "figure" }, number(metrics[name]))))))));
  });
  return h("div", {}, tables.length ? tables : h("p", { class: "hint" }, "This run has no metrics of its own."));
}

function number(metric) {
  return metric ? metric.value.toFixed(4).replace(/^0/, "") : "";
}

/** The calls of this page, the newest first. */
export class Calls {
  constructor() {
    this.times = [];
    this.body = at("calls").tBodies[0];
  }

  /** A call more. */
  add({ method, path, histories, status, ms, serverMs }) {
    this.body.prepend(
      h("tr", { class: status === 200 ? "" : "failed" },
        h("td", { class: "path" }, `${method} ${path}`),
        h("td", { class: "figure" }, String(status)),
        h("td", { class: "figure" }, histories ? String(histories) : ""),
        h("td", { class: "figure" }, milliseconds(ms)),
        h("td", { class: "figure" }, serverMs === null ? "" : milliseconds(serverMs))),
    );
    if (this.body.rows.length > KEPT_CALLS) this.body.deleteRow(KEPT_CALLS);
    this.times = [...this.times, ms].slice(-KEPT_CALLS);
    const sorted = [...this.times].sort((a, b) => a - b);
    at("calls-summary").textContent = `last ${milliseconds(ms)} ms, median ${milliseconds(sorted[sorted.length >> 1])} ms`;
  }
}

/** A recommendation as a command; the key is named, not shown. */
export function showCurl(base, state, body, hasKey) {
  const key = hasKey ? ` \\\n  -H "X-API-Key: $SASREC_API_KEY"` : "";
  const { history, ...filters } = body;
  if (state.mode === "history") {
    const json = JSON.stringify({ history, ...filters });
    at("curl").textContent = `curl ${quoted(new URL("v1/recommend", base).href)}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(json)}`;
    return;
  }
  const url = new URL(`v1/users/${encodeURIComponent(state.user)}/recommendations`, base);
  for (const [name, value] of Object.entries(filters)) for (const one of [value].flat()) url.searchParams.append(name, one);
  at("curl").textContent = `curl ${quoted(url.href)}${key}`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
