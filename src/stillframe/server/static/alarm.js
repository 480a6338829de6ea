// A worker: a timer for the page, since a hidden page's own timers sleep. Knows nothing else.

let timer = 0;

self.onmessage = ({ data: wait }) => {
  clearTimeout(timer);
  if (wait !== null) timer = setTimeout(() => self.postMessage(null), wait);
};
