"use strict";
// The map of the footprints: Web Mercator on a canvas. The whole world is a square from (0, 0),
// 180 degrees west and 85 north, to (1, 1); `view` is its point in the middle and pixels a world.

// canvas: where it is drawn; its keys, wheel and fingers are listened to.
// corners: Float64Array, 8 a row (page.py), NaN where an item has no place.
// basemap: address of tiles or null.
// select: called with the row of a footprint that was clicked.
function footprintMap(canvas, corners, basemap, select) {
  const SMALLEST = 200, LARGEST = 256 * 2 ** 20;  // pixels a world
  const TINY = 6;  // a footprint of fewer pixels is drawn as a dot
  const total = corners.length / 8;
  const xs = new Float64Array(4 * total), ys = new Float64Array(4 * total);
  const boxes = new Float64Array(4 * total);  // left, top, right, bottom of each row
  const placed = [];
  const context = canvas.getContext("2d"), images = new Map();
  let view = { x: 0.5, y: 0.5, scale: SMALLEST };
  const levels = new Uint8Array(total);  // 1, 2 what is shown, 3 the query
  const middle = { x: 0, y: 0 };  // of the canvas: to ask it for every corner would take long
  let order = [], choice = false, scheduled = false, touched = false;

  const xOf = (longitude) => (longitude + 180) / 360;
  const longitudeOf = (x) => x * 360 - 180;
  const latitudeOf = (y) => (Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI;
  function yOf(latitude) {
    const angle = (Math.max(-85.05, Math.min(85.05, latitude)) * Math.PI) / 180;
    return (1 - Math.asinh(Math.tan(angle)) / Math.PI) / 2;
  }

  for (let row = 0; row < total; row++) {
    if (Number.isNaN(corners[8 * row])) continue;
    placed.push(row);
    for (let corner = 0; corner < 4; corner++) {
      xs[4 * row + corner] = xOf(corners[8 * row + 2 * corner]);
      ys[4 * row + corner] = yOf(corners[8 * row + 2 * corner + 1]);
    }
    const x = xs.subarray(4 * row, 4 * row + 4), y = ys.subarray(4 * row, 4 * row + 4);
    boxes.set([Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)], 4 * row);
  }

  // -------------------------------------------------------------- where one looks

  const left = (x) => (x - view.x) * view.scale + middle.x;
  const top = (y) => (y - view.y) * view.scale + middle.y;

  function look(x, y, scale) {
    view = { x, y: Math.max(0, Math.min(1, y)),
             scale: Math.max(SMALLEST, Math.min(LARGEST, scale)) };
    if (!scheduled) requestAnimationFrame(draw);
    scheduled = true;
  }

  function move(right, down) {
    look(view.x + right / view.scale, view.y + down / view.scale, view.scale);
  }

  // The point of the world under (px, py), pixels from the middle, stays where it is.
  function zoom(factor, px = 0, py = 0) {
    const scale = Math.max(SMALLEST, Math.min(LARGEST, view.scale * factor));
    const pull = 1 / view.scale - 1 / scale;
    look(view.x + px * pull, view.y + py * pull, scale);
  }

  function fit(rows) {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (const row of rows) {
      for (let side = 0; side < 4; side++) {
        box[side] = (side < 2 ? Math.min : Math.max)(box[side], boxes[4 * row + side]);
      }
    }
    const [w, h] = [canvas.clientWidth - 80, canvas.clientHeight - 90];
    const scale = Math.max(SMALLEST, Math.min(LARGEST, w / (box[2] - box[0]),
                                              h / (box[3] - box[1])));
    look((box[0] + box[2]) / 2, (box[1] + box[3]) / 2 + 15 / scale, scale);  // above the buttons
  }

  function fitShown() {
    const rows = placed.filter((row) => choice && levels[row] > 1);
    fit(rows.length ? rows : placed);
  }

  // -------------------------------------------------------------- drawing

  function draw() {
    scheduled = false;
    const [w, h] = [canvas.clientWidth, canvas.clientHeight], ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const style = getComputedStyle(canvas), colour = (name) => style.getPropertyValue(name);
    context.clearRect(0, 0, w, h);
    if (basemap) drawTiles(w, h);
    const labels = drawGraticule(w, h, colour("--grid"));
    drawFootprints(w, h, [colour("--other"), colour("--lit"), colour("--query")]);
    context.font = "12px system-ui, 'Liberation Sans', sans-serif";
    context.textBaseline = "top";
    context.lineWidth = 4;
    context.lineJoin = "round";
    context.strokeStyle = colour("--sea");
    context.fillStyle = colour("--ink");
    for (const [text, x, y] of labels) {  // last, with a rim: they stay readable on anything
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    }
  }

  function drawTiles(w, h) {
    const level = Math.max(0, Math.min(19, Math.round(Math.log2(view.scale / 256))));
    const number = 2 ** level, size = view.scale / number;
    const range = (middle, length) => [Math.floor((middle - length / 2 / view.scale) * number),
                                       Math.floor((middle + length / 2 / view.scale) * number)];
    const [fromX, toX] = range(view.x, w), [fromY, toY] = range(view.y, h);
    if (images.size > 500) images.clear();
    for (let y = Math.max(0, fromY); y <= Math.min(number - 1, toY); y++) {
      for (let x = fromX; x <= toX; x++) {
        const fields = { z: level, x: ((x % number) + number) % number, y };
        const address = basemap.replace(/{([xyz])}/g, (_, field) => fields[field]);
        if (!images.has(address)) {
          const image = new Image();
          image.onload = () => look(view.x, view.y, view.scale);
          image.src = address;
          images.set(address, image);
        }
        const image = images.get(address);
        if (image.complete && image.naturalWidth) {
          context.drawImage(image, left(x / number), top(y / number), size + 0.5, size + 0.5);
        }
      }
    }
  }

  // Lines at round degrees, at least 90 pixels apart; returns their labels.
  function drawGraticule(w, h, colour) {
    const least = (90 * 360) / view.scale;
    const steps = [90, 45, 30, 15, 10, 5, 2, 1];
    for (let unit = 0.1; unit > 1e-6; unit /= 10) steps.push(5 * unit, 2 * unit, unit);
    const step = steps.filter((each) => each >= least).at(-1) ?? 90;
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    const labels = [];
    const say = (value, positive, negative) => {
      const size = Math.abs(value).toFixed(digits);
      return `${size}°${Number(size) === 0 ? "" : value > 0 ? ` ${positive}` : ` ${negative}`}`;
    };
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.beginPath();
    const east = longitudeOf(view.x + w / 2 / view.scale);
    for (let at = Math.ceil(longitudeOf(view.x - w / 2 / view.scale) / step); at * step <= east;
         at++) {
      const x = Math.round(left(xOf(at * step))) + 0.5;
      context.moveTo(x, 0);
      context.lineTo(x, h);
      const longitude = at * step - 360 * Math.round((at * step) / 360);
      if (x > 0 && x < w - 60) labels.push([say(longitude, "E", "W"), x + 4, 5]);
    }
    const north = Math.min(85, latitudeOf(view.y - h / 2 / view.scale));
    const south = Math.max(-85, latitudeOf(view.y + h / 2 / view.scale));
    for (let at = Math.ceil(south / step); at * step <= north; at++) {
      const y = Math.round(top(yOf(at * step))) + 0.5;
      context.moveTo(0, y);
      context.lineTo(w, y);
      if (y > 24 && y < h - 20) labels.push([say(at * step, "N", "S"), 6, y + 3]);
    }
    context.stroke();
    return labels;
  }

  function trace(row) {
    context.beginPath();
    for (let corner = 4 * row; corner < 4 * row + 4; corner++) {
      context.lineTo(left(xs[corner]), top(ys[corner]));
    }
    context.closePath();
  }

  function drawFootprints(w, h, colours) {
    const cells = new Uint8Array(Math.ceil(w / 2 + 1) * Math.ceil(h / 2 + 1));
    const stride = Math.ceil(w / 2 + 1);
    let before = 0;
    for (const row of order) {
      const level = levels[row];
      const x0 = left(boxes[4 * row]), x1 = left(boxes[4 * row + 2]);
      const y0 = top(boxes[4 * row + 1]), y1 = top(boxes[4 * row + 3]);
      if (x1 < 0 || y1 < 0 || x0 > w || y0 > h) continue;
      if (level !== before) context.fillStyle = context.strokeStyle = colours[level - 1];
      before = level;
      if (Math.max(x1 - x0, y1 - y0) < TINY) {
        // Dots of a hundred thousand items lie on one another: each place is painted once a level.
        const x = (x0 + x1) / 2, y = (y0 + y1) / 2;
        const cell = Math.floor(Math.max(0, y) / 2) * stride + Math.floor(Math.max(0, x) / 2);
        if (cells[cell] >= level) continue;
        cells[cell] = level;
        const side = level === 3 ? 10 : level === 2 ? 5 : 3;
        context.fillRect(x - side / 2, y - side / 2, side, side);
        continue;
      }
      context.lineWidth = level === 1 ? 1 : 2;
      trace(row);
      context.globalAlpha = level === 3 ? 0.75 : level === 2 ? 0.25 : 0.08;
      context.fill();
      context.globalAlpha = 1;
      context.stroke();
    }
  }

  // -------------------------------------------------------------- pointers and keys

  // The footprint at a point: of those that hold it the one on top, else a dot close by.
  function rowAt(px, py, reach) {
    let best = null, least = reach;
    const ratio = devicePixelRatio || 1;
    for (const row of order) {  // those on top come last
      const box = [0, 1, 2, 3].map((side) => (side % 2 ? top : left)(boxes[4 * row + side]));
      const outside = Math.hypot(Math.max(box[0] - px, 0, px - box[2]),
                                 Math.max(box[1] - py, 0, py - box[3]));
      if (outside > least) continue;
      if (outside === 0 && Math.max(box[2] - box[0], box[3] - box[1]) >= TINY) {
        trace(row);  // it may lie askew in its box
        if (!context.isPointInPath(px * ratio, py * ratio)) continue;
      }
      [best, least] = [row, outside];
    }
    return best;
  }

  const pointers = new Map();
  let travelled = 0;
  const place = (event) => [event.offsetX, event.offsetY];

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!pointers.size) travelled = 0;
    pointers.set(event.pointerId, place(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const after = place(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    travelled += Math.hypot(after[0] - before[0], after[1] - before[1]);
    pointers.set(event.pointerId, after);
    if (travelled < 4) return;  // a hand that shakes still clicks
    touched = true;
    if (other) {  // two fingers: what lies under the still one stays there
      const [apart, now] = [before, after].map((at) =>
        Math.max(10, Math.hypot(at[0] - other[0], at[1] - other[1])));
      zoom(now / apart, other[0] - canvas.clientWidth / 2, other[1] - canvas.clientHeight / 2);
    } else {
      move(before[0] - after[0], before[1] - after[1]);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (pointers.size === 1 && travelled < 4 && event.button === 0) {
      const row = rowAt(...place(event), event.pointerType === "mouse" ? 6 : 20);
      if (row !== null) select(row);
    }
    pointers.delete(event.pointerId);
  });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    touched = true;
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoom(Math.exp(-event.deltaY * lines * 0.002), event.offsetX - canvas.clientWidth / 2,
         event.offsetY - canvas.clientHeight / 2);
  }, { passive: false });
  const actions = {
    ArrowLeft: () => move(-60, 0), ArrowRight: () => move(60, 0), ArrowUp: () => move(0, -60),
    ArrowDown: () => move(0, 60), "+": () => zoom(1.5), "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5), "0": fitShown, in: () => zoom(2), out: () => zoom(0.5), fit: fitShown,
  };
  function act(name) {
    touched = name !== "fit" && name !== "0";
    actions[name]();
  }
  canvas.addEventListener("keydown", (event) => {
    if (!Object.hasOwn(actions, event.key) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act(event.key);
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => act(button.dataset.zoom));
  }

  // Until somebody moves it, the map stays fitted, also to a window of another size.
  function measure() {
    [middle.x, middle.y] = [canvas.clientWidth / 2, canvas.clientHeight / 2];
    if (touched) move(0, 0);
    else fit(placed);
  }
  new ResizeObserver(measure).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => move(0, 0));
  measure();

  return {
    // Light up rows and the query (null in the gallery), and bring the query into sight. Fit goes
    // to what is lit where that is a choice, else to all.
    show(rows, asked, chosen) {
      choice = chosen;
      levels.fill(1);
      for (const row of rows) levels[row] = 2;
      if (asked !== null) levels[asked] = 3;
      order = [1, 2, 3].flatMap((level) => placed.filter((row) => levels[row] === level));
      const [x, y] = [0, 1].map((side) => (boxes[4 * asked + side] + boxes[4 * asked + side + 2])
                                          / 2);
      const seen = left(x) > 0 && left(x) < canvas.clientWidth && top(y) > 0
        && top(y) < canvas.clientHeight;
      if (asked !== null && placed.includes(asked) && !seen) look(x, y, view.scale);
      else move(0, 0);
    },
    // Where the middle of an item lies, in words, or null.
    placeOf(row) {
      if (Number.isNaN(corners[8 * row])) return null;
      const longitude = longitudeOf((boxes[4 * row] + boxes[4 * row + 2]) / 2);
      const latitude = latitudeOf((boxes[4 * row + 1] + boxes[4 * row + 3]) / 2);
      const turned = longitude - 360 * Math.round(longitude / 360);
      return `${Math.abs(latitude).toFixed(4)}° ${latitude < 0 ? "S" : "N"}, `
        + `${Math.abs(turned).toFixed(4)}° ${turned < 0 ? "W" : "E"}`;
    },
    // Pixels of the middle of an item from the corner of the canvas.
    pixelOf(row) {
      return [left((boxes[4 * row] + boxes[4 * row + 2]) / 2),
              top((boxes[4 * row + 1] + boxes[4 * row + 3]) / 2)];
    },
    placed: placed.length,
  };
}
