// The live protocol, version 1, over one WebSocket. Knows messages, not pictures or controls.

const HEADER = 16;
const FRAME = 1;
const MAP = 2;
const MOST_WAITING = 192 * 1024; // bytes in the socket's buffer above which no frame is sent

/** {S, h, w, bits}: bits is one byte a patch, frame after frame, row after row, 1 = recomputed. */
export function parseMap(view) {
  const [S, h, w] = [0, 2, 4].map((offset) => view.getUint16(HEADER + offset, true));
  const start = HEADER + 6;
  if (view.byteLength < start + Math.ceil((S * h * w) / 8)) throw new RangeError("short map");
  const bits = new Uint8Array(S * h * w);
  for (let i = 0; i < bits.length; i += 1) {
    bits[i] = (view.getUint8(start + (i >> 3)) >> (7 - (i & 7))) & 1;
  }
  return { S, h, w, bits };
}

/** One connection. `on` holds: ready, frame(time, blob), map(time, map), telemetry, updated, closed. */
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
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#text(data) : this.#binary(data));
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

  /** Send one JPEG with its time in seconds. */
  frame(time, jpeg) {
    if (this.#socket.readyState !== WebSocket.OPEN) return;
    const message = new Uint8Array(HEADER + jpeg.byteLength);
    message[0] = FRAME;
    new DataView(message.buffer).setFloat64(8, time, true);
    message.set(new Uint8Array(jpeg), HEADER);
    this.#socket.send(message);
  }

  /** Say goodbye and close; `closed` is not called. */
  bye() {
    this.tell({ type: "bye" });
    this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket.close(1000);
  }

  #text(data) {
    const message = JSON.parse(data);
    if (message.type === "refused") this.#reason = { state: "refused", text: message.reason };
    else if (message.type === "error") this.#reason = { state: "ended", text: message.message };
    else if (["ready", "telemetry", "updated"].includes(message.type)) this.#on[message.type](message);
  }

  #binary(buffer) {
    if (buffer.byteLength < HEADER) return;
    const view = new DataView(buffer);
    const [kind, time] = [view.getUint8(0), view.getFloat64(8, true)];
    if (kind === FRAME) this.#on.frame(time, new Blob([buffer.slice(HEADER)], { type: "image/jpeg" }));
    else if (kind === MAP) this.#on.map(time, parseMap(view));
  }

  #closed(event) {
    const words = {
      1001: "The server is going away.",
      1006: "The connection to the server was lost.",
      1008: "The server did not accept this page.",
      1009: "The server found a picture too large.",
      1011: "The server had a fault.",
    };
    const text = event.reason || words[event.code] || "The server ended the stream.";
    const state = event.code === 1013 ? "refused" : "ended";
    this.#on.closed(this.#reason ?? { state, text });
  }
}
