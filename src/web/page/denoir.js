// denoir.js - samples a diffusion model in the browser: replays recorded programs with WebGPU.
//
// `denoir web` wrote the folder beside this file:
//
//   program.json          what to run: buffers, pipelines, and programs of dispatches, all sizes known
//   kernels/*.wgsl        the kernels, the same that denoir runs natively
//   weights.safetensors   the flat parameters as the kernels index them, and a table for each sampler
//   tokenizer.json        of models that see texts: the tables of tokenizer.js
//
// There are up to five programs, which share their buffers:
//
//   text     the tokens of a prompt and of the text that guidance leads away from to what the model sees of them
//   start    writes noise into x: Philox, a counter-based generator, so that a seed gives the native samples
//   step     one reverse step: the model predicts, the row `state.row` of the table `denoising` makes the next x
//   guided   the same with classifier-free guidance: the model sees each sample twice in one batch
//   decode   latents to pictures by the decoder of a VAE, where samples are latents
//
// Nothing is decided while they run. A step writes sixteen words and submits the same dispatches again.

import { conditionOf, decode, fit } from "./picture.js";
import { Tokenizer } from "./tokenizer.js";

const STATE_WORDS = 16;
const ALIGN = 256; // of the parameters of each dispatch in their buffer

// What was wrong, for people; any other error is a defect.
export class Problem extends Error {}

// Opens the folder at `url`. `tell(text, share)` hears how far loading is, from 0 to 1.
export async function open(url = "./", tell = () => {}) {
    const file = async (name) => {
        const response = await fetch(new URL(name, new URL(url, document.baseURI))).catch(() => null);
        if (!response?.ok) throw new Problem(`${name} cannot be loaded: serve the folder over http, whole`);
        return response;
    };
    const adapter = await openAdapter(); // without one nothing needs to be loaded
    tell("loading the program", 0);
    const page = await (await file("program.json")).json();
    if (page.format !== 1) throw new Problem(`program.json has format ${page.format}, this page reads 1`);
    const model = new Model(page, await openDevice(adapter, page));
    if (page.text) model.tokenizer = new Tokenizer(await (await file("tokenizer.json")).json());
    await model.build(async (name) => (await file(`kernels/${name}`)).text(), tell);
    model.load(await bytesOf(await file("weights.safetensors"), tell));
    tell("ready", 1);
    return model;
}

async function openAdapter() {
    if (!globalThis.isSecureContext) {
        throw new Problem("Browsers give WebGPU to pages from https or from 127.0.0.1 alone.");
    }
    if (!navigator.gpu) {
        throw new Problem("This browser has no WebGPU. Chrome, Edge, Safari 26 and Firefox 141 or later have it.");
    }
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) {
        throw new Problem("This browser has WebGPU, but no GPU that it may use (see chrome://gpu).");
    }
    return adapter;
}

// A device with the default limits, and larger buffers where the weights need them.
async function openDevice(adapter, page) {
    const largest = Math.max(...Object.values(page.buffers));
    if (largest > adapter.limits.maxBufferSize) {
        const [need, most] = [largest, adapter.limits.maxBufferSize].map((bytes) => Math.ceil(bytes / 2 ** 20));
        throw new Problem(`The model needs a buffer of ${need} MiB; this GPU allows ${most} MiB.`);
    }
    const requiredLimits = largest > 2 ** 28 ? { maxBufferSize: largest } : {};
    return adapter.requestDevice({ requiredLimits });
}

// The bytes of a response, telling how many are there.
async function bytesOf(response, tell) {
    const all = Number(response.headers.get("content-length"));
    // Of a file that a server compresses the length is another.
    if (!response.body || !all || response.headers.get("content-encoding")) return response.arrayBuffer();
    const bytes = new Uint8Array(all);
    let length = 0;
    for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        if (length + value.length > all) throw new Problem("weights.safetensors is longer than was announced");
        bytes.set(value, length);
        length += value.length;
        tell("loading the weights", length / all);
    }
    if (length < all) throw new Problem("weights.safetensors was cut off while it was loaded");
    return bytes.buffer;
}

// The tensors of a safetensors file as Float32Array, by name. Sixteen bits are widened.
export function tensorsOf(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const tensors = {};
    delete header.__metadata__;
    for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(header)) {
        const bytes = buffer.slice(8 + length + from, 8 + length + to);
        tensors[name] = dtype === "F16" ? widened(new Uint16Array(bytes)) : new Float32Array(bytes);
    }
    return tensors;
}

function widened(halves) {
    const values = new Float32Array(halves.length);
    for (let i = 0; i < halves.length; i++) {
        const [sign, exponent, fraction] = [halves[i] >> 15, (halves[i] >> 10) & 31, halves[i] & 1023];
        const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
        values[i] = sign ? -size : size;
    }
    return values;
}

export class Model {
    constructor(page, device) {
        this.page = page;
        this.device = device;
        this.fault = null;
        device.lost.then(({ message }) => this.fail(`The GPU was lost: ${message}`));
        device.addEventListener("uncapturederror", ({ error }) => this.fail(error.message));
    }

    fail(message) {
        this.fault ??= new Problem(message);
    }

    check() {
        if (this.fault) throw this.fault;
    }

    // Makes buffers, pipelines and bind groups: all that a run needs. `text(name)` gives a kernel's file.
    async build(text, tell) {
        const { device, page } = this;
        const { STORAGE, UNIFORM, COPY_SRC, COPY_DST } = GPUBufferUsage;
        this.buffers = {};
        for (const [name, size] of Object.entries(page.buffers)) {
            this.buffers[name] = device.createBuffer({ label: name, size, usage: STORAGE | COPY_SRC | COPY_DST });
        }
        const modules = {};
        for (const { kernel } of page.pipelines) {
            modules[kernel] ??= text(kernel).then((code) => device.createShaderModule({ label: kernel, code }));
        }
        let built = 0;
        this.pipelines = await Promise.all(
            page.pipelines.map(async ({ kernel, entry, params, bindings }) => {
                const entries = bindings.map(({ number, writable }) => [
                    number,
                    writable ? "storage" : "read-only-storage",
                ]);
                if (params.length) entries.unshift([0, "uniform"]);
                const group = device.createBindGroupLayout({
                    entries: entries.map(([binding, type]) => ({
                        binding,
                        visibility: GPUShaderStage.COMPUTE,
                        buffer: { type },
                    })),
                });
                const layout = device.createPipelineLayout({ bindGroupLayouts: [group] });
                const compute = { module: await modules[kernel], entryPoint: entry };
                const label = `${kernel} ${entry}`;
                const pipeline = await device.createComputePipelineAsync({ label, layout, compute }).catch((e) => {
                    throw new Problem(`${label} cannot be compiled: ${e.message}`);
                });
                tell("compiling kernels", ++built / page.pipelines.length);
                return { pipeline, group, params, bindings };
            }),
        );
        this.programs = {};
        for (const [name, submissions] of Object.entries(page.programs)) {
            const count = submissions.flat().length;
            // The words of all dispatches, each at an offset that a binding may begin at.
            const stride = Math.max(...submissions.flat().map((call) => alignUp(4 * call.params.length)), ALIGN);
            const usage = UNIFORM | COPY_DST;
            const uniform = device.createBuffer({ label: `params of ${name}`, size: count * stride, usage });
            let number = 0;
            this.programs[name] = {
                uniform,
                submissions: submissions.map((calls) =>
                    calls.map((call) => this.bind(call, uniform, stride * number++)),
                ),
            };
        }
        this.check();
    }

    // A dispatch with its pipeline and bind group.
    bind(call, uniform, offset) {
        const { pipeline, group, params, bindings } = this.pipelines[call.pipeline];
        const entries = bindings.map(({ number }, i) => {
            const [name, first, size] = call.buffers[i];
            return { binding: number, resource: { buffer: this.buffers[name], offset: first, size } };
        });
        if (params.length) {
            this.device.queue.writeBuffer(uniform, offset, new Uint32Array(call.params));
            const size = Math.ceil(params.length / 4) * 16;
            entries.push({ binding: 0, resource: { buffer: uniform, offset, size } });
        }
        const bindGroup = this.device.createBindGroup({ label: call.label, layout: group, entries });
        return { launch: call.launch, groups: call.groups, pipeline, bindGroup, params, offset };
    }

    // Takes the weights' file: parameters into their buffers, tables for later.
    load(file) {
        this.tables = tensorsOf(file);
        for (const name of ["parameters", "vae", "text encoder"].filter((name) => name in this.buffers)) {
            if (!this.tables[name]) throw new Problem("weights.safetensors is not that of this page");
            // Programs may use less of a store than there is of it.
            const used = this.tables[name].subarray(0, this.page.buffers[name] / 4);
            this.device.queue.writeBuffer(this.buffers[name], 0, used);
            delete this.tables[name];
        }
    }

    // Runs a program once, from begin to end.
    run(name) {
        for (const calls of this.programs[name].submissions) {
            const encoder = this.device.createCommandEncoder();
            const pass = encoder.beginComputePass();
            for (const { pipeline, bindGroup, groups } of calls) {
                pass.setPipeline(pipeline);
                pass.setBindGroup(0, bindGroup);
                pass.dispatchWorkgroups(...groups);
            }
            pass.end();
            this.device.queue.submit([encoder.finish()]);
        }
    }

    // Sets a float parameter of all launches of this name in a program.
    set(program, launch, param, value) {
        const { uniform, submissions } = this.programs[program];
        for (const call of submissions.flat().filter((call) => call.launch === launch)) {
            const at = call.offset + 4 * call.params.indexOf(param);
            this.device.queue.writeBuffer(uniform, at, new Float32Array([value]));
        }
    }

    // Draws the samples `first` to `first + count` of a seed, from noise down to pictures.
    //
    // `walk`: number of the sampler; `labels`: one for each sample, of models with classes; `prompt` and
    // `negative`, which guidance leads away from: of models that see texts; `condition`: of models that see a
    // picture, see `conditionOf`; `guidance`: 1 is none, 0 is without class or picture, and of texts 1. After
    // each step `watch(row, rows)` is called and waited for; where it gives false, sampling stops.
    async sample(request, watch = () => {}) {
        const { seed = 0n, first = 0, walk = 0, labels, prompt = "", negative = "", condition } = request;
        const guidance = Math.max(request.guidance ?? 1, this.page.text ? 1 : 0);
        const { queue } = this.device;
        const { rows, table, start } = this.page.walks[walk];
        const words = (row) => {
            const state = new Uint32Array(STATE_WORDS);
            [state[0], state[1]] = [Number(seed & 0xffffffffn), Number((seed >> 32n) & 0xffffffffn)];
            [state[3], state[8]] = [first, row];
            return state;
        };
        this.check();
        const guided = this.page.guidance !== null && guidance !== 0 && guidance !== 1;
        this.setLabels(labels, guidance, guided);
        if (this.page.text) this.setTexts([prompt, negative]);
        if (this.page.picture) this.setCondition(condition, guidance, guided);
        if (guided) this.set("guided", "guide", "scale", guidance);
        this.set("start", "affine", "factor", start);
        queue.writeBuffer(this.buffers.denoising, 0, this.tables[table]);
        const encoder = this.device.createCommandEncoder();
        encoder.clearBuffer(this.buffers.kept); // no earlier step has left anything
        queue.submit([encoder.finish()]);
        queue.writeBuffer(this.buffers.state, 0, words(0));
        this.run("start");
        for (let row = 0; row < rows; row++) {
            queue.writeBuffer(this.buffers.state, 0, words(row));
            this.run(guided ? "guided" : "step");
            await queue.onSubmittedWorkDone();
            this.check();
            if ((await watch(row, rows)) === false) return;
        }
    }

    setLabels(labels, guidance, guided) {
        const told = this.page.labels;
        if (!told) return;
        let all = labels ?? Array.from({ length: this.page.count }, (_, i) => i % Math.max(told.count, 1));
        const none = all.map((label) => told.null ?? label);
        if (guidance === 0 && told.null !== null) all = none;
        if (guided) all = [...all, ...none];
        this.device.queue.writeBuffer(this.buffers.labels, 0, (told.float ? Float32Array : Uint32Array).from(all));
    }

    // Tells all samples the prompt, and the negative text once more for each, which guidance alone looks at.
    setTexts(texts) {
        const { page, buffers, device, tokenizer } = this;
        const ids = texts.flatMap((text) => tokenizer.prompt(text, page.text.tokens).ids);
        device.queue.writeBuffer(buffers.ids, 0, Uint32Array.from(ids));
        this.run("text");
        const encoder = device.createCommandEncoder();
        for (let i = 0; i < 2 * page.count; i++) {
            const from = i < page.count ? 0 : page.text.bytes;
            encoder.copyBufferToBuffer(buffers.texts, from, buffers.text, i * page.text.bytes, page.text.bytes);
        }
        device.queue.submit([encoder.finish()]);
    }

    // What the model sees of a picture's file; `mask`: of models that fill holes another, white where the hole is.
    async conditionOf(file, mask) {
        const { picture, sample: [h, w] } = this.page;
        const read = async (file, channels) => fit(await decode(file), picture.crop, h, channels);
        const image = await read(file, picture.channels);
        return conditionOf(picture, image, [h, w, picture.channels], mask && (await read(mask, 1)));
    }

    setCondition(condition, guidance, guided) {
        const { picture, count } = this.page;
        if (!condition) throw new Problem("The model draws from a picture: choose one.");
        const none = picture.dropped ? new Float32Array(condition.length) : condition;
        const told = guidance === 0 ? none : condition;
        const all = Array.from({ length: guided ? 2 * count : count }, (_, i) => (i < count ? told : none));
        all.forEach((one, i) => {
            this.device.queue.writeBuffer(this.buffers.condition, i * one.byteLength, one);
        });
        this.known = picture.kind === "mask" && told === condition ? condition : null;
    }

    // Gives samples the pixels that the condition knows.
    keepKnown(samples) {
        const { known, page: { sample: [h, w, c] } } = this;
        if (!known) return samples;
        return samples.map((v, i) => {
            const at = (Math.floor(i / c) % (h * w)) * (c + 1);
            return known[at + c] > 0 ? known[at + (i % c)] : v;
        });
    }

    // The samples [count, h, w, c]; with `predicted`, the clean ones that the last step predicted.
    async samples(predicted = false) {
        return this.read(predicted ? "kept" : "x", this.page.sample);
    }

    // The same as pictures [count, H, W, C] in [-1, 1].
    async pictures(predicted = false) {
        if (!("decode" in this.programs)) return this.keepKnown(await this.samples(predicted));
        const encoder = this.device.createCommandEncoder();
        const bytes = 4 * this.page.count * product(this.page.sample);
        const from = this.buffers[predicted ? "kept" : "x"];
        encoder.copyBufferToBuffer(from, 0, this.buffers.latents, 0, bytes);
        this.device.queue.submit([encoder.finish()]);
        this.run("decode");
        return this.read("picture", this.page.image);
    }

    async read(name, shape) {
        const size = 4 * this.page.count * product(shape);
        const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
        const staging = this.device.createBuffer({ label: "read", size, usage });
        const encoder = this.device.createCommandEncoder();
        encoder.copyBufferToBuffer(this.buffers[name], 0, staging, 0, size);
        this.device.queue.submit([encoder.finish()]);
        await staging.mapAsync(GPUMapMode.READ);
        const values = new Float32Array(staging.getMappedRange().slice(0));
        staging.destroy();
        this.check();
        return values;
    }
}

const alignUp = (bytes) => Math.ceil(bytes / ALIGN) * ALIGN;
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
