// Curves on a canvas: axes, thin lines of single steps, running means, and what stands under the pointer.
"use strict";

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A number as people write it.
function told(v) {
  if (v === null || v === undefined || !isFinite(v)) return "-";
  const size = Math.abs(v);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return v.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
  return String(Number(v.toPrecision(4)));
}

// Ticks of a linear axis: multiples of 1, 2 or 5 times a power of ten.
function linearTicks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) || 10 * power;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9 && ticks.length < 50; k++) ticks.push(k * step);
  return ticks;
}

// Of a logarithmic one: powers of ten, and where there are few of them also 2 and 5 times these.
function logTicks(low, high, most) {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((to - from) / most));
  const of = (factors) => {
    const ticks = [];
    for (let k = from; k <= to; k += every) for (const f of factors) ticks.push(f * 10 ** k);
    return ticks.filter((t) => t >= low * (1 - 1e-9) && t <= high * (1 + 1e-9));
  };
  for (const factors of [[1], [1, 3], [1, 2, 5]]) {
    const ticks = of(factors);
    if (ticks.length >= 3) return ticks;
  }
  return linearTicks(low, high, most);
}

// An exponential mean over `steps` of them, as the eye would draw it; null where there is no number.
function mean(values, steps) {
  const keep = 1 - 1 / Math.max(1, steps);
  let sum = 0, weight = 0;
  return values.map((v) => {
    if (v === null) return null;
    sum = keep * sum + v;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

// Lines: { name, colour (a CSS variable), x, y, raw (values of single steps) or undefined, dots }.
class Chart {
  constructor(title, unit) {
    this.box = document.createElement("div");
    this.box.className = "card chart";
    this.box.append(Object.assign(document.createElement("h2"), { textContent: unit ? `${title}, ${unit}` : title }));
    this.canvas = this.box.appendChild(document.createElement("canvas"));
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", title);
    this.legend = this.box.appendChild(document.createElement("div"));
    this.legend.className = "legend";
    this.tip = this.box.appendChild(document.createElement("div"));
    this.tip.className = "tip";
    this.tip.hidden = true;
    this.lines = [];
    this.canvas.addEventListener("pointermove", (e) => this.point(e.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
  }

  show(lines, log, xName) {
    this.lines = lines;
    this.log = log && lines.every((line) => line.y.every((v) => v === null || v > 0));
    this.xName = xName;
    const names = lines.map((line) => {
      const span = Object.assign(document.createElement("span"), { textContent: line.name });
      span.style.setProperty("--colour", `var(${line.colour})`);
      return span;
    });
    this.legend.replaceChildren(...(lines.length > 1 ? names : []));
    this.draw();
  }

  // Ends of the axes; single steps reach beyond them now and then.
  range() {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x, y, raw } of this.lines) {
      for (let i = 0; i < x.length; i++) {
        if (y[i] === null) continue;
        x0 = Math.min(x0, x[i]); x1 = Math.max(x1, x[i]);
        y0 = Math.min(y0, y[i]); y1 = Math.max(y1, y[i]);
      }
      if (raw && raw.length) {
        const sorted = raw.filter((v) => v !== null && (!this.log || v > 0)).sort((a, b) => a - b);
        const at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
        if (sorted.length) [y0, y1] = [Math.min(y0, at(0.01)), Math.max(y1, at(0.98))];
      }
    }
    if (x0 > x1) return null;
    if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
    if (this.log) {
      if (y0 === y1) [y0, y1] = [y0 / 1.1, y1 * 1.1];
      const room = (y1 / y0) ** 0.04;
      return [x0, x1, y0 / room, y1 * room];
    }
    if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) * 0.05 || 0.5), y1 + (Math.abs(y1) * 0.05 || 0.5)];
    const room = (y1 - y0) * 0.05;
    return [x0, x1, y0 >= 0 && y0 < 0.25 * y1 ? 0 : y0 - room, y1 + room];
  }

  draw() {
    const [width, height, dense] = [this.canvas.clientWidth, this.canvas.clientHeight, window.devicePixelRatio || 1];
    if (!width) return;
    if (this.canvas.width !== Math.round(width * dense) || this.canvas.height !== Math.round(height * dense)) {
      [this.canvas.width, this.canvas.height] = [Math.round(width * dense), Math.round(height * dense)];
    }
    const c = this.canvas.getContext("2d");
    c.setTransform(dense, 0, 0, dense, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = "11px system-ui, sans-serif";
    const range = this.range();
    if (!range) return;
    const [x0, x1, y0, y1] = range;
    const [top, bottom] = [6, height - 32];
    const yTicks = (this.log ? logTicks : linearTicks)(y0, y1, (bottom - top) / 40);
    const left = 12 + Math.max(...yTicks.map((t) => c.measureText(told(t)).width), 20);
    const right = width - 10;
    const f = this.log ? Math.log : (v) => v;
    this.toX = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
    this.toY = (y) => bottom - ((f(y) - f(y0)) / (f(y1) - f(y0))) * (bottom - top);
    c.lineWidth = 1;
    c.fillStyle = colourOf("--soft");
    c.strokeStyle = colourOf("--grid");
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const t of yTicks) {
      const y = Math.round(this.toY(t)) + 0.5;
      c.beginPath(); c.moveTo(left, y); c.lineTo(right, y); c.stroke();
      c.fillText(told(t), left - 6, y);
    }
    c.textBaseline = "top";
    for (const t of linearTicks(x0, x1, (right - left) / 75)) {
      const x = Math.round(this.toX(t)) + 0.5;
      c.beginPath(); c.moveTo(x, top); c.lineTo(x, bottom); c.stroke();
      c.textAlign = x > right - 14 ? "right" : x < left + 4 ? "left" : "center";
      c.fillText(t.toLocaleString("en", { maximumFractionDigits: 3 }), Math.min(x, right + 8), bottom + 5);
    }
    c.textAlign = "right";
    c.fillText(this.xName, right, bottom + 18);
    c.strokeStyle = colourOf("--line");
    c.strokeRect(left + 0.5, top + 0.5, right - left - 1, bottom - top - 1);
    c.save();
    c.beginPath(); c.rect(left, top, right - left, bottom - top); c.clip();
    for (const line of this.lines) if (line.raw) this.column(c, line);
    for (const line of this.lines) this.stroke(c, line, right - left);
    c.restore();
  }

  // From the least to the largest of single steps in each column of pixels.
  column(c, { x, raw, colour }) {
    c.strokeStyle = colourOf(colour);
    c.globalAlpha = 0.3;
    c.beginPath();
    let [at, low, high, last] = [null, 0, 0, null];
    const flush = () => {
      if (at === null) return;
      if (last !== null) c.lineTo(at + 0.5, low); else c.moveTo(at + 0.5, low);
      c.lineTo(at + 0.5, high + 0.5);
      last = at;
    };
    for (let i = 0; i < x.length; i++) {
      if (raw[i] === null || (this.log && raw[i] <= 0)) continue;
      const [px, py] = [Math.round(this.toX(x[i])), this.toY(raw[i])];
      if (px !== at) { flush(); [at, low, high] = [px, py, py]; }
      [low, high] = [Math.min(low, py), Math.max(high, py)];
    }
    flush();
    c.stroke();
    c.globalAlpha = 1;
  }

  stroke(c, { x, y, colour, dots }, width) {
    const stride = Math.max(1, Math.floor(x.length / (2 * width)));
    [c.strokeStyle, c.fillStyle, c.lineWidth, c.lineJoin] = [colourOf(colour), colourOf(colour), 1.8, "round"];
    const points = [];
    for (let i = 0; i < x.length; i++) {
      if (y[i] !== null && (i % stride === 0 || i === x.length - 1)) points.push([this.toX(x[i]), this.toY(y[i])]);
    }
    c.beginPath();
    points.forEach(([px, py], i) => (i ? c.lineTo(px, py) : c.moveTo(px, py)));
    c.stroke();
    if (dots || points.length === 1) {
      for (const [px, py] of points) { c.beginPath(); c.arc(px, py, 2.5, 0, 7); c.fill(); }
    }
  }

  // Tells the numbers nearest to a place of the pointer.
  point(at) {
    this.draw();
    this.tip.hidden = true;
    if (at === null || !this.toX) return;
    let best = null;
    for (const { x, y } of this.lines) {
      for (let i = 0; i < x.length; i++) {
        const away = Math.abs(this.toX(x[i]) - at);
        if (y[i] !== null && (best === null || away < best[0])) best = [away, x[i]];
      }
    }
    if (!best) return;
    const px = this.toX(best[1]);
    const c = this.canvas.getContext("2d");
    c.strokeStyle = colourOf("--soft");
    c.lineWidth = 1;
    c.beginPath(); c.moveTo(px, 6); c.lineTo(px, this.canvas.clientHeight - 32); c.stroke();
    const rows = [Object.assign(document.createElement("b"), { textContent: `${this.xName} ${told(best[1])}` })];
    for (const { name, colour, x, y } of this.lines) {
      let near = null;
      for (let i = 0; i < x.length; i++) {
        if (y[i] !== null && (near === null || Math.abs(x[i] - best[1]) < Math.abs(x[near] - best[1]))) near = i;
      }
      // A run that ended long before has no number here.
      if (near === null || Math.abs(this.toX(x[near]) - px) > 24) continue;
      const row = Object.assign(document.createElement("div"), { textContent: `${name}: ${told(y[near])}` });
      row.style.setProperty("--colour", `var(${colour})`);
      rows.push(row);
    }
    this.tip.replaceChildren(...rows);
    this.tip.hidden = false;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(4, Math.min(px + 22, this.box.clientWidth - wide - 4))}px`;
    if (px + 22 + wide > this.box.clientWidth) this.tip.style.left = `${Math.max(4, px - wide)}px`;
    this.tip.style.top = "44px";
  }
}
