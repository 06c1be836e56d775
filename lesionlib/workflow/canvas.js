// A canvas on which a mask is painted, one value (0 or 1) per pixel of the generators' images.
// It imports nothing, so that it needs no network.

const SHOWN = 256; // side of the canvas on the screen, in CSS pixels

function make(tag, parent, properties = {}) {
  return parent.appendChild(Object.assign(document.createElement(tag), properties));
}

/** Set the value of all pixels within a brush, round at (x, y); the pixel below it always. */
function stamp(mask, size, x, y, brush, value) {
  const reach = brush / 2;
  for (let row = Math.floor(y - reach); row <= y + reach; row++)
    for (let column = Math.floor(x - reach); column <= x + reach; column++) {
      const inside = row >= 0 && row < size && column >= 0 && column < size;
      const below = row === Math.floor(y) && column === Math.floor(x);
      const near = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= reach;
      if (inside && (near || below)) mask[row * size + column] = value;
    }
}

/** Fill what is enclosed: pixels that no path of empty pixels joins with the border. */
function fill(mask, size) {
  const outside = new Uint8Array(mask.length), open = [];
  const visit = (row, column) => {
    const at = row * size + column;
    if (row < 0 || column < 0 || row >= size || column >= size || mask[at] || outside[at]) return;
    outside[at] = 1;
    open.push([row, column]);
  };
  for (let k = 0; k < size; k++)
    for (const [row, column] of [[0, k], [size - 1, k], [k, 0], [k, size - 1]]) visit(row, column);
  while (open.length) {
    const [row, column] = open.pop();
    for (const [down, right] of [[1, 0], [-1, 0], [0, 1], [0, -1]])
      visit(row + down, column + right);
  }
  outside.forEach((free, at) => { if (!free) mask[at] = 1; });
}

function render({ model, el }) {
  const size = model.get("size"), before = [];
  const received = () => {
    const { buffer, byteOffset, byteLength } = model.get("mask"); // a DataView
    return new Uint8Array(buffer, byteOffset, byteLength).slice();
  };
  let mask = received(), last = null, value = 1;

  const box = make("div", el, { className: "lesion-canvas" });
  const frame = make("div", box, { className: "frame" });
  const canvas = make("canvas", frame, { width: size, height: size });
  const ring = make("div", frame, { className: "ring" });
  canvas.style.width = canvas.style.height = `${SHOWN}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "the mask; paint the lesion with the mouse, a pen or a finger");
  const tools = make("div", box, { className: "tools" });

  const draw = () => {
    const context = canvas.getContext("2d"), picture = context.createImageData(size, size);
    mask.forEach((one, at) => picture.data.set([255 * one, 255 * one, 255 * one, 255], 4 * at));
    context.putImageData(picture, 0, 0);
  };
  const remember = () => {
    before.push(mask.slice());
    if (before.length > 50) before.shift();
  };
  const send = () => {
    draw();
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
  };
  const button = (textContent, title, onclick) =>
    make("button", tools, { textContent, title, onclick });
  const change = (action) => () => {
    remember();
    action();
    send();
  };

  const choose = (one) => {
    value = one;
    paint.classList.toggle("chosen", one === 1);
    erase.classList.toggle("chosen", one === 0);
  };
  const paint = button("Paint", "paint the lesion", () => choose(1));
  const erase = button("Erase", "paint skin", () => choose(0));
  button("Fill", "fill what an outline encloses", change(() => fill(mask, size)));
  button("Undo", "take back the last change", () => {
    mask = before.pop() ?? mask;
    send();
  });
  button("Clear", "an empty mask", change(() => mask.fill(0)));
  const label = make("label", tools, { textContent: "brush" });
  const [max, width] = [Math.round(size / 3), Math.round(size / 8)];
  const brush = make("input", label, { type: "range", min: 1, max, value: width });
  choose(1);

  const place = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [(event.clientX - left) * size / width, (event.clientY - top) * size / height];
  };
  const stroke = ([x, y]) => {
    const [left, top] = last ?? [x, y], steps = Math.ceil(2 * Math.hypot(x - left, y - top)) || 1;
    for (let k = 1; k <= steps; k++) {
      const part = k / steps;
      const at = [left + (x - left) * part, top + (y - top) * part];
      stamp(mask, size, ...at, +brush.value, value);
    }
    last = [x, y];
  };
  canvas.onpointerdown = (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId); // strokes may leave the canvas and come back
    remember();
    stroke(place(event));
    draw();
  };
  canvas.onpointermove = (event) => {
    const [x, y] = place(event), scale = SHOWN / size, side = brush.value * scale;
    const [left, top] = [x * scale - side / 2, y * scale - side / 2].map((one) => `${one}px`);
    Object.assign(ring.style, { left, top, width: `${side}px`, height: `${side}px` });
    if (!last) return;
    (event.getCoalescedEvents?.() ?? [event]).map(place).forEach(stroke);
    stroke([x, y]);
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = () => { if (last) { last = null; send(); } };

  const changed = () => {
    const theirs = received();
    if (theirs.every((one, at) => one === mask[at])) return;
    remember();
    mask = theirs;
    draw();
  };
  model.on("change:mask", changed);
  draw();
  return () => model.off("change:mask", changed);
}

export default { render };
