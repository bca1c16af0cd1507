// What the model knows: titles, facts, and its answers, kept as long as the same model gives them.

const KEPT_ANSWERS = 500;

export class Catalogue {
  /**
   * @param api the HTTP API
   * @param onModel called when the facts of a model have come, or of another one
   * @param onTitles called when titles have become known that were not
   */
  constructor(api, onModel, onTitles) {
    this.api = api;
    this.onModel = onModel;
    this.onTitles = onTitles;
    this.facts = null;
    this.version = null;
    this.titles = new Map(); // id -> title, or null: it has none
    this.answers = new Map();
  }

  /** Get the facts of the model. */
  async load() {
    const { data } = await this.api.get("v1/model");
    const isOther = this.facts !== null && this.facts.model_version !== data.model_version;
    this.#take(data.model_version);
    this.facts = data;
    this.onModel(data, isOther);
  }

  #take(version) {
    if (version === this.version) return false;
    this.version = version;
    this.titles.clear();
    this.answers.clear();
    return true;
  }

  /** What comes back, with the ids as text and the titles learnt; another model than before is noticed. */
  #learn(answer) {
    const known = this.version !== null;
    if (this.#take(answer.model_version) && known) this.load().catch(() => {}); // the next call says what is wrong
    for (const item of answer.items ?? []) this.#learnItem(item);
    for (const reason of answer.reasons ?? []) this.#learnItem(reason);
    if (answer.item) this.#learnItem(answer.item);
    answer.unknown_items = (answer.unknown_items ?? []).map(String);
    return answer;
  }

  #learnItem(item) {
    item.item_id = String(item.item_id);
    this.titles.set(item.item_id, item.title ?? null);
  }

  /** What to call an item: its title, or its id. */
  name(id) {
    return this.titles.get(id) ?? id;
  }

  hasTitle(id) {
    return this.titles.get(id) != null;
  }

  /** Items whose title or id has these words; without any, the most popular. */
  async search(text, k, signal) {
    const { data } = await this.api.get("v1/items", { query: text, k: this.#atMost(k) }, signal);
    return this.#learn(data).items;
  }

  /** The body of POST v1/recommend for a state. */
  body(state) {
    return {
      history: state.history,
      k: state.k,
      ...(state.allow.length && { allow: state.allow }),
      ...(state.deny.length && { deny: state.deny }),
      ...(state.seen && { keep_seen: state.seen === "show" }),
      ...(state.where && { where: state.where }),
      ...(state.diversity && { diversity: state.diversity }),
    };
  }

  /** What a server that measures is told of the lists of this page: they are looked at, not shown to anybody. */
  get #unseen() {
    return this.facts?.accepts_feedback ? { shown: false } : {};
  }

  /** What to recommend in a state: {items, unknown_items, fallback, ms, serverMs}. */
  async recommend(state, signal) {
    const { history, ...filters } = this.body(state);
    const { data, ms, serverMs } =
      state.mode === "user"
        ? await this.api.get(`v1/users/${encodeURIComponent(state.user)}/recommendations`, { ...filters, ...this.#unseen }, signal)
        : await this.api.post("v1/recommend", { history, ...filters, ...this.#unseen }, signal);
    return { ...this.#learn(data), ms, serverMs };
  }

  /** The items nearest to one. */
  similar(id, k, signal) {
    return this.#kept(`similar ${k} ${id}`, () =>
      this.api.get(`v1/items/${encodeURIComponent(id)}/similar`, { k: this.#atMost(k) }, signal),
    );
  }

  /** Which items of a history speak for an item. */
  explain(history, id, signal) {
    return this.#kept(`explain ${JSON.stringify([history, id])}`, () =>
      this.api.post("v1/explain", { history, item_id: id }, signal),
    );
  }

  async #kept(question, ask) {
    const before = this.answers.get(question);
    if (before) return before;
    const answer = this.#learn((await ask()).data);
    if (this.answers.size >= KEPT_ANSWERS) this.answers.delete(this.answers.keys().next().value);
    this.answers.set(question, answer);
    return answer;
  }

  /**
   * Learn the titles of ids, as those of a shared address. The API lists what is allowed, so each of the ids is asked
   * for as the whole of its own allow list; one call, as a list of requests, where one list would be too long.
   */
  async learnTitles(ids) {
    if (!this.facts?.has_titles) return;
    const missing = [...new Set(ids)].filter((id) => id && !this.titles.has(id));
    if (!missing.length) return;
    const { max_k, max_history, max_filter, max_requests } = this.facts.limits;
    const size = Math.min(max_k, max_history, max_filter);
    const requests = [];
    for (let i = 0; i < missing.length && requests.length < max_requests; i += size) {
      const some = missing.slice(i, i + size);
      requests.push({ history: some, allow: some, keep_seen: true, k: some.length, ...this.#unseen });
    }
    const { data } = await this.api.post("v1/recommend", { requests });
    for (const answer of data.results) this.#learn(answer);
    for (const id of missing) if (!this.titles.has(id)) this.titles.set(id, null);
    this.onTitles();
  }

  #atMost(k) {
    return Math.min(k, this.facts?.limits.max_k ?? k);
  }
}
