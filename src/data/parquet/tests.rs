//! Tests against files that PyArrow wrote (`tools/reference/parquet_golden.py`), whole and damaged.

use std::fs;

use super::super::picture::to_u8;
use super::super::tests::{options, refusal};
use super::super::{Dataset, open as open_spec};
use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parquet");

fn first_pixel(data: &dyn Dataset, index: u64) -> (u32, [u8; 3]) {
    let mut picture = vec![0.0; 8 * 8 * 3];
    let label = data.read(index, &mut picture).unwrap();
    (label, [0, 1, 2].map(|channel| to_u8(picture[channel])))
}

fn colour(i: u64) -> [u8; 3] {
    [40 * i as u8, 255 - 40 * i as u8, 7 * i as u8]
}

#[test]
fn shards_have_pictures_captions_and_classes() {
    let train = open_spec(&format!("parquet:{GOLDEN}"), &options(8)).unwrap();
    assert_eq!((train.len(), train.shape(), train.classes().len()), (Some(6), [8, 8, 3], 0));
    let captions = train.captions().unwrap().unwrap();
    for i in 0..6 {
        assert_eq!(first_pixel(&*train, i), (0, colour(i)));
        assert_eq!(captions.of(i)[..], [format!("a square of colour {i}")]);
    }
    assert_eq!(train.describe(5), "train-00001-of-00002.parquet/1");
    // The test file has lists of captions and classes.
    let held_out = Options { split: Split::HeldOut, ..options(8) };
    for spec in
        [format!("parquet:{GOLDEN}/data"), format!("parquet:{GOLDEN}/data/test-00000-of-00001.parquet")]
    {
        let split = if spec.ends_with("data") { Split::HeldOut } else { Split::Train };
        let test = open_spec(&spec, &Options { split, ..held_out.clone() }).unwrap();
        assert_eq!(test.classes(), ["dark", "light", "other"]);
        let captions = test.captions().unwrap().unwrap();
        for i in 0..6 {
            assert_eq!(first_pixel(&*test, i), (i as u32 % 2, colour(i)), "{spec}");
            let more = [format!("a square of colour {i}"), format!("number {i}"), "a picture".to_owned()];
            assert_eq!(captions.of(i)[..], more[..if i % 2 == 0 { 3 } else { 1 }]);
        }
    }
}

/// Rows that are read again for each picture are the same.
#[test]
fn pictures_that_are_not_kept_are_the_same() {
    let (mut table, _) = open(Path::new(GOLDEN), &options(8)).unwrap();
    let kept: Vec<_> = (0..6).map(|row| table.picture(row).unwrap()).collect();
    table.keep = false;
    assert!((0..6).all(|row| table.picture(row).unwrap() == kept[row]));
    assert!(table.picture(6).unwrap_err().contains("no row 6"));
}

#[test]
fn a_file_that_is_cut_or_damaged_is_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let spec = format!("parquet:{}", path.display());
    let whole = fs::read(format!("{GOLDEN}/data/test-00000-of-00001.parquet")).unwrap();
    for length in (0..whole.len()).step_by(5) {
        fs::write(&path, &whole[..length]).unwrap();
        let error = refusal(&spec, &options(8));
        assert!(
            error.contains("a.parquet cannot be read") && error.contains("cut short"),
            "{length}: {error}"
        );
    }
    let mut refused = 0;
    for (place, change) in (0..whole.len()).step_by(2).zip([0xff, 0x01, 0x80].into_iter().cycle()) {
        let mut bytes = whole.clone();
        bytes[place] ^= change;
        fs::write(&path, &bytes).unwrap();
        let read = open_spec(&spec, &options(8)).and_then(|data| {
            let mut picture = vec![0.0; data.shape().iter().product()];
            (0..data.len().unwrap()).try_for_each(|i| data.read(i, &mut picture).map(|_| ()))?;
            data.captions()
        });
        if let Err(error) = read {
            assert!(!error.to_string().contains('\n'), "{place}: {error}");
            refused += 1;
        }
    }
    assert!(refused > whole.len() / 16, "{refused} of {}", whole.len());
}

#[test]
fn columns_that_are_not_there_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let whole = fs::read(format!("{GOLDEN}/data/train-00000-of-00002.parquet")).unwrap();
    let spec = format!("parquet:{}", path.display());
    // Names of the same length.
    let renamed = |from: &str, to: &str| {
        let mut bytes = whole.clone();
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from.as_bytes()) {
                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            }
        }
        fs::write(&path, bytes).unwrap();
    };
    renamed("image", "photo");
    assert!(refusal(&spec, &options(8)).contains("it has no column image; its columns are photo, text"));
    renamed("bytes", "octet");
    assert!(refusal(&spec, &options(8)).contains("its column image has no bytes of pictures"));
    renamed("text", "word");
    assert!(open_spec(&spec, &options(8)).unwrap().captions().unwrap().is_none());
    fs::write(&path, "no table, but some text").unwrap();
    assert!(refusal(&spec, &options(8)).contains("it is no Parquet file, or cut short"));
    fs::remove_file(&path).unwrap();
    let folder = format!("parquet:{}", dir.path().display());
    assert!(refusal(&folder, &options(8)).contains("holds no .parquet files"));
    assert!(refusal(&spec, &options(8)).contains("a.parquet does not exist"));
}
