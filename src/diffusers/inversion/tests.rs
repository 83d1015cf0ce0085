//! Files as the library's script and other programs write them, and what is refused.

use std::path::Path;

use super::*;

/// A safetensors file of ones.
fn file(at: &Path, tensors: &[(&str, &[usize])]) -> Weights {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let from = end;
        end += 4 * shape.iter().product::<usize>();
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [from, end]});
        header.insert((*name).to_owned(), info);
    }
    let text = serde_json::to_string(&header).unwrap();
    let data = 1.0_f32.to_le_bytes().repeat(end / 4);
    std::fs::write(at, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat()).unwrap();
    Weights::open(at).unwrap()
}

#[test]
fn a_word_and_its_rows() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("my-cat.safetensors");
    let two = read(&file(&path, &[("<cat>", &[2, 4])]), 4).unwrap();
    assert_eq!((two.tokens(), two.values.len()), (vec!["<cat>".to_owned(), "<cat>_1".to_owned()], 8));
    assert_eq!(two.tensor(), ("<cat>", [2, 4]));
    assert_eq!(read(&file(&path, &[("<cat>", &[4])]), 4).unwrap().tokens(), ["<cat>"]);
    assert_eq!(read(&file(&path, &[("emb_params", &[1, 4])]), 4).unwrap().token, "my-cat");
    // torch.save of {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": ..., ...}.
    let pickle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embedding.pt");
    let saved = read(&Weights::open(&pickle).unwrap(), 4).unwrap();
    assert_eq!(
        (saved.token.as_str(), &saved.values[..]),
        ("embedding", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0][..])
    );
}

#[test]
fn other_files_are_told_in_one_line() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("a.safetensors");
    for (tensors, wanted) in [
        (&[("<cat>", &[2, 5][..])][..], "its rows have 5 numbers, and the text encoder takes 4"),
        (&[("clip_l", &[1, 4]), ("clip_g", &[1, 8])], "Diffusion XL"),
        (&[("a", &[4]), ("b", &[4])], "2 tensors"),
        (&[], "0 tensors"),
        (&[("<cat>", &[76, 4])], "76 rows"),
        (&[("<cat>", &[0, 4])], "0 rows"),
        (&[("<cat>", &[1, 1, 4])], "rows of numbers"),
        (&[("a cat", &[4])], "is empty or has spaces"),
    ] {
        let said = read(&file(&path, tensors), 4).unwrap_err().report();
        assert!(said.contains(wanted) && said.lines().count() == 1, "should say {wanted:?}: {said}");
    }
}
