// all videos of a clip from the start, at once: side by side is only worth it in step
for (const button of document.querySelectorAll("button.together")) {
  const videos = [...button.closest(".group").querySelectorAll("video")];
  button.hidden = false;
  button.addEventListener("click", () => {
    const playing = videos.some((video) => !video.paused);
    for (const video of videos) {
      video.pause();
      if (!playing) video.currentTime = 0;
    }
    if (!playing) videos.forEach((video) => video.play());
  });
}
