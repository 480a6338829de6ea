// How large a pair is shown: no video pixel is lost unless the window is too small for that.

const LARGEST = 2; // times its own size
const STACKED = matchMedia("(max-width: 900px)");

/** Scale of a video, in points of the page a pixel, and whether pixels are lost by it. */
export function scaleOf(width, height, room, density) {
  const fit = Math.min(room.width / width, room.height / height, LARGEST);
  const pixels = fit * density; // of the screen, for one of the video
  if (pixels < 1) return { scale: fit, share: pixels };
  // whole ones where a point is a pixel: others are seen as blur there
  return { scale: (density < 1.5 ? Math.floor(pixels) : pixels) / density, share: 1 };
}

/** Give videos of one size their size on the page; what is to be said of it, "" if nothing. */
export function fitFilms(films, videos, withSource) {
  const [{ videoWidth: width, videoHeight: height }] = videos;
  if (!width) return "";
  const stacked = STACKED.matches;
  const room = {
    width: (films.parentElement.clientWidth - (stacked ? 0 : 24)) / (stacked ? 1 : 2),
    // both are to be seen at a time, and what is asked; a source is scrolled to
    height: stacked ? (innerHeight - 325) / 2 : innerHeight - 330,
  };
  // in a low window videos are scrolled rather than made smaller than they are
  room.height = Math.max(room.height, height / devicePixelRatio);
  const { scale, share } = scaleOf(width, height, room, devicePixelRatio);
  for (const video of videos.slice(0, withSource ? 3 : 2)) {
    video.style.width = `${Math.round(width * scale)}px`;
    video.style.height = `${Math.round(height * scale)}px`;
  }
  if (share === 1) return "";
  return `This window is too small: the videos are shown at ${Math.floor(100 * share)} % of their size. ${stacked ? "Turn the phone, or use a larger screen." : "Make it wider, or use a larger screen."}`;
}
