// A timer that keeps time while the page is hidden: browsers let a hidden page's own timers run once
// a second, or less, and a worker's as ever.

export class Timer {
  #worker = new Worker(new URL("alarm.js", import.meta.url));
  #done = null;

  constructor() {
    this.#worker.onmessage = () => {
      const done = this.#done;
      this.#done = null;
      done?.(); // null: cancelled while the message was on its way
    };
  }

  /** Call done() in so many milliseconds, in place of what was to be called before. */
  after(wait, done) {
    this.#done = done;
    this.#worker.postMessage(wait);
  }

  cancel() {
    this.#done = null;
    this.#worker.postMessage(null);
  }
}
