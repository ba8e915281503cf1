// The page is complete without this. With it, one step at a time is shown large: by the slider, or by a click.
for (const strip of document.querySelectorAll(".strip")) {
  const viewer = strip.querySelector(".viewer");
  const view = viewer.querySelector(".view");
  const bare = viewer.querySelector(".bare");
  const slider = viewer.querySelector("input");
  const frames = [...strip.querySelector(".frames").querySelectorAll(".frame")];
  const show = (step) => {
    const frame = frames[step].cloneNode(true);
    frame.classList.remove("chosen");
    view.replaceChildren(frame);
    const plain = frame.cloneNode(true);
    plain.querySelectorAll(".slot, .borders, .links").forEach((drawn) => drawn.remove());
    plain.querySelector("figcaption").textContent = "the prediction alone";
    bare.replaceChildren(plain);
    frames.forEach((frame, index) => frame.classList.toggle("chosen", index === step));
    slider.value = step;
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  frames.forEach((frame, step) => {
    frame.style.cursor = "pointer";
    frame.addEventListener("click", () => show(step));
  });
  viewer.hidden = false;
  const merged = frames.findIndex((frame) => frame.querySelector(".slot"));
  show(Math.max(merged, 0));
}
