//! Weight files that mean harm, or were damaged: each is refused by name, none by a crash or a flood of
//! memory.

use std::fs;
use std::io::Cursor;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use denoir::weights::{Weights, pickle, safetensors, torch, zip};

use crate::zip_writer::zip_file;

/// A safetensors file of this header and so many bytes of zeros.
pub fn safetensors_file(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(std::iter::repeat_n(0, bytes));
    file
}

/// A pickle of one tensor `w` of these sizes and strides over a storage called 0.
pub fn pickle_of(class: &str, offset: u8, sizes: &[u8], strides: &[u8]) -> Vec<u8> {
    let tuple = |items: &[u8]| -> Vec<u8> {
        let ints: Vec<u8> = items.iter().flat_map(|&i| [b'K', i]).collect();
        [&b"("[..], &ints, b"t"].concat()
    };
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let storage =
        [&text("storage")[..], b"ctorch\n", class.as_bytes(), b"\n", &text("0"), &text("cpu")].concat();
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &storage,
        b"K\x04tQK",
        &[offset],
        &tuple(sizes),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

/// The archive that torch.save would make of a pickle and a storage.
pub fn torch_file(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip_file(&[("a/data.pkl", pickle), ("a/data/0", storage)], 0)
}

/// What a parser says of bytes.
fn says<T>(list: impl Fn(&mut Cursor<&[u8]>, u64) -> Result<T, String>, bytes: &[u8], wanted: &[&str]) {
    let Err(reason) = list(&mut Cursor::new(bytes), bytes.len() as u64) else {
        panic!("accepted, and should say {wanted:?}");
    };
    for wanted in wanted {
        assert!(reason.contains(wanted), "should say {wanted:?}: {reason}");
    }
}

#[test]
fn headers_of_safetensors() {
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let file = |tensors: &[String], bytes| safetensors_file(&format!("{{{}}}", tensors.join(",")), bytes);
    let whole = file(&[tensor("a", "F32", "[2,2]", 0, 16), tensor("b", "BF16", "[3]", 16, 22)], 22);
    let listing = safetensors::list(&mut Cursor::new(&whole[..]), whole.len() as u64).unwrap();
    assert_eq!(listing.keys().collect::<Vec<_>>(), ["a", "b"]);

    let list = |source: &mut Cursor<&[u8]>, length| safetensors::list(source, length);
    let overlapping = [tensor("a", "F32", "[2,2]", 0, 16), tensor("b", "F32", "[2]", 8, 16)];
    says(list, &file(&overlapping, 16), &["no safetensors header"]);
    says(list, &file(&[tensor("a", "F32", "[1]", 0, 4), tensor("b", "F32", "[1]", 8, 12)], 12), &["header"]);
    says(list, &file(&[tensor("a", "F32", "[4]", 0, 16)], 8), &["16 bytes", "8 for them"]);
    says(list, &file(&[tensor("a", "F32", "[4]", 0, 16)], 17), &["16 bytes", "17 for them"]);
    says(list, &file(&[tensor("a", "F32", "[4]", 0, u64::MAX)], 16), &["header"]);
    says(list, &file(&[tensor("a", "F32", "[4]", 16, 0)], 16), &["header"]);
    let endless = format!("[{0},{0},4]", u64::MAX);
    says(list, &file(&[tensor("a", "F32", &endless, 0, 16)], 16), &["header"]);
    says(list, &file(&[tensor("a", "I64", "[2]", 0, 16)], 16), &["a holds I64"]);
    says(list, &file(&[tensor("a", "F32", "[-1]", 0, 16)], 16), &["header"]);
    let mut enormous = whole.clone();
    enormous[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    says(list, &enormous, &["header would have 1152921504606846976 bytes"]);
    let mut long = (9_u64 << 20).to_le_bytes().to_vec();
    long.resize((9 << 20) + 8, b' ');
    says(list, &long, &["more than the"]);
    says(list, &whole[..7], &["too few"]);
    says(list, &[], &["too few"]);
    says(list, &safetensors_file(&"[".repeat(100_000), 0), &["header"]);
    says(list, &safetensors_file("\u{0}", 0), &["header"]);
}

#[test]
fn archives() {
    let list = |source: &mut Cursor<&[u8]>, length| zip::entries(source, length);
    let whole = zip_file(&[("one", b"1"), ("two", b"22")], 0);
    let entries = zip::entries(&mut Cursor::new(&whole[..]), whole.len() as u64).unwrap();
    assert_eq!(entries.iter().map(|e| e.size).collect::<Vec<_>>(), [1, 2]);
    // A bomb must be compressed, or let its entries share bytes.
    says(list, &zip_file(&[("one", b"1")], 8), &["one is compressed"]);
    let mut shared = zip_file(&[("one", b"1111"), ("two", b"2222")], 0);
    let second = shared.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    shared[second + 42..second + 46].fill(0);
    says(list, &shared, &["share bytes"]);
    let mut grown = whole.clone();
    let first = grown.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    for at in [20, 24] {
        grown[first + at..first + at + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    }
    says(list, &grown, &["one would have 2147483647 bytes"]);
    let mut wide = whole.clone();
    wide[first + 20..first + 28].fill(0xff);
    says(list, &wide, &["one has no sizes"]);
    let mut secret = whole.clone();
    secret[first + 8] = 1;
    says(list, &secret, &["one is encrypted"]);
    says(list, &zip_file(&[("one", b"1"), ("one", b"2")], 0), &["holds one twice"]);
    let mut count = whole.clone();
    let end = count.len() - 12;
    count[end] = 9;
    says(list, &count, &["9 entries and lists 2"]);
    let mut directory = whole.clone();
    let size = directory.len() - 10;
    directory[size..size + 4].fill(0xfe);
    says(list, &directory, &["its directory would have"]);
    says(list, b"PK\x03\x04", &["no zip archive"]);
    says(list, &[], &["no zip archive"]);
}

#[test]
fn pickles_run_nothing() {
    let refuses = |bytes: &[u8], wanted: &str| {
        let reason = pickle::load(bytes).unwrap_err();
        assert!(reason.contains(wanted), "should say {wanted:?}: {reason}");
    };
    // os.system("..."), as every tutorial of pickle has it.
    refuses(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.", "would call posix.system");
    refuses(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "would call builtins.eval");
    refuses(b"\x80\x02ctorch\nload\n.", "would call torch.load");
    refuses(b"\x80\x02ctorch.hub\nFloatStorage\n.", "would call torch.hub.FloatStorage");
    refuses(b"\x80\x02ctorch\n__import__('os').FloatStorage\n.", "would call torch.__import__");
    // The same in protocol 0, and by the opcodes that make objects.
    refuses(b"cos\nsystem\n(S'true'\ntR.", "would call os.system");
    refuses(b"(S'true'\nios\nsystem\n.", "opcode 0x53");
    refuses(b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode 0x81");
    refuses(b"\x80\x02\x82\x01.", "opcode 0x82");
    refuses(b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with odd arguments");
    refuses(b"\x80\x02K\x01)R.", "no function of weights");
    refuses(b"\x80\x02]}b.", "state of something else");
    refuses(b"\x80\x02K\x01.", "no dictionary");
    refuses(b"\x80\x02}X\x01\0\0\0aK\x01s.", "holds \"a\", which is no tensor");
    refuses(b"\x80\x02}K\x01K\x01s.", "something else than text");
    refuses(b"\x80\x09}.", "protocol 9");
    refuses(b"\x80\x02}", "cut short");
    refuses(b"\x80\x02h\x07.", "recalls 7");
    refuses(b"\x80\x02K\x01(\x85.", "more from its stack");
    refuses(b"\x80\x02u.", "a mark that is not there");
    refuses(b"\x80\x02X\xff\xff\xff\xffa.", "cut short");
    // A list in itself, half a million deep: Python's interpreter of pickles runs out of stack on such.
    let deep = |depth| {
        let mut deep = b"\x80\x02".to_vec();
        deep.extend(std::iter::repeat_n(b']', depth));
        deep.extend(std::iter::repeat_n(b'a', depth - 1));
        deep.push(b'.');
        deep
    };
    refuses(&deep(500_000), "no dictionary");
    refuses(&deep(1_000_000), "more than 1048576 opcodes");
    refuses(b"\x80\x02]q\0h\0a.", "no dictionary");
    assert!(pickle::load(b"\x80\x02}.").unwrap().is_empty());
}

/// One text and one tuple of arguments, named a hundred thousand times: each stands in memory once, and the
/// last tensor of a name is the one that counts.
#[test]
fn a_pickle_cannot_multiply_its_texts() {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let pickle = |name: &str| {
        let start = [
            &b"\x80\x02}("[..],
            &text(name),
            b"q\x00ctorch._utils\n_rebuild_tensor_v2\nq\x04((",
            &text("storage"),
            b"ctorch\nFloatStorage\nh\x00",
            &text("cpu"),
            b"K\x01tQK\x00K\x01\x85q\x02h\x02tq\x03R",
        ];
        [&start.concat(), &b"h\x00h\x04h\x03R".repeat(100_000)[..], b"u."].concat()
    };
    let tensors = pickle::load(&pickle(&"k".repeat(1024))).unwrap();
    assert_eq!((tensors.len(), tensors[0].0.len(), tensors[0].1.key.len()), (1, 1024, 1024));
    let long = pickle::load(&pickle(&"k".repeat(1025))).unwrap_err();
    assert!(long.contains("has a text of 1025 bytes"), "{long}");
    let name = [&b"\x80\x02c"[..], &b"m".repeat(5000), b"\nx\n."].concat();
    assert!(pickle::load(&name).unwrap_err().contains("has a name of 5000 bytes"));
}

#[test]
fn tensors_outside_their_storages() {
    let list = |source: &mut Cursor<&[u8]>, length| torch::list(source, length);
    let whole = torch_file(&pickle_of("FloatStorage", 0, &[2, 2], &[2, 1]), &[0; 16]);
    let listing = torch::list(&mut Cursor::new(&whole[..]), whole.len() as u64).unwrap();
    assert_eq!(listing["w"].shape, [2, 2]);
    let of = |class: &str, offset, sizes: &[u8], strides: &[u8]| {
        torch_file(&pickle_of(class, offset, sizes, strides), &[0; 16])
    };
    says(list, &of("FloatStorage", 1, &[2, 2], &[2, 1]), &["w", "does not lie in its storage"]);
    says(list, &of("FloatStorage", 0, &[2, 3], &[3, 1]), &["does not lie in its storage"]);
    says(list, &of("DoubleStorage", 0, &[2, 2], &[2, 1]), &["does not lie in its storage of 2"]);
    says(list, &of("FloatStorage", 0, &[2, 2], &[2]), &["does not lie in its storage"]);
    says(list, &of("LongStorage", 0, &[2], &[1]), &["w is a LongStorage"]);
    // One number, said to be ten billion.
    says(list, &of("FloatStorage", 0, &[255; 4], &[0; 4]), &["more elements than the file has bytes"]);
    says(list, &of("FloatStorage", 0, &[1; 9], &[1; 9]), &["9 dimensions"]);
    let pickle = pickle_of("FloatStorage", 0, &[1], &[1]);
    says(list, &zip_file(&[("a/data.pkl", &pickle)], 0), &["storage \"0\", which is not in the file"]);
    says(list, &zip_file(&[("a/other", &pickle)], 0), &["no data.pkl"]);
    let big = [("a/data.pkl", &pickle[..]), ("a/byteorder", b"big"), ("a/data/0", &[0; 4])];
    says(list, &zip_file(&big, 0), &["byte order is \"big\""]);
    says(list, &pickle, &["bare pickle", "save it anew"]);
}

#[test]
fn sums_of_archives() {
    let list = |source: &mut Cursor<&[u8]>, length| torch::list(source, length);
    let pickle = pickle_of("FloatStorage", 0, &[2, 2], &[2, 1]);
    let whole = torch_file(&pickle, &[7; 16]);
    assert!(torch::list(&mut Cursor::new(&whole[..]), whole.len() as u64).is_ok());
    // One bit of a weight, of the pickle, of a sum itself.
    let weight = whole.windows(16).position(|w| w == [7; 16]).unwrap();
    let names = whole.windows(5).position(|w| w == b"torch").unwrap();
    let sum = whole.windows(4).position(|w| w == b"PK\x01\x02").unwrap() + 16;
    for (at, entry) in [(weight + 3, "a/data/0"), (names, "a/data.pkl"), (sum, "a/data.pkl")] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        says(list, &damaged, &[entry, "is damaged: its CRC-32 is"]);
    }
    // torch.serialization.set_crc32_options(False): all sums are zero, and none is checked.
    let mut without = whole.clone();
    for (at, _) in whole.windows(4).enumerate().filter(|(_, bytes)| bytes == b"PK\x01\x02") {
        without[at + 16..at + 20].fill(0);
    }
    assert!(torch::list(&mut Cursor::new(&without[..]), without.len() as u64).is_ok());
}

/// Made by `tools/reference/make_goldens.py`: torch.save of tensors of every type, one of them transposed.
#[test]
fn a_file_of_torch_save() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch_save.bin");
    let weights = Weights::open(&path).unwrap();
    let shapes: Vec<(&str, &[usize])> = weights.shapes().collect();
    let wanted: [(&str, &[usize]); 6] = [
        ("bf16", &[3]),
        ("f16", &[2, 2]),
        ("f64", &[]),
        ("linear.weight", &[3, 2]),
        ("parameter", &[1]),
        ("transposed", &[3, 2]),
    ];
    assert_eq!(shapes, wanted);
    assert_eq!(weights.values("bf16").unwrap(), [1.0, -0.5, 3.140_625]);
    assert_eq!(weights.values("f16").unwrap(), [1.0, -2.0, 0.5, 65504.0]);
    assert_eq!(weights.values("f64").unwrap(), [0.1]);
    assert_eq!(weights.values("linear.weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(weights.values("parameter").unwrap(), [7.0]);
    assert_eq!(weights.values("transposed").unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
}

/// Damage of every kind, ten thousand times for each parser: a mistake would be a panic, or a test that
/// takes all memory. `tools/fuzz` looks longer.
#[test]
fn damaged_bytes_never_break_a_parser() {
    let [a, b] = [("F32", "[2,2]", "[0,16]"), ("F16", "[3]", "[16,22]")]
        .map(|(dtype, shape, at)| format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{at}}}"#));
    let header = format!(r#"{{"a":{a},"b":{b}}}"#);
    let pickle = pickle_of("FloatStorage", 0, &[2, 2], &[2, 1]);
    let torch_save =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch_save.bin")).unwrap();
    let seeds = [safetensors_file(&header, 22), torch_file(&pickle, &[0; 16]), torch_save, pickle];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // Xorshift (Marsaglia 2003).
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below.max(1)
    };
    let (mut accepted, mut refused) = (0, 0);
    for seed in &seeds {
        for round in 0..10_000 {
            let mut bytes = seed.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(6) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = random(256) as u8,
                    2 => bytes.truncate(at.max(1)),
                    3 => {
                        let extreme = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 60, u64::MAX][random(6)];
                        let width = [2, 4, 8][random(3)].min(bytes.len() - at);
                        bytes[at..at + width].copy_from_slice(&extreme.to_le_bytes()[..width]);
                    }
                    4 => {
                        let end = (at + 1 + random(64)).min(bytes.len());
                        let piece = bytes[at..end].to_vec();
                        let to = random(bytes.len());
                        bytes.splice(to..to, piece);
                    }
                    _ => drop(bytes.drain(at..(at + random(64)).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    bytes.push(0);
                }
            }
            let length = bytes.len() as u64;
            let parsed = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let mut source = Cursor::new(&bytes[..]);
                let outcomes = [
                    safetensors::list(&mut source, length).is_ok(),
                    torch::list(&mut source, length).is_ok(),
                    pickle::load(&bytes).is_ok(),
                ];
                outcomes.contains(&true)
            }));
            match parsed {
                Ok(true) => accepted += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("round {round}: {bytes:02x?}"),
            }
        }
    }
    // Damage in the numbers themselves is no damage to the file; most of the rest must be seen.
    assert!(refused > 10_000 && accepted > 1_000, "{accepted} accepted, {refused} refused");
}
