// page.js - the controls and the picture around denoir.js.

import { Problem, open } from "./denoir.js";

const at = (id) => document.getElementById(id);
const GAP = 1; // pixels between pictures, as in denoir's own grids

// Pictures [N, H, W, C] in [-1, 1] side by side on the canvas, as denoir writes them into PNG files.
function paint(canvas, pictures, count, [h, w, c]) {
    const columns = Math.ceil(Math.sqrt(count));
    const rows = Math.ceil(count / columns);
    [canvas.width, canvas.height] = [columns * (w + GAP) - GAP, rows * (h + GAP) - GAP];
    const context = canvas.getContext("2d");
    const image = context.createImageData(w, h);
    for (let n = 0; n < count; n++) {
        for (let pixel = 0; pixel < h * w; pixel++) {
            for (let channel = 0; channel < 3; channel++) {
                const v = pictures[(n * h * w + pixel) * c + Math.min(channel, c - 1)];
                image.data[4 * pixel + channel] = Math.round(255 * Math.min(Math.max(v / 2 + 0.5, 0), 1));
            }
            image.data[4 * pixel + 3] = 255;
        }
        context.putImageData(image, (n % columns) * (w + GAP), Math.floor(n / columns) * (h + GAP));
    }
}

function tell(text, share, bad = false) {
    at("status").textContent = text;
    at("status").classList.toggle("bad", bad);
    if (share !== undefined) at("progress").value = share;
}

function fill(select, names) {
    select.replaceChildren(...names.map((name, value) => new Option(name, value)));
}

function describe({ page, device }) {
    document.title = `${page.name} - denoir`;
    at("name").textContent = page.name;
    at("about").textContent = page.about;
    at("seed").value = page.seed;
    fill(at("walk"), page.walks.map(({ sampler, steps }) => `${sampler}, ${steps} steps`));
    if (page.labels?.count) {
        const name = (i) => page.labels.names[i] ?? `${i}`;
        fill(at("class"), Array.from({ length: page.labels.count }, (_, i) => name(i)));
        at("class").prepend(new Option("all in turn", "all", true, true));
        at("class-label").hidden = false;
    }
    at("value-label").hidden = !(page.labels && page.labels.count === 0);
    if (page.text) {
        for (const label of document.querySelectorAll(".text")) label.hidden = false;
        at("guidance").min = 1;
    }
    at("picture").required = !!page.picture;
    at("picture-label").hidden = !page.picture;
    at("mask-label").hidden = page.picture?.kind !== "mask";
    if (page.guidance !== null) {
        Object.assign(at("guidance"), { max: Math.max(8, page.guidance), step: "any", value: page.guidance });
        at("scale").value = +(+at("guidance").value).toFixed(2);
        at("guidance").addEventListener("input", () => (at("scale").value = at("guidance").value = (+at("guidance").value).toFixed(2)));
        at("guidance-label").hidden = false;
    }
    const { vendor, architecture, description } = device.adapterInfo ?? {};
    const dispatches = page.programs.step.flat().length;
    at("facts").textContent =
        `${page.parameters.toLocaleString("en")} parameters, ${page.count} samples together, ` +
        `${dispatches} dispatches a step, ${page.pipelines.length} pipelines` +
        ` on ${[vendor, architecture || description].filter(Boolean).join(" ") || "a GPU without a name"}.` +
        ` Made with denoir ${page.denoir}; computed here, nothing is sent anywhere.`;
}

// What the controls say.
async function request(model) {
    const { page } = model;
    let labels;
    if (page.labels?.count && at("class").value !== "all") labels = Array(page.count).fill(+at("class").value);
    if (page.labels && page.labels.count === 0) labels = Array(page.count).fill(+at("value").value);
    const guidance = page.guidance === null ? 1 : +at("guidance").value;
    const seed = BigInt(at("seed").value);
    if (seed >> 64n) throw new Problem("The seed must be below 2^64.");
    const [prompt, negative] = [at("prompt").value, at("negative").value];
    const [[picture], [mask]] = [at("picture").files, at("mask").files];
    const unread = () => {
        throw new Problem("The picture or its mask cannot be read: give a PNG or JPEG file.");
    };
    const condition = picture && (await model.conditionOf(picture, mask).catch(unread));
    return { seed, walk: +at("walk").value, labels, guidance, prompt, negative, condition };
}

// The end of texts that the model does not see, in words.
function cutOff({ page, tokenizer }) {
    const texts = page.text ? [at("prompt").value, at("negative").value] : [];
    const cut = texts.map((text) => tokenizer.prompt(text, page.text.tokens).cut).filter(Boolean);
    if (!cut.length) return "";
    return `The model sees ${page.text.tokens} tokens of a text, and not this part: ${cut.join("; ")}`;
}

// Draws what the controls say; `stopped()` is asked after each step.
async function draw(model, stopped) {
    const { page } = model;
    const show = async (predicted) => {
        paint(at("canvas"), await model.pictures(predicted), page.count, page.image);
    };
    at("cut").textContent = cutOff(model);
    const began = performance.now();
    let shown = -Infinity;
    await model.sample(await request(model), async (row, rows) => {
        if (stopped()) return false;
        const now = performance.now();
        const seconds = (now - began) / 1000 / (row + 1);
        tell(`step ${row + 1} of ${rows}, ${seconds.toPrecision(3)} s a step`, (row + 1) / rows);
        // Ten pictures a second; reading one back costs time.
        if (row + 1 < rows && now - shown < 100) return;
        await show(at("show").value === "x0" && row + 1 < rows);
        shown = performance.now();
    });
}

async function main() {
    const model = await open("./", tell);
    describe(model);
    tell("ready: draw", 0);
    const button = at("draw");
    let drawing = false;
    let stop = false;
    at("controls").addEventListener("submit", async (event) => {
        event.preventDefault();
        stop = drawing;
        if (drawing) return;
        drawing = true;
        button.textContent = "Stop";
        await draw(model, () => stop).catch(failed);
        button.textContent = "Draw";
        drawing = false;
    });
    button.disabled = false;
}

function failed(error) {
    tell(error instanceof Problem ? error.message : `defect in this page: ${error.stack ?? error}`, 0, true);
}

main().catch(failed);
