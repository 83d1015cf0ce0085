// What the page knows of runs, as the server tells it, and how it is shown.

const $ = (id) => document.getElementById(id);
const element = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || "", textContent: text === undefined ? "" : text });
const token = new URLSearchParams(location.search).get("token");
const withToken = (url) => (token && !url.startsWith("data:") ? url + (url.includes("?") ? "&" : "?") + "token=" + encodeURIComponent(token) : url);
const runs = new Map();
const charts = new Map();

const QUARTERS = ["first quarter of t (least noise)", "second quarter", "third quarter", "last quarter (most noise)"];
const quarters = (family, separator) => QUARTERS.map((name, i) => ({ name, column: `${family}${separator}${i + 1}`, colour: `--q${i}` }));
// Title, table, columns; smoothed: running means over single steps; logarithmic where that is asked for.
const PLOTS = [
  { title: "loss", columns: [{ column: "loss" }], raw: true, smooth: true, log: true },
  { title: "loss without weights by quarter of t", columns: quarters("loss_by_t", "/"), smooth: true, log: true },
  { title: "loss of held-out images, EMA", table: "evaluations", columns: [{ column: "evaluation/loss" }], log: true },
  { title: "loss of held-out images by quarter of t", table: "evaluations", columns: quarters("evaluation/loss_by_t", "_"), log: true },
  { title: "weighted loss by quarter of t", columns: quarters("weighted_by_t", "/"), smooth: true, log: true },
  { title: "bound", unit: "bits/dim", columns: [{ column: "bound" }], smooth: true, log: true },
  { title: "reconstruction", columns: [{ column: "reconstruction" }], raw: true, smooth: true, log: true },
  { title: "KL, before its weight", columns: [{ column: "kl" }], smooth: true, log: true },
  { title: "distance to the codes", columns: [{ column: "codebook" }], smooth: true, log: true },
  { title: "perplexity of the codes", columns: [{ column: "perplexity" }], smooth: true },
  { title: "accuracy", columns: [{ column: "accuracy" }], smooth: true },
  { title: "accuracy by quarter of t", columns: quarters("accuracy_by_t", "/"), smooth: true },
  { title: "PSNR of held-out images", unit: "dB", table: "evaluations", columns: [{ column: "evaluation/psnr" }] },
  { title: "SSIM of held-out images", table: "evaluations", columns: [{ column: "evaluation/ssim" }] },
  { title: "norm of the gradient", columns: [{ column: "grad_norm" }], raw: true, smooth: true, log: true },
  { title: "learning rate", columns: [{ column: "lr" }] },
  { title: "images a second, so far", columns: [{ column: "images_per_s" }] },
  { title: "memory of the process", unit: "MB", columns: [{ column: "memory_mb" }] },
  { title: "GPU time of a batch", unit: "ms", columns: [{ column: "device_ms" }], smooth: true },
];

// Adds rows to a table; columns that come or stay away are filled with nulls.
function extend(table, more) {
  const before = table.step.length;
  for (const step of more.step) table.step.push(step);
  const names = new Set([...Object.keys(table.columns), ...Object.keys(more.columns)]);
  for (const name of names) {
    const column = table.columns[name] || (table.columns[name] = new Array(before).fill(null));
    const values = more.columns[name] || new Array(more.step.length).fill(null);
    for (const value of values) column.push(value);
  }
}

const empty = () => ({ step: [], columns: {} });

function take(update) {
  for (const told of update.runs) {
    let run = runs.get(told.id);
    if (!run) {
      run = { id: told.id, shown: true, colour: `--c${told.id % 8}`, head: {}, pictures: [] };
      runs.set(told.id, run);
    }
    if (told.anew || !run.metrics) Object.assign(run, { metrics: empty(), evaluations: empty() });
    extend(run.metrics, told.metrics);
    extend(run.evaluations, told.evaluations);
    run.now = told.now;
    if (told.head) Object.assign(run, { head: told.head, headNew: true });
    if (told.pictures) Object.assign(run, { pictures: told.pictures, picturesNew: true });
  }
  later();
}

let waiting = false;
function later() {
  if (waiting) return;
  waiting = true;
  // Not a frame: a page in the background has none.
  setTimeout(() => { waiting = false; showAll(); }, 50);
}

function duration(seconds) {
  if (!isFinite(seconds)) return "-";
  const s = Math.round(seconds);
  const [h, m] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60)];
  if (h >= 48) return `${Math.round(h / 24)} days`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s % 60} s` : `${s} s`;
}

// Steps a second over the last minute, or the last steps where these took longer.
function pace(run) {
  const { step, columns: { seconds = [] } } = run.metrics;
  const last = step.length - 1;
  let first = last;
  while (first > 0 && seconds[first - 1] !== null && seconds[first - 1] < seconds[first] && (last - first < 5 || seconds[last] - seconds[first] < 60)) first--;
  const took = seconds[last] - seconds[first];
  return took > 0 ? (step[last] - step[first]) / took : NaN;
}

function bestOf(run) {
  const [loss, psnr] = [run.evaluations.columns["evaluation/loss"], run.evaluations.columns["evaluation/psnr"]];
  const values = (loss || psnr || []).map((v, i) => [v, run.evaluations.step[i]]).filter(([v]) => v !== null);
  if (!values.length) return null;
  const best = values.reduce((a, b) => ((loss ? b[0] < a[0] : b[0] > a[0]) ? b : a));
  return `${told(best[0])}${loss ? "" : " dB"} at ${best[1].toLocaleString("en")}`;
}

function showRun(run) {
  if (!run.card) {
    run.card = element("div", "card run");
    run.card.style.setProperty("--colour", `var(${run.colour})`);
    const top = element("div", "top");
    run.title = element("button", "name");
    run.title.title = "show or hide its curves";
    run.title.onclick = () => { run.shown = !run.shown; later(); };
    run.state = element("span", "state");
    top.append(run.title, run.state);
    run.progress = element("progress");
    run.facts = element("dl");
    run.card.append(top, run.progress, run.facts);
    $("runs").append(run.card);
  }
  const { head } = run;
  run.card.classList.toggle("off", !run.shown);
  run.title.setAttribute("aria-pressed", run.shown);
  run.title.textContent = head.name || "?";
  run.state.textContent = head.state || "";
  run.state.className = `state ${head.state || ""}`;
  run.progress.max = head.steps || 1;
  run.progress.value = Math.min(run.now, head.steps || 1);
  const { columns } = run.metrics;
  const last = (name) => (columns[name] || []).findLast((v) => v !== null);
  const losses = mean(columns.loss || [], (columns.loss || []).length / 100);
  const rate = pace(run);
  const running = head.state === "running";
  const facts = [
    ["step", `${run.now.toLocaleString("en")} of ${(head.steps || 0).toLocaleString("en")}`],
    ["loss, running mean", told(losses[losses.length - 1])],
    ["held out, best", bestOf(run)],
    ["steps/s", told(rate)],
    ["images/s", told(rate * head.images_of_a_step)],
    running ? ["left", duration((head.steps - run.now) / rate)] : ["took", duration(last("seconds"))],
    ["learning rate", told(last("lr"))],
    ["gradient", told(last("grad_norm"))],
    ["memory", last("memory_mb") && `${Math.round(last("memory_mb")).toLocaleString("en")} MB`],
    ["system", head.system],
  ];
  run.facts.replaceChildren(...facts.filter(([, v]) => v).map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    return pair;
  }));
}

const isShown = (run) => run.shown && run.metrics.step.length > 0;

// The lines of a plot; several runs have a plot for each column.
function linesOf(plot, columns, several) {
  const lines = [];
  const axis = $("axis").value;
  for (const run of [...runs.values()].filter(isShown)) {
    const table = run[plot.table || "metrics"];
    const seconds = run.metrics.columns.seconds || [];
    const hours = new Map(run.metrics.step.map((step, i) => [step, seconds[i] / 3600]));
    const x = axis === "step" ? table.step : table.step.map((step) => hours.get(step) ?? NaN);
    for (const { name, column, colour } of columns) {
      const values = table.columns[column];
      if (!values || !values.some((v) => v !== null)) continue;
      const percent = Number($("smooth").value);
      const y = plot.smooth && percent > 0 ? mean(values, Math.max(10, (percent / 100) * values.length)) : values;
      const label = several ? run.head.name : name || plot.title;
      const usable = axis === "step" ? y : y.map((v, i) => (isNaN(x[i]) ? null : v));
      lines.push({ name: label, colour: several ? run.colour : colour || run.colour, x, y: usable, raw: plot.raw && !several && values, dots: plot.table && values.length < 60 });
    }
  }
  return lines;
}

function showCharts() {
  const several = [...runs.values()].filter(isShown).length > 1;
  const xName = $("axis").value === "step" ? "step" : "hours";
  const wanted = [];
  for (const plot of PLOTS) {
    const parts = several && plot.columns.length > 1
      ? plot.columns.map((column) => [`${plot.title.replace(/ by quarter.*/, "")}, ${column.name}`, [column]])
      : [[plot.title, plot.columns]];
    for (const [title, columns] of parts) {
      const lines = linesOf(plot, columns, several);
      if (!lines.length) continue;
      if (!charts.has(title)) charts.set(title, new Chart(title, plot.unit));
      wanted.push([charts.get(title), lines, plot.log && $("log").checked]);
    }
  }
  const boxes = wanted.map(([chart]) => chart.box);
  const now = [...$("charts").children];
  if (boxes.length !== now.length || boxes.some((box, i) => box !== now[i])) $("charts").replaceChildren(...boxes);
  for (const [chart, lines, log] of wanted) chart.show(lines, log, xName);
}

function showPictures(run) {
  if (!run.picturesNew) return;
  run.picturesNew = false;
  const grids = run.pictures.filter((p) => p.step !== null);
  const others = run.pictures.filter((p) => p.step === null);
  const all = grids.concat(others);
  if (!all.length) return run.film?.box.remove();
  const old = run.film;
  const follows = !old || old.follows;
  const film = { box: element("div", "card film"), follows, buttons: [] };
  const title = element("h2", "", run.head.name || "");
  title.append(element("span", "", ` — ${grids.length} ${grids.length === 1 ? "picture" : "pictures"} over the steps`));
  const [view, side, strip] = [element("div", "view"), element("div", "side"), element("div", "strip")];
  const image = element("img");
  const label = element("div");
  const slider = Object.assign(element("input"), { type: "range", min: 0, max: Math.max(0, grids.length - 1), value: 0 });
  slider.setAttribute("aria-label", "picture");
  const play = element("button", "", "play");
  play.type = "button";
  const show = (i, chosen) => {
    const picture = all[i];
    film.at = picture.name;
    if (chosen) film.follows = i === grids.length - 1;
    image.src = withToken(picture.url);
    image.alt = label.textContent = picture.step === null ? picture.name : `step ${picture.step.toLocaleString("en")}`;
    if (picture.step !== null) slider.value = i;
    film.buttons.forEach((b, k) => b.setAttribute("aria-current", k === i));
    film.chosen = film.buttons[i];
    middle();
  };
  // Pictures that arrive move those after them.
  const middle = () => {
    const button = film.chosen;
    if (button?.offsetParent) strip.scrollLeft = button.offsetLeft - strip.offsetLeft - (strip.clientWidth - button.offsetWidth) / 2;
  };
  film.buttons = all.map((picture, i) => {
    const button = element("button");
    button.type = "button";
    const small = Object.assign(element("img"), { loading: "lazy", alt: "", onload: () => film.moved || middle() });
    small.src = withToken(picture.url);
    button.append(small, element("span", "", picture.step === null ? picture.name.replace(".png", "") : picture.step.toLocaleString("en")));
    button.onclick = () => show(i, true);
    return button;
  });
  slider.oninput = () => show(Number(slider.value), true);
  let timer = null;
  play.onclick = () => {
    if (timer) { clearInterval(timer); timer = null; play.textContent = "play"; return; }
    let i = Number(slider.value) >= grids.length - 1 ? -1 : Number(slider.value);
    play.textContent = "stop";
    timer = setInterval(() => {
      i += 1;
      show(i, true);
      if (i >= grids.length - 1) play.onclick();
    }, 250);
  };
  strip.onpointerdown = strip.onwheel = () => { film.moved = true; };
  strip.append(...film.buttons);
  side.append(label, ...(grids.length > 1 ? [slider, play] : []));
  view.append(image, side);
  film.box.append(title, view, strip);
  if (old) old.box.replaceWith(film.box); else $("pictures").append(film.box);
  run.film = film;
  const kept = follows ? -1 : all.findIndex((p) => p.name === old.at);
  show(kept >= 0 ? kept : Math.max(0, grids.length - 1), false);
}

// Tables for people: open ones stay open when a run is told anew.
const TABLES = [
  ["recipe", (head) => head.recipe || "its recipe cannot be read"],
  ["plan of a step", (head) => head.plan],
  ["profile of a step", (head) => head.profile],
];

function showTables(run) {
  if (!run.headNew) return;
  run.headNew = false;
  run.tables ||= new Map();
  for (const [title, text] of TABLES) {
    if (!text(run.head)) continue;
    if (!run.tables.has(title)) {
      run.tables.set(title, element("details", "card"));
      $("tables").append(run.tables.get(title));
    }
    const summary = element("summary", "", `${title}, ${run.head.name}`);
    const own = element("ul", "own");
    if (title === "recipe") own.append(...run.head.own_keys.map((key) => element("li", "", key)));
    if (own.children.length) summary.append(own);
    run.tables.get(title).replaceChildren(summary, element("pre", "", text(run.head)));
  }
}

function showAll() {
  for (const run of runs.values()) {
    showRun(run);
    showTables(run);
    showPictures(run);
  }
  $("smoothed").textContent = `${$("smooth").value} %`;
  showCharts();
  const running = [...runs.values()].find((run) => run.head.state === "running");
  const percent = running && running.head.steps ? `${Math.floor((100 * running.now) / running.head.steps)} % ` : "";
  document.title = `${percent}${runs.size === 1 ? [...runs.values()][0].head.name : `${runs.size} runs`} — denoir`;
}

$("controls").onsubmit = (e) => e.preventDefault();
$("controls").oninput = later;
window.addEventListener("resize", later);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);

function link(state, text) {
  $("link").className = `link ${state}`;
  $("link").textContent = text;
}

const data = JSON.parse($("data").textContent);
if (data) {
  link("", "report");
  take(data);
} else {
  const events = new EventSource(withToken("events"));
  events.onopen = () => link("live", "live");
  events.onmessage = (e) => take(JSON.parse(e.data));
  events.onerror = () => link("lost", events.readyState === EventSource.CLOSED ? "refused" : "connection lost, trying again");
}
