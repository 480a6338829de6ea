// When an edited frame is shown. Frames come a block at a time; they are shown at the pace at which
// they were taken, behind them by the longest latency of the last blocks. Knows no canvas.

const MARGIN = 0.03; // seconds
const HISTORY = 8; // seconds over which the longest latency counts
const MOST_SOURCES = 400;
const MOST_FRAMES = 240; // edited frames that wait to be shown, and that wait to be decoded

export class Playback {
  #frames = []; // {time, bitmap, sure}, edited, not yet shown
  #decoding = 0; // how many are to become such
  #sources = []; // {time, bitmap}, sent
  #latencies = []; // {at, latency}
  #maps = []; // {time, map}, time of the first frame of the block
  #order = Promise.resolve();
  #epoch = 0;
  #newest = 0; // time of the latest edited frame
  smooth = true;
  broken = 0; // edited frames that could not be read

  /** Remember a frame that was sent. */
  sent(time, bitmap) {
    this.#sources.push({ time, bitmap });
    while (this.#sources.length > MOST_SOURCES) this.#sources.shift().bitmap.close();
  }

  /** Take an edited frame, a promise of its bitmap; the time of its source is null if nobody knows. */
  came(known, picture, now) {
    const sure = known !== null;
    // what nobody knows the time of follows at once
    const time = known ?? this.#newest;
    this.#newest = Math.max(this.#newest, time);
    if (sure) this.#latencies.push({ at: now, latency: now - time });
    if (this.#latencies.length > MOST_FRAMES) this.#latencies.shift();
    picture.catch(() => {}); // said again below, in order
    if (this.#decoding >= MOST_FRAMES) {
      picture.then((bitmap) => bitmap.close(), () => {});
      return;
    }
    this.#decoding += 1;
    const epoch = this.#epoch;
    this.#order = this.#order.then(async () => {
      try {
        const bitmap = await picture;
        if (epoch === this.#epoch) this.#keep({ time, bitmap, sure });
        else bitmap.close();
      } catch {
        this.broken += 1; // it is left out
      }
      this.#decoding -= 1;
    });
  }

  /** Add a frame; one more than may wait, and the oldest goes. */
  #keep(frame) {
    this.#frames.push(frame);
    if (this.#frames.length > MOST_FRAMES) this.#frames.shift().bitmap.close();
  }

  /** Take the map of the block that begins at a time. */
  mapped(time, map) {
    this.#maps.push({ time, map });
    if (this.#maps.length > 60) this.#maps.shift();
  }

  /** The frame to show now, {time, sure, bitmap, source, map, slot}, or null; the caller closes bitmap.
      Of one whose time is not sure there is no source. */
  next(now) {
    this.#latencies = this.#latencies.filter(({ at }) => at > now - HISTORY);
    const behind = this.smooth ? Math.max(0, ...this.#latencies.map((l) => l.latency)) + MARGIN : 0;
    let frame = null;
    while (this.#frames.length && this.#frames[0].time <= now - behind) {
      frame?.bitmap.close();
      frame = this.#frames.shift();
    }
    return frame && { ...frame, source: frame.sure ? this.#sourceOf(frame.time) : null, ...this.#mapOf(frame.time) };
  }

  /** Forget everything. */
  clear() {
    this.#epoch += 1;
    for (const { bitmap } of [...this.#frames, ...this.#sources]) bitmap.close();
    this.#frames = [];
    this.#sources = [];
    this.#latencies = [];
    this.#maps = [];
    this.#newest = 0;
  }

  #sourceOf(time) {
    while (this.#sources.length && this.#sources[0].time < time - 1e-6) this.#sources.shift().bitmap.close();
    const [first] = this.#sources;
    return first && Math.abs(first.time - time) < 1e-6 ? first.bitmap : null;
  }

  /** The block's map and which of its latent frames: by place in the block's span of time. */
  #mapOf(time) {
    let i = this.#maps.length - 1;
    while (i >= 0 && this.#maps[i].time > time + 1e-6) i -= 1;
    if (i < 0) return { map: null, slot: 0, block: null };
    const { time: start, map } = this.#maps[i];
    const later = this.#maps[i + 1]?.time ?? this.#frames.at(-1)?.time ?? time;
    const span = Math.max(later - start, 1e-6);
    const slot = Math.min(map.S - 1, Math.floor(((time - start) / span) * map.S));
    return { map, slot, block: start };
  }
}
