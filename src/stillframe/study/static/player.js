// Videos that play in step: started together, kept together, and begun again together at the end of
// the shortest. Knows nothing of votes.

const LOST = 0.25; // seconds apart beyond which one is sought anew
const GAIN = 1; // what a follower is off, it makes up in about a second
const PATIENCE = 1500; // milliseconds to the first picture
const MOST = 0.1; // change of rate at most

const once = (video, kind) => {
  const happened = new Promise((done, failed) => {
    const stop = new AbortController();
    const { signal } = stop;
    video.addEventListener(kind, () => { stop.abort(); done(); }, { signal });
    video.addEventListener("error", () => { stop.abort(); failed(new Error("A video cannot be played in this browser.")); }, { signal });
  });
  happened.catch(() => {}); // said by who waits for it, if anybody still does
  return happened;
};

export class Player {
  #all;
  #films = []; // those that are shown; the first one is followed
  #length = 0;
  #frame = 1 / 25;
  #wanted = false;
  #turn = 0; // of what was begun last; what is older gives up
  #seeking = null;
  #clock = { seconds: 0, since: null };
  #urls = new Map();

  /** changed() is called when it plays or stops, moved(share) as it goes on. */
  constructor(videos, changed, moved) {
    this.#all = videos;
    this.changed = changed;
    this.moved = moved;
    this.loops = 0;
    document.addEventListener("visibilitychange", () => this.#visible());
    const tick = () => {
      this.#keep();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** Whether it plays, or will as soon as it can. */
  get playing() { return this.#wanted; }

  /** Seconds for which it has played in view. */
  get seconds() {
    const { seconds, since } = this.#clock;
    return seconds + (since === null ? 0 : (performance.now() - since) / 1000);
  }

  /** Show blobs on videos of the same order, null where there is none; resolves when all can play. */
  async load(blobs, fps) {
    this.unload();
    const turn = this.#turn;
    this.#frame = 1 / fps;
    const ready = this.#all.map((video, i) => (blobs[i] ? this.#open(video, blobs[i]) : null));
    await Promise.all(ready);
    if (turn !== this.#turn) return false;
    this.#films = this.#all.filter((_, i) => blobs[i]);
    this.#length = Math.min(...this.#films.map((video) => video.duration));
    this.loops = 0;
    return true;
  }

  async #open(video, blob) {
    const url = URL.createObjectURL(blob);
    this.#urls.set(video, url);
    const [known, ready] = [once(video, "loadedmetadata"), once(video, "canplaythrough")];
    video.preload = "auto";
    video.src = url;
    video.load();
    await known;
    // some phones decode nothing before it is to play
    await Promise.race([ready, new Promise((done) => { setTimeout(done, PATIENCE); })]);
  }

  /** Let go of what is shown. */
  unload() {
    this.#turn += 1;
    this.#stopClock();
    this.#clock = { seconds: 0, since: null };
    this.#wanted = false;
    this.#films = [];
    for (const [video, url] of this.#urls) {
      video.removeAttribute("src");
      video.load();
      URL.revokeObjectURL(url);
    }
    this.#urls.clear();
  }

  /** Play all from where they are, together. */
  async play() {
    this.#wanted = true;
    this.changed();
    if (document.hidden) return;
    await this.#align(this.#films[0]?.currentTime ?? 0);
  }

  pause() {
    this.#wanted = false;
    this.#halt();
    this.changed();
  }

  /** Go to a share of the length, all of them; whoever plays goes on. */
  async seek(share) {
    await this.#align(share * this.#length);
  }

  #halt() {
    for (const video of this.#films) {
      video.pause();
      video.playbackRate = 1;
    }
    this.#stopClock();
  }

  #stopClock() {
    if (this.#clock.since === null) return;
    this.#clock = { seconds: this.seconds, since: null };
  }

  /** All to one time; then, if it is to play, all start. A later call takes the place of this one. */
  async #align(time) {
    const own = Symbol("seek");
    this.#seeking = own;
    const turn = this.#turn;
    this.#halt();
    try {
      await Promise.all(this.#films.map((video) => {
        if (!video.seeking && Math.abs(video.currentTime - time) < this.#frame / 4) return null;
        const there = once(video, "seeked");
        video.currentTime = time;
        return there;
      }));
    } catch {
      // what cannot be played was said when it was loaded
    }
    if (this.#seeking !== own || turn !== this.#turn) return;
    if (this.#wanted && !document.hidden) {
      const started = this.#films.map((video) => video.play());
      const refused = (await Promise.allSettled(started)).some(({ reason }) => reason?.name === "NotAllowedError");
      if (this.#seeking !== own || turn !== this.#turn) return;
      if (refused) {
        // browsers may want a touch first
        this.#wanted = false;
        this.#halt();
        this.changed();
      } else if (this.#wanted && !document.hidden) { // nobody has stopped it meanwhile
        this.#clock.since ??= performance.now();
      }
    }
    this.#seeking = null;
  }

  /** Once a picture of the screen: keep in step, and begin again at the end. */
  #keep() {
    const [first, ...others] = this.#films;
    if (!first || this.#seeking) return;
    this.moved(this.#length ? first.currentTime / this.#length : 0);
    if (!this.#wanted || document.hidden) return;
    if (this.#films.some((video) => video.ended || video.currentTime >= this.#length - this.#frame / 4)) {
      this.loops += 1;
      this.#align(0);
      return;
    }
    for (const video of others) {
      const ahead = video.currentTime - first.currentTime;
      if (Math.abs(ahead) > LOST) {
        this.#align(first.currentTime);
        return;
      }
      const off = Math.abs(ahead) < this.#frame / 4 ? 0 : ahead * GAIN;
      const rate = 1 - Math.max(-MOST, Math.min(MOST, off));
      if (Math.abs(video.playbackRate - rate) > 0.002) video.playbackRate = rate;
    }
  }

  #visible() {
    if (document.hidden) this.#halt();
    else if (this.#wanted) this.play();
  }
}
