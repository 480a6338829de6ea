// Whether the server lets the page in: the token, and a field for it where there is none or another
// one is needed. Asks the server; knows nothing of sessions.

const element = (id) => document.getElementById(id);

export class Access {
  #token = new URLSearchParams(location.hash.slice(1)).get("token");
  #entered;

  /** entered() is called once somebody has given the right token. */
  constructor(entered) {
    this.#entered = entered;
    // neither the address bar nor the history keeps it; a cookie does, which no page can read
    if (this.#token) history.replaceState(null, "", location.pathname);
    addEventListener("hashchange", () => location.reload()); // another token was pasted
    element("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#enter();
    });
  }

  /** What messages to the server have of it. */
  get fields() {
    return this.#token ? { token: this.#token } : {};
  }

  /** The answer to a question, or null if there is none; throws if the server cannot be reached. */
  async ask(path, kind = "json") {
    const answer = await fetch(path, this.#options());
    if (answer.status === 401) this.#show();
    return answer.ok ? answer[kind]() : null;
  }

  /** Whether the server lets the page in: "open", "token" if it needs one, or "away". */
  async check() {
    try {
      const { status } = await fetch("api/status", this.#options());
      if (status === 401) this.#show();
      else element("token-form").hidden = true;
      return status === 401 ? "token" : "open";
    } catch {
      return "away";
    }
  }

  #options() {
    return this.#token ? { headers: { Authorization: `Bearer ${this.#token}` } } : {};
  }

  #show() {
    const form = element("token-form");
    if (!form.hidden) return;
    element("token-note").textContent = this.#token
      ? "The token of this page is not, or no longer, the server's."
      : "This server asks for a token; it was printed with its address.";
    form.hidden = false;
    element("token").focus();
  }

  async #enter() {
    const given = element("token").value.trim();
    if (!given) return;
    const [button, before] = [element("token-send"), this.#token];
    button.disabled = true; // after wrong ones the server takes its time
    this.#token = given;
    // a header holds no other letters, and no token does
    const found = /^[!-~]+$/.test(given) ? await this.check() : "token";
    button.disabled = false;
    if (found === "open") {
      element("token").value = "";
      this.#entered();
      return;
    }
    this.#token = before;
    element("token-note").textContent = found === "away" ? "The server cannot be reached." : "That is not the server's token.";
    element("token").select();
  }
}
