// A worker: passes encoded frames on as they are, and tells their RTP timestamps. Knows nothing of
// what is in them, nor of the connection.

self.onrtctransform = ({ transformer }) => {
  const { side } = transformer.options;
  const look = new TransformStream({
    transform(frame, next) {
      self.postMessage({ side, tick: frame.getMetadata().rtpTimestamp ?? frame.timestamp });
      next.enqueue(frame);
    },
  });
  transformer.readable.pipeThrough(look).pipeTo(transformer.writable).catch(() => {}); // the end
};
