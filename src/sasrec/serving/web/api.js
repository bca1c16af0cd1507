// The HTTP API. In: a path and what it takes; out: its answer and how long that took, or an ApiError with the API's own
// sentence. 401 asks for a key and goes on, 503 waits as long as the server says and goes on.

const RETRIES = 5;
const LONGEST_WAIT_S = 10;
const KEY = "sasrec-api-key";
export const KEPT_CALLS = 50;

/** The API's sentence; status 0 = there was no answer at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** JSON in which integers beyond 2^53 stay exact, as their text: the API takes an id's text as the id. */
export function parseJson(text) {
  return JSON.parse(text, (name, value, context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? "")
      ? context.source
      : value,
  );
}

export class Api {
  /**
   * @param askKey (sentence) => Promise of a key, or null when nobody wants to give one
   * @param onCall called after each call with {method, path, histories, status, ms, serverMs}
   * @param onWait called with the seconds until a refused call is sent again, and the sentence; with 0 when it is
   */
  constructor(askKey, onCall, onWait) {
    this.askKey = askKey;
    this.onCall = onCall;
    this.onWait = onWait;
    this.base = new URL("./", location.href); // works below a path of a proxy, too
    this.asking = null;
  }

  get key() {
    return sessionStorage.getItem(KEY);
  }

  set key(value) {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  }

  /** GET a path, with parameters: a value, several values, or null for none. */
  get(path, parameters = {}, signal = undefined) {
    const url = new URL(path, this.base);
    for (const [name, value] of Object.entries(parameters)) {
      for (const one of Array.isArray(value) ? value : value == null ? [] : [value]) url.searchParams.append(name, one);
    }
    return this.#send({ method: "GET", url, signal, histories: 0 });
  }

  /** POST a body. */
  post(path, body, signal = undefined) {
    const histories = body.requests ? body.requests.length : 1;
    return this.#send({ method: "POST", url: new URL(path, this.base), body: JSON.stringify(body), signal, histories });
  }

  async #send(call) {
    for (let tries = 0; ; ) {
      call.signal?.throwIfAborted();
      const key = this.key;
      const { status, text, retryAfter, ms, serverMs } = await this.#once(call, key);
      if (status === 200) return { data: parseJson(text), ms, serverMs };
      const problem = new ApiError(status, sentence(status, text));
      if (status === 401) {
        if (key === this.key && !(await this.#newKey(problem.message))) throw problem;
      } else if (status === 503 && tries < RETRIES) {
        tries += 1;
        const seconds = Math.min(retryAfter * tries, LONGEST_WAIT_S);
        this.onWait(seconds, problem.message);
        await pause(1000 * seconds, call.signal).finally(() => this.onWait(0, ""));
      } else {
        throw problem;
      }
    }
  }

  async #once({ method, url, body, signal, histories }, key) {
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { "X-API-Key": utf8(key) }) };
    const began = performance.now();
    let response, text;
    try {
      response = await fetch(url, { method, headers, body, signal, cache: "no-store" });
      text = await response.text();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, "the server does not answer; see whether it runs and can be reached, and try again");
    }
    const ms = performance.now() - began;
    const named = /\bdur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
    const serverMs = named ? Number(named[1]) : null;
    const path = decodeURIComponent(url.pathname.slice(this.base.pathname.length - 1));
    this.onCall({ method, path, histories, status: response.status, ms, serverMs });
    const retryAfter = Number(response.headers.get("Retry-After")) || 1;
    return { status: response.status, text, retryAfter, ms, serverMs };
  }

  /** Ask for a key once for all calls that need one; false = none was given. */
  async #newKey(reason) {
    this.asking ??= this.askKey(reason).finally(() => (this.asking = null));
    const key = await this.asking;
    if (key === null) return false;
    this.key = key;
    return true;
  }
}

/** A text whose characters are the bytes of another, as headers are sent. */
function utf8(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

function sentence(status, text) {
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string" && error) return error;
  } catch {
    // not the API's: a proxy's page
  }
  return `the server answered ${status} without saying why; a proxy before it may have its own log`;
}

/** Wait, unless the call is not wanted any more. */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
