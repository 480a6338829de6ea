// The live protocol, version 1: its messages, and one WebSocket that they go over. Knows no controls,
// and not when pictures are shown.

const HEADER = 16;
const FRAME = 1;
const MAP = 2;
const MOST_WAITING = 192 * 1024; // bytes in the socket's buffer above which no frame is sent
const QUALITY = 0.85;
const LOST = [1001, 1006, 1012]; // the server or the line went, and may come back

/** {S, h, w, bits, moved}: one byte a patch, frame after frame, row after row, 1 = recomputed, and 1 = reused
    from another place; moved is null where nothing was. */
export function parseMap(view) {
  const [S, h, w] = [0, 2, 4].map((offset) => view.getUint16(HEADER + offset, true));
  const start = HEADER + 6;
  const size = Math.ceil((S * h * w) / 8);
  if (view.byteLength < start + size) throw new RangeError("short map");
  const unpack = (from) => Uint8Array.from({ length: S * h * w }, (_, i) => (view.getUint8(from + (i >> 3)) >> (7 - (i & 7))) & 1);
  const moved = view.byteLength < start + 2 * size ? null : unpack(start + size);
  return { S, h, w, bits: unpack(start), moved };
}

/** What the server said: a text of a known type as it is, {reason}, {time, jpeg}, {time, map} or {}. */
export function parseMessage(data) {
  if (typeof data === "string") {
    const message = JSON.parse(data);
    if (message.type === "refused") return { reason: { state: "refused", text: message.reason } };
    if (message.type === "error") return { reason: { state: "ended", text: message.message } };
    return ["ready", "telemetry", "updated", "notice"].includes(message.type) ? message : {};
  }
  if (data.byteLength < HEADER) return {};
  const view = new DataView(data);
  const [kind, time] = [view.getUint8(0), view.getFloat64(8, true)];
  if (kind === FRAME) return { time, jpeg: new Blob([data.slice(HEADER)], { type: "image/jpeg" }) };
  return kind === MAP ? { time, map: parseMap(view) } : {};
}

/** One connection. `on` holds: ready, frame(time, bitmap), map(time, map), telemetry, updated, notice, closed;
    the bitmap is a promise. */
export class Connection {
  #socket;
  #on;
  #reason = null; // {state, text} once the server has told why it will close

  constructor(hello, on) {
    this.#on = on;
    const url = new URL("live", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.search = "";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify({ type: "hello", ...hello }));
    socket.onmessage = ({ data }) => this.#heard(data);
    socket.onclose = (event) => this.#closed(event);
    this.#socket = socket;
  }

  /** Whether a frame may go now, or the line still holds earlier ones. */
  get clear() {
    return this.#socket.readyState === WebSocket.OPEN && this.#socket.bufferedAmount < MOST_WAITING;
  }

  /** Send {type, ...}; nothing happens on a closed line. */
  tell(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Send what the canvas holds, drawn at a time in seconds, as JPEG; whether that was done. */
  async frame(time, canvas) {
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
    if (!blob) return false;
    const message = new Uint8Array(HEADER + blob.size);
    message[0] = FRAME;
    new DataView(message.buffer).setFloat64(8, time, true);
    message.set(new Uint8Array(await blob.arrayBuffer()), HEADER);
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(message);
    return true;
  }

  /** Say goodbye and close; `closed` is not called. */
  bye() {
    this.tell({ type: "bye" });
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close(1000);
  }

  #heard(data) {
    const message = parseMessage(data);
    if (message.reason) this.#reason = message.reason;
    else if (message.jpeg) this.#on.frame(message.time, createImageBitmap(message.jpeg));
    else if (message.map) this.#on.map(message.time, message.map);
    else if (message.type) this.#on[message.type](message);
  }

  #closed(event) {
    const words = {
      1001: "The server is going away.",
      1006: "The connection to the server was lost.",
      1008: "The server did not accept this page.",
      1012: "The server is going away.",
      1009: "The server found a picture too large.",
      1011: "The server had a fault.",
    };
    const text = event.reason || words[event.code] || "The server ended the stream.";
    const state = event.code === 1013 ? "refused" : "ended";
    const lost = LOST.includes(event.code);
    this.#on.closed(this.#reason ?? { state, text, lost });
  }
}
