// tokenizer.js - CLIP's tokenizer, text to the numbers that a text encoder reads, as src/tokenizer.rs has it.
//
// Byte-pair encoding of lower-cased words, by the tables of tokenizer.json (src/tokenizer/tables.rs). What is a
// letter, its lower case and its composed form is what the browser's Unicode says, which may be newer or older
// than that of `denoir sample`; half a surrogate pair becomes U+FFFD.

// What counts as a word; whatever lies between two is dropped. Digits stand alone.
const WORDS =
    /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
// Where these were not in lower case they were not cut out as they are, and have three parts.
const NAMES = ["<|startoftext|>", "<|endoftext|>"];
const MOST_TOKENS = 2 ** 24;

const bytesOf = (text) => [...new TextEncoder().encode(text)];

export class Tokenizer {
    constructor(tables) {
        this.tables = tables;
        this.joins = new Map();
        tables.merges.forEach(([a, b, joined], rank) => this.joins.set(a * MOST_TOKENS + b, { rank, joined }));
        [this.given, this.normalized] = [tables.given, tables.normalized].map(cutter);
    }

    // The pieces of a text, without beginning and end: whole tokens are cut out first, out of the text as it is
    // and out of the normalized text.
    encode(text) {
        const inner = (rest) => [...rest.matchAll(WORDS)].flatMap(([word]) => this.word(word));
        const outer = (rest) => cut(this.normalized, normal(rest), inner);
        const more = (id) => this.tables.followed[id] ?? 0;
        return cut(this.given, text.toWellFormed(), outer).flatMap((id) =>
            Array.from({ length: 1 + more(id) }, (_, i) => id + i),
        );
    }

    word(word) {
        const parts = NAMES.includes(word) ? [word.slice(0, 2), word.slice(2, -2), word.slice(-2)] : [word];
        return parts.flatMap((part) => this.pieces(bytesOf(part)));
    }

    // Of all pairs of neighbours the most urgent is joined, the leftmost of equals, until none is in the list.
    pieces(bytes) {
        const { within, last, unknown } = this.tables;
        const ids = bytes.map((byte, i) => (i + 1 < bytes.length ? within : last)[byte] ?? unknown);
        for (;;) {
            let [best, at] = [null, 0];
            for (let i = 0; i + 1 < ids.length; i++) {
                const join = this.joins.get(ids[i] * MOST_TOKENS + ids[i + 1]);
                if (join && !(best?.rank <= join.rank)) [best, at] = [join, i];
            }
            if (!best) return ids;
            ids.splice(at, 2, best.joined);
        }
    }

    // A text as exactly `length` ids: beginning, the pieces that fit, end, padding. `cut`: the end of the text
    // that did not fit, empty where all did.
    prompt(text, length) {
        const { bos, eos, pad } = this.tables;
        const pieces = this.encode(text);
        const rest = pieces.splice(Math.max(length - 2, 0));
        const ids = [bos, ...pieces, eos].slice(0, length);
        return { ids: [...ids, ...Array(length - ids.length).fill(pad)], cut: this.spell(rest) };
    }

    // The text that pieces spell: in lower case, with a space after each word.
    spell(pieces) {
        if (!pieces.length) return "";
        const { merges, within, last, whole } = this.tables;
        const parts = new Map(merges.map(([a, b, joined]) => [joined, [a, b]]));
        const spelled = (id) => {
            if (id in whole) return bytesOf(`${whole[id]} `);
            if (parts.has(id)) return parts.get(id).flatMap(spelled);
            return within.includes(id) ? [within.indexOf(id)] : [last.indexOf(id), 32];
        };
        const bytes = Uint8Array.from(pieces.flatMap(spelled));
        const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
        return text.replace(/^\p{White_Space}+|\p{White_Space}+$/gu, "");
    }
}

// NFC, each run of white space as one space, each character in lower case: of the character, not of the text.
function normal(text) {
    const spaced = text.normalize("NFC").replace(/\p{White_Space}+/gu, " ");
    return Array.from(spaced, (character) => character.toLowerCase()).join("");
}

// Finds tokens of a list `[token, id]`, the first of those that begin at one place.
function cutter(tokens) {
    if (!tokens.length) return null;
    const escaped = tokens.map(([token]) => token.replace(/[\^$\\.*+?()[\]{}|/]/g, "\\$&"));
    return { pattern: new RegExp(escaped.join("|"), "gu"), ids: new Map(tokens) };
}

// The ids of the tokens in a text, and those that `rest` gives of the text before, between and after them.
function cut(tokens, text, rest) {
    if (!tokens) return rest(text);
    const all = [];
    let from = 0;
    for (const { 0: token, index } of text.matchAll(tokens.pattern)) {
        all.push(rest(text.slice(from, index)), tokens.ids.get(token));
        from = index + token.length;
    }
    return [...all, rest(text.slice(from))].flat();
}
