// picture.js - what a model sees of a picture, made as `denoir sample --condition` makes it.
//
// The browser decodes the file; of PNG files the numbers are denoir's own, of JPEG files and of transparent ones
// levels may differ by one or two. Cutting and resizing are src/data/picture.rs, conditions
// src/data/condition.rs.

// The pixels of a file: `rgb` [height, width, 3] in bytes, on white where it is transparent.
export async function decode(file) {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    const rgb = new Uint8Array(3 * width * height);
    for (let from = 0, to = 0; from < data.length; from += 4) {
        const alpha = data[from + 3];
        for (let k = 0; k < 3; k++) {
            rgb[to++] = Math.floor((data[from + k] * alpha + 255 * (255 - alpha) + 127) / 255);
        }
    }
    return { width, height, rgb };
}

// The centred square of `crop` pixels, or as large as the picture allows, as [size, size, channels] in [-1, 1]:
// by plain averages to four times the size, then by the bicubic filter.
export function fit({ width, height, rgb }, crop, size, channels) {
    const side = Math.min(width, height, crop || Infinity);
    const factor = Math.max(Math.floor(side / (4 * size)), 1);
    const small = Math.floor(side / factor);
    const [left, top] = [width, height].map((extent) => Math.floor((extent - small * factor) / 2));
    const grey = ([r, g, b]) => Math.floor((2126 * r + 7152 * g + 722 * b) / 10000);
    const byte = (x, y, k) => {
        const at = 3 * (y * width + x);
        return channels === 1 ? grey(rgb.subarray(at, at + 3)) : rgb[at + k];
    };
    let picture = averages([small, small, channels], factor, (x, y, k) => byte(left + x, top + y, k));
    picture = picture.map((v) => Math.floor(v + 0.5));
    if (small !== size) {
        const taps = Array.from({ length: size }, (_, i) => reducing(i, small, size));
        picture = filtered(filtered(picture, small, small * channels, taps), small, channels, taps);
    }
    return picture.map((v) => Math.round(Math.min(Math.max(v, 0), 255)) * (2 / 255) - 1);
}

// The condition [h, w, channels] of an `image` [h, w, c], or of what stands in place of one. `mask` [h, w]: above
// 0 where the hole is.
export function conditionOf({ kind, factor, noise, hole }, image, [h, w, c], mask) {
    const pixels = Array.from({ length: h * w }, (_, i) => image.subarray(c * i, c * (i + 1)));
    const mean = (pixel) => pixel.reduce((a, b) => a + b) / c;
    const [top, left, bottom, right] = hole ?? [];
    const isHole = (y, x) => (mask ? mask[y * w + x] > 0 : y >= top && y < bottom && x >= left && x < right);
    const known = (i) => (isHole(Math.floor(i / w), i % w) ? 0 : 1);
    switch (kind) {
        case "grey":
            return Float32Array.from(pixels, mean);
        case "mask":
            return Float32Array.from(pixels.flatMap((pixel, i) => [...pixel.map((v) => v * known(i)), known(i)]));
        case "low_resolution": {
            const [rows, columns] = [h / factor, w / factor];
            const low = averages([rows, columns, c], factor, (x, y, k) => image[(y * w + x) * c + k]);
            const taps = (side) => Array.from({ length: side * factor }, (_, i) => enlarging(i, side, factor));
            const out = filtered(filtered(low, columns, c, taps(columns)), rows, w * c, taps(rows));
            if (!noise) return out;
            return Float32Array.from({ length: h * w * (c + 1) }, (_, i) =>
                i % (c + 1) < c ? out[Math.floor(i / (c + 1)) * c + (i % (c + 1))] : 0,
            );
        }
        default:
            return image;
    }
}

// The means of squares of `factor` pixels, [h, w, c].
function averages([h, w, c], factor, value) {
    return Float32Array.from({ length: h * w * c }, (_, i) => {
        const [x, y, k] = [Math.floor(i / c) % w, Math.floor(i / (w * c)), i % c];
        let sum = 0;
        for (let j = 0; j < factor * factor; j++) {
            sum += value(x * factor + (j % factor), y * factor + Math.floor(j / factor), k);
        }
        return sum / (factor * factor);
    });
}

// The bicubic filter (Keys 1981, a = -1/2) at a distance.
function cubic(distance) {
    const d = Math.abs(distance);
    if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
    return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

// The places and weights of what becomes pixel `i` of `to`, out of `from`; past the edges there is nothing.
function reducing(i, from, to) {
    const [at, wide] = [((i + 0.5) * from) / to, Math.max(from / to, 1)];
    const first = Math.max(Math.floor(at - 2 * wide), 0);
    const places = Array.from({ length: Math.min(Math.ceil(at + 2 * wide), from) - first }, (_, j) => first + j);
    const weights = places.map((place) => cubic((place + 0.5 - at) / wide));
    const sum = weights.reduce((a, b) => a + b);
    return { places, weights: weights.map((weight) => weight / sum) };
}

// The same, of `factor` times as many pixels; the edges go on.
function enlarging(i, from, factor) {
    const at = (i + 0.5) / factor - 0.5;
    const places = [-1, 0, 1, 2].map((j) => Math.floor(at) + j);
    const inside = (place) => Math.min(Math.max(place, 0), from - 1);
    return { places: places.map(inside), weights: places.map((place) => cubic(place - at)) };
}

// Sums of the `length` values of each row that lie `step` apart.
function filtered(values, length, step, taps) {
    const out = new Float32Array((values.length / length) * taps.length);
    let at = 0;
    for (let row = 0; row < values.length; row += length * step) {
        for (const { places, weights } of taps) {
            for (let k = 0; k < step; k++) {
                out[at++] = places.reduce((sum, place, j) => sum + weights[j] * values[row + place * step + k], 0);
            }
        }
    }
    return out;
}
