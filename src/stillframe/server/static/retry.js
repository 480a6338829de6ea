// When to call again after a connection was lost: after pauses that grow, and not for ever.

import { Timer } from "./timer.js";

const PAUSES = [1, 2, 4, 8, 15, 30]; // seconds; the last one again and again
const MOST = 20;

export class Retry {
  #timer = new Timer();
  #tries = 0;

  /** Whether a connection is missed that there was. */
  get active() {
    return this.#tries > 0;
  }

  /** Call done() after the next pause; its seconds, or null if it has been tried often enough. */
  again(done) {
    if (this.#tries === MOST) return null;
    const pause = PAUSES[Math.min(this.#tries, PAUSES.length - 1)];
    this.#tries += 1;
    this.#timer.after(1000 * pause, done);
    return pause;
  }

  /** A connection is missed from now on; what waits is called off. */
  expect() {
    this.#timer.cancel();
    this.#tries = 1;
  }

  /** Begin again with the shortest pause; what waits is called off. */
  reset() {
    this.#timer.cancel();
    this.#tries = 0;
  }
}
