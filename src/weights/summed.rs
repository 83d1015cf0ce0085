//! safetensors files of denoir's own carry a sum: one whose bits changed after it was written is refused.
//!
//! The sum is XXH3 of 128 bits over the header's text, its own digits as 0, and the data. It is the first
//! entry of the metadata, at one place of the file. Files of denoir 0.1.0 and of other programs have none.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Metadata, SafeTensors, TensorInfo, View};
use twox_hash::xxhash3_128::Hasher;

use crate::files;

/// Key of the sum in the metadata.
const KEY: &str = "denoir_sum";
/// Begins the value of the sum.
const KIND: &str = "xxh3:";
/// Begins the header, up to the sum's digits.
const BEFORE: &str = r#"{"__metadata__":{"denoir_sum":"xxh3:"#;
const ZEROS: &str = "00000000000000000000000000000000";

/// Writes tensors and one entry of metadata. The same tensors give the same bytes, which the writer of the
/// crate `safetensors` does not promise for two entries; that one also makes a file that others cannot read.
pub(crate) fn write<V: View>(
    file: &mut File,
    views: impl IntoIterator<Item = (String, V)>,
    [key, text]: [&str; 2],
) -> io::Result<()> {
    let mut views: Vec<(String, V)> = views.into_iter().collect();
    views.sort_by(|(a, _), (b, _)| a.cmp(b));
    let (key, text) = (serde_json::to_string(key)?, serde_json::to_string(text)?);
    let mut header = format!("{BEFORE}{ZEROS}\",{key}:{text}}}");
    let mut at = 0;
    for (name, view) in &views {
        let place = (at, at + view.data_len());
        let info = TensorInfo { dtype: view.dtype(), shape: view.shape().to_vec(), data_offsets: place };
        header += &format!(",{}:{}", serde_json::to_string(name)?, serde_json::to_string(&info)?);
        at = place.1;
    }
    header.push('}');
    // The data begins at a multiple of 8.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut sum = Hasher::new();
    let mut out = BufWriter::with_capacity(1 << 20, &mut *file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    let head = Cow::Borrowed(header.as_bytes());
    for part in std::iter::once(head).chain(views.iter().map(|(_, view)| view.data())) {
        sum.write(&part);
        out.write_all(&part)?;
    }
    out.flush()?;
    drop(out);
    file.seek(SeekFrom::Start((8 + BEFORE.len()) as u64))?;
    file.write_all(digits(&sum).as_bytes())
}

fn digits(sum: &Hasher) -> String {
    format!("{:032x}", sum.finish_128())
}

/// The bytes of a whole file, summed while they were read: that costs a third of a second pass over them.
pub(crate) struct Whole {
    bytes: Vec<u8>,
    sum: Hasher,
}

/// Reads a file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Whole> {
    let (mut sum, mut is_first) = (Hasher::new(), true);
    let bytes = files::read_seen(path, most, |piece| {
        if std::mem::take(&mut is_first) {
            begin(&mut sum, piece.get(8..).unwrap_or_default())
        } else {
            sum.write(piece)
        }
    })?;
    Ok(Whole { bytes, sum })
}

/// Begins a sum with the header and what follows it, as far as it is there: with 0 for the sum's digits.
fn begin(sum: &mut Hasher, from_header: &[u8]) {
    let digits = BEFORE.len()..BEFORE.len() + ZEROS.len();
    let [before, after] = [from_header.get(..digits.start), from_header.get(digits.end..)];
    [before, Some(ZEROS.as_bytes()), after].into_iter().flatten().for_each(|part| sum.write(part));
}

impl Whole {
    /// The tensors and the metadata. The error says what is wrong with the file.
    pub(crate) fn parse(&self) -> Result<(SafeTensors<'_>, HashMap<String, String>), String> {
        let tensors = SafeTensors::deserialize(&self.bytes).map_err(|e| e.to_string())?;
        let (length, metadata) = SafeTensors::read_metadata(&self.bytes).map_err(|e| e.to_string())?;
        check(&metadata, &self.bytes[8..8 + length], || Ok(self.sum.clone()))?;
        Ok((tensors, metadata.metadata().clone().unwrap_or_default()))
    }

    /// All of the file.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// As [`check`], of a file whose header's text is `header`; `data` adds the rest of the file to the sum.
pub(super) fn check_rest(
    metadata: &Metadata,
    header: &[u8],
    data: impl FnOnce(&mut Hasher) -> Result<(), String>,
) -> Result<(), String> {
    check(metadata, header, || {
        let mut sum = Hasher::new();
        begin(&mut sum, header);
        data(&mut sum).map(|()| sum)
    })
}

/// An error if the sum of a file is not that of its contents. `header`: its text, from which the metadata was
/// parsed; `sum` gives that of the contents.
fn check(
    metadata: &Metadata,
    header: &[u8],
    sum: impl FnOnce() -> Result<Hasher, String>,
) -> Result<(), String> {
    // Known by its key or by the form of its value: one changed bit cannot hide both.
    let is_sum = |(key, value): (&String, &String)| key == KEY || value.starts_with(KIND);
    if !metadata.metadata().iter().flatten().any(is_sum) {
        return Ok(());
    }
    let said = header.strip_prefix(BEFORE.as_bytes()).and_then(|rest| rest.get(..ZEROS.len()));
    let Some(said) = said else {
        return Err(format!("its {KEY} is not where denoir writes it: it is damaged, or was written anew"));
    };
    let found = digits(&sum()?);
    if found.as_bytes() == said {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    Err(format!("it has changed since it was written: its sum is {found}, it says {said}"))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::weights::safetensors::list;

    fn file() -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        make(&path);
        std::fs::read(path).unwrap()
    }

    fn whole(bytes: &[u8]) -> Whole {
        let mut sum = Hasher::new();
        begin(&mut sum, &bytes[8..]);
        Whole { bytes: bytes.to_vec(), sum }
    }

    fn make(path: &Path) {
        let (a, b) = ([1.0_f32, 2.0, 3.0], [-0.5_f32; 8]);
        let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
        let views = [
            ("b".to_owned(), view(&[2, 4], bytemuck::cast_slice(&b))),
            ("a \"ä\"".to_owned(), view(&[3], bytemuck::cast_slice(&a))),
        ];
        write(&mut File::create(path).unwrap(), views, ["denoir_vae", "of \"x\""]).unwrap();
    }

    #[test]
    fn what_is_written_is_read_by_any_reader() {
        let bytes = file();
        let whole = whole(&bytes);
        let (tensors, metadata) = whole.parse().unwrap();
        assert_eq!(
            bytemuck::pod_collect_to_vec::<u8, f32>(tensors.tensor("a \"ä\"").unwrap().data())[2],
            3.0
        );
        assert_eq!(tensors.tensor("b").unwrap().shape(), [2, 4]);
        assert_eq!(metadata["denoir_vae"], "of \"x\"");
        assert_eq!((bytes.len() - 44) % 8, 0, "the data is aligned");
        assert!(file() == bytes, "the same bytes each time");
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let bytes = file();
        let length = bytes.len() as u64;
        assert!(list(&mut io::Cursor::new(&bytes), length).is_ok());
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&changed).parse().is_err(), "bit {bit} of {:?}", bytes[bit / 8] as char);
            assert!(list(&mut io::Cursor::new(&changed), length).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_file_of_many_pieces_is_summed_as_it_is_read() {
        let numbers: Vec<f32> = (0..200_003).map(|i| i as f32).collect();
        let view = TensorView::new(Dtype::F32, vec![numbers.len()], bytemuck::cast_slice(&numbers)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&mut File::create(&path).unwrap(), [("a".to_owned(), view)], ["format", "pt"]).unwrap();
        assert!(read(&path, u64::MAX).unwrap().parse().is_ok());
        let mut bytes = std::fs::read(&path).unwrap();
        list(&mut io::Cursor::new(&bytes), bytes.len() as u64).unwrap();
        bytes[400_001] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        assert!(read(&path, u64::MAX).unwrap().parse().is_err());
    }

    #[test]
    fn a_file_without_a_sum_is_read() {
        let bytes = file();
        let entry = format!("{:?}:\"{KIND}", KEY);
        let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
        let from = 8 + text.find(&entry).unwrap();
        let mut older = bytes.clone();
        older[from..from + entry.len() + ZEROS.len() + 2].fill(b' ');
        assert!(whole(&older).parse().is_ok());
    }
}
