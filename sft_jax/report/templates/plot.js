// Shows a plot's values below it, at the pointer, finger or arrow-key position.
for (const svg of document.querySelectorAll("svg[data-readings]")) {
  const readings = JSON.parse(svg.dataset.readings), hair = svg.querySelector(".hair");
  const out = document.createElement("output");
  let chosen = -1;
  svg.after(out);
  svg.tabIndex = 0;
  function show(index) {
    chosen = index;
    hair.style.visibility = index < 0 ? "hidden" : "visible";
    out.textContent = index < 0 ? "" : readings[index][1];
    if (index < 0) return;
    hair.setAttribute("x1", readings[index][0]);
    hair.setAttribute("x2", readings[index][0]);
  }
  function nearest(event) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    readings.forEach(([at], k) => { if (Math.abs(at - x) < Math.abs(readings[best][0] - x)) best = k; });
    show(best);
  }
  svg.onpointermove = svg.onpointerdown = nearest;
  svg.onpointerleave = event => { if (event.pointerType === "mouse") show(-1); };
  svg.onkeydown = event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(readings.length - 1, Math.max(0, chosen + step)));
  };
}
