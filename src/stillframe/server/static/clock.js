// Whose picture is this? A video track has times of its own: 90,000 ticks a second from somewhere,
// another somewhere for each direction, and a third for the maps. Here they become the page's times.
// Knows numbers only; no connection and no picture.

const TICKS = 90; // a millisecond
const MOST_SENT = 900;
const MARKS = 12; // by which a somewhere is found

const less = (a, b) => (a - b) >>> 0; // ticks wrap at 2^32

/** Finds the one number of ticks that lies between each of some marks and a frame that was sent. */
class Shift {
  #value = null;
  #marks = [];

  get value() {
    return this.#value;
  }

  /** The frame that a mark belongs to, in ticks as it was sent, or null; `likely` is tried first. */
  find(mark, sent, likely) {
    this.#marks = [...this.#marks, mark].slice(-MARKS);
    if (this.#value === null || !sent.has(less(mark, this.#value))) this.#value = this.#search(sent, likely);
    return this.#value === null ? null : less(mark, this.#value);
  }

  /** One that fits all marks: what is likely, else the only one there is. */
  #search(sent, likely) {
    const fits = (shift) => this.#marks.every((mark) => sent.has(less(mark, shift)));
    if (likely !== null && fits(likely)) return likely;
    const found = [...sent.keys()].map((tick) => less(this.#marks[0], tick)).filter(fits);
    return found.length === 1 ? found[0] : null;
  }
}

export class Clock {
  #requested = []; // times at which a picture was given to the track, in seconds
  #sent = new Map(); // tick -> time of the picture, or null if it is not known
  #offset = Infinity; // the least difference of arrival and tick, in ms: what is left is encoding
  #base = null; // {tick, at} to which ticks are counted
  #firstSent = null;
  #firstCame = null; // tick of the first edited frame
  #firstMap = null; // its time, in ticks
  #maps = new Shift();
  #results = new Shift();

  /** A picture was given to the track at a time in seconds. */
  requested(time) {
    this.#requested.push(time);
    if (this.#requested.length > 64) this.#requested.shift();
  }

  /** A frame left the encoder: its tick, and when in seconds. */
  sent(tick, now) {
    this.#base ??= { tick, at: now };
    this.#firstSent ??= tick;
    const since = (less(tick, this.#base.tick) | 0) / TICKS / 1000;
    this.#offset = Math.min(this.#offset, now - since);
    const taken = this.#offset + since;
    // the picture that the canvas held when the track took it
    let time = null;
    for (const each of this.#requested) if (each <= taken) time = each;
    this.#sent.set(tick, time);
    if (this.#sent.size > MOST_SENT) this.#sent.delete(this.#sent.keys().next().value);
  }

  /** An edited frame arrived, before it is decoded. */
  came(tick) {
    this.#firstCame ??= tick;
  }

  /** The page's time of a map whose time is in seconds of the server's track, or null. */
  ofMap(seconds) {
    const tick = Math.round(seconds * TICKS * 1000) >>> 0;
    this.#firstMap ??= tick;
    const likely = this.#firstSent === null ? null : less(0, this.#firstSent);
    return this.#timeOf(this.#maps.find(tick, this.#sent, likely));
  }

  /** The page's time of the picture that an edited frame with a tick was made from, or null. */
  ofResult(tick) {
    const known = this.#maps.value !== null && this.#firstCame !== null && this.#firstMap !== null;
    const first = known ? less(this.#firstMap, this.#maps.value) : null;
    return this.#timeOf(this.#results.find(tick, this.#sent, known ? less(this.#firstCame, first) : null));
  }

  #timeOf(tick) {
    return tick === null ? null : this.#sent.get(tick);
  }
}
