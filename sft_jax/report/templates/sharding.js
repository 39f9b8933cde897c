// Draws the chosen array as a grid of shards and the mesh as a grid of devices, in the colours of their shards.
const data = JSON.parse(document.getElementById("data").textContent);
const array = document.getElementById("array"), devices = document.getElementById("devices");
const told = document.getElementById("told"), title = document.getElementById("title");
const rows = document.querySelectorAll("tr.array");
let current = null, layout = null;

// A gap of two pixels, less where blocks are small.
function gap(svg, side) {
  const box = svg.getBoundingClientRect(), cells = svg.viewBox.baseVal;
  return Math.min(.12, 2 * cells[side] / box[side]);
}

function block(svg, x, y, shard) {
  const rect = document.createElementNS(svg.namespaceURI, "rect");
  const width = 1 - gap(svg, "width"), height = 1 - gap(svg, "height");
  for (const [name, value] of Object.entries({x, y, width, height})) rect.setAttribute(name, value);
  rect.style.fill = data.colours[shard % data.colours.length];
  rect.style.fillOpacity = 1 - .5 * (Math.floor(shard / data.colours.length) % 2);
  rect.dataset.shard = shard;
  rect.onpointerenter = rect.onclick = () => light(shard);
  svg.append(rect);
}

function grid(svg, down, across) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${across} ${down}`);
  svg.setAttribute("preserveAspectRatio", "none");
}

// `embed 0..63, heads 4..7`: shards are numbered with the last divided dimension fastest.
function part(shard) {
  const words = [];
  for (const [axis, parts, size] of current.divided.toReversed()) {
    const which = shard % parts;
    shard = (shard - which) / parts;
    words.unshift(`${axis} ${which * size}..${(which + 1) * size - 1}`);
  }
  return words.join(", ") || "the whole array";
}

function light(shard) {
  for (const svg of [array, devices]) {
    svg.classList.toggle("dim", shard !== null);
    for (const rect of svg.children) rect.classList.toggle("lit", +rect.dataset.shard === shard);
  }
  told.textContent = shard === null
    ? "Point at a shard or a device to see which device holds which shard."
    : `${part(shard)}: held by ${layout.devices[shard]}`;
}

function choose(index) {
  current = data.arrays[index];
  layout = data.layouts[current.layout];
  rows.forEach((row, k) => row.classList.toggle("chosen", k === index));
  title.textContent = `${current.name}: ${current.text}`;
  const [down, across] = layout.grid, wide = data.grid[1];
  grid(array, down, across);
  for (let shard = 0; shard < down * across; shard++) block(array, shard % across, Math.floor(shard / across), shard);
  grid(devices, ...data.grid);
  layout.holds.forEach((shard, device) => block(devices, device % wide, Math.floor(device / wide), shard));
  light(null);
}

rows.forEach((row, k) => { row.onclick = () => choose(k); });
for (const svg of [array, devices]) svg.onpointerleave = () => light(null);
choose(data.first);
