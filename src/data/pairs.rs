//! `pairs:A,B` and `maps:A,B`: the images of folder B, beside each the one of the same name in folder A as
//! its condition.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::folder::{Folder, listed};
use super::{Captions, Dataset, Options, Partner, Resize};
use crate::error::{Error, Result};
use crate::names::shown_path;

pub(super) struct Pairs {
    conditions: Folder,
    images: Folder,
    /// Conditions are numbers of classes.
    is_map: bool,
}

/// Pictures by their paths without the ending: those of a pair may be of different formats.
fn by_name(dir: &Path, pictures: Vec<PathBuf>) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut names = BTreeMap::new();
    for picture in pictures {
        let name = picture.with_extension("");
        if let Some(other) = names.insert(name, picture.clone()) {
            let (a, b, dir) = (shown_path(&other), shown_path(&picture), dir.display());
            return Err(Error::new(format!("{a} and {b} in {dir} have the same name"))
                .hint("pictures of a pair have the same name in both folders, but for its ending"));
        }
    }
    Ok(names)
}

/// An error if one of `names` in `dir` has no partner among `others`.
fn check_partners(
    [dir, other]: [&Path; 2],
    names: &BTreeMap<PathBuf, PathBuf>,
    others: &BTreeMap<PathBuf, PathBuf>,
) -> Result<()> {
    let mut alone = names.iter().filter(|(name, _)| !others.contains_key(*name));
    let Some((_, first)) = alone.next() else { return Ok(()) };
    let (dir, other, count) = (dir.display(), other.display(), 1 + alone.count());
    let message = format!("{count} of {} pictures in {dir} have no partner in {other}", names.len());
    Err(Error::new(format!("{message}, the first is {}", shown_path(first)))
        .hint("pictures of a pair have the same name in both folders, but for its ending"))
}

pub(super) fn open([a, b]: [&Path; 2], options: &Options, is_map: bool) -> Result<Pairs> {
    let ((listed_a, left_out_a), (listed_b, left_out_b)) = (listed(a)?, listed(b)?);
    let (mut in_a, in_b) = (by_name(a, listed_a)?, by_name(b, listed_b.clone())?);
    check_partners([b, a], &in_b, &in_a)?;
    check_partners([a, b], &in_a, &in_b)?;
    let left_out = [left_out_a, left_out_b].into_iter().flatten().collect::<Vec<_>>();
    let left_out = (!left_out.is_empty()).then(|| left_out.join("; "));
    let images = Folder::of(b, &listed_b, left_out, options)?;
    // Held out is a pair, by the name of its image.
    let partner = |path: &PathBuf| in_a.remove(&path.with_extension(""));
    let partners = images.files().iter().filter_map(partner).collect();
    // Conditions have the colours that they have.
    let resize = if is_map { Resize::Nearest } else { options.resize };
    let conditions = Folder::with(a, partners, &Options { channels: None, resize, ..options.clone() })?;
    if is_map && conditions.shape()[2] != 1 {
        return Err(Error::new(format!("the pictures in {} have colours", a.display()))
            .hint("in maps grey levels are the numbers of classes; pairs:A,B takes colours"));
    }
    Ok(Pairs { conditions, images, is_map })
}

impl Dataset for Pairs {
    fn len(&self) -> Option<u64> {
        self.images.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.images.shape()
    }

    fn classes(&self) -> &[String] {
        self.images.classes()
    }

    fn labels(&self) -> Option<Vec<u32>> {
        self.images.labels()
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let mut partner = vec![0.0; self.conditions.shape().iter().product()];
        self.read_pair(index, out, &mut partner)
    }

    fn partner(&self) -> Option<Partner> {
        Some(Partner { shape: self.conditions.shape(), is_map: self.is_map })
    }

    fn captions(&self) -> Result<Option<Captions>> {
        self.images.captions()
    }

    /// Where one of the two cannot be read, the next pair of which both can stands in.
    fn read_pair(&self, index: u64, out: &mut [f32], partner: &mut [f32]) -> Result<u32> {
        let count = self.images.files().len();
        for i in (0..count).map(|i| (index as usize + i) % count) {
            let [image, condition] = [self.images.picture(i, out), self.conditions.picture(i, partner)];
            if image && condition {
                return Ok(self.images.label(i));
            }
            self.images.check()?;
            self.conditions.check()?;
        }
        Err(Error::new("of no pair can both pictures be read")
            .hint("check the files, or convert them to png"))
    }

    fn digest(&self) -> Result<String> {
        let mut digest = Digest::default();
        digest.field(self.images.digest()?.as_bytes());
        digest.field(self.conditions.digest()?.as_bytes());
        Ok(digest.text())
    }

    fn describe(&self, index: u64) -> String {
        self.images.describe(index)
    }

    fn skipped(&self) -> u64 {
        self.images.skipped() + self.conditions.skipped()
    }

    fn warnings(&self) -> Vec<String> {
        [self.images.warnings(), self.conditions.warnings()].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};

    use super::super::condition::{ConditionConfig, ConditionKind::Map, read_both};
    use super::super::picture::to_u8;
    use super::super::tests::options;
    use super::super::{Split, open};
    use super::*;

    /// Two folders of pictures, whose grey is the number of the pair, and that of the condition one more.
    fn folders(count: u8) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, ending, more) in [("a", "png", 1), ("b", "bmp", 0)] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            for i in 0..count {
                let picture = RgbImage::from_pixel(9, 9, Rgb([2 * i + more; 3]));
                picture.save(dir.path().join(format!("{folder}/{i:02}.{ending}"))).unwrap();
            }
        }
        dir
    }

    fn spec(dir: &tempfile::TempDir) -> String {
        format!("pairs:{0}/a,{0}/b", dir.path().display())
    }

    fn both(data: &dyn Dataset, index: u64) -> [u8; 2] {
        let mut pictures =
            [data.shape(), data.partner().unwrap().shape].map(|s| vec![0.0; s.iter().product()]);
        let [image, partner] = &mut pictures;
        data.read_pair(index, image, partner).unwrap();
        pictures.map(|picture| to_u8(picture[0]))
    }

    #[test]
    fn pairs_stay_together() {
        let dir = folders(30);
        let mut seen = Vec::new();
        for (split, count) in [(Split::Train, 27), (Split::HeldOut, 3)] {
            let data = open(&spec(&dir), &Options { split, ..options(8) }).unwrap();
            assert_eq!(data.len(), Some(count));
            for i in 0..count {
                let [image, condition] = both(&*data, i);
                assert_eq!(condition, image + 1);
                seen.push(image);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..30).map(|i| 2 * i).collect::<Vec<u8>>());
        // The one that cannot be read takes its partner with it.
        fs::write(dir.path().join("a/04.png"), "no picture").unwrap();
        fs::write(dir.path().join("b/05.bmp"), "no picture").unwrap();
        let data = open(&spec(&dir), &options(8)).unwrap();
        let all: Vec<[u8; 2]> = (0..27).map(|i| both(&*data, i)).collect();
        assert!(
            all.iter().all(|[image, condition]| *condition == image + 1 && ![8, 10].contains(image)),
            "{all:?}"
        );
        assert!(data.skipped() > 0 && !data.warnings().is_empty());
    }

    #[test]
    fn what_has_no_partner_is_named() {
        let dir = folders(3);
        let refused = |wanted: &[&str]| {
            let error = open(&spec(&dir), &options(8)).err().unwrap().to_string();
            assert!(wanted.iter().all(|wanted| error.contains(wanted)), "{error}");
        };
        fs::remove_file(dir.path().join("a/01.png")).unwrap();
        refused(&[
            "1 of 3 pictures in",
            "have no partner",
            "the first is 01.bmp",
            "same name in both folders",
        ]);
        fs::rename(dir.path().join("b/01.bmp"), dir.path().join("a/02.bmp")).unwrap();
        refused(&["02.bmp and 02.png", "have the same name"]);
        for (spec, wanted) in
            [("pairs:x", "write `pairs:A,B`"), ("pairs:x,y", "data folder x does not exist")]
        {
            assert!(open(spec, &options(8)).err().unwrap().to_string().contains(wanted), "{spec}");
        }
    }

    #[test]
    fn maps_keep_the_numbers_of_their_classes() {
        let dir = folders(1);
        // Of 16 x 16 pixels: the left half of class 0, the rest of class 2, one corner of none.
        let class = |x: u32, y: u32| if x > 13 && y > 13 { 255 } else { 2 * u8::from(x > 7) };
        let map = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([class(x, y)]));
        map.save(dir.path().join("a/00.png")).unwrap();
        let data = open(&spec(&dir).replace("pairs", "maps"), &options(8)).unwrap();
        let config = |channels| ConditionConfig { kind: Map, channels, ..ConditionConfig::default() };
        let (_, image, partner) = read_both(&*data, &config(3), 0).unwrap();
        let condition = config(3).of(&image, data.shape(), &partner, 0, 0);
        for (i, pixel) in condition.chunks(3).enumerate() {
            let class = class(2 * (i as u32 % 8) + 1, 2 * (i as u32 / 8) + 1);
            let wanted = [0, 1, 2].map(|channel| f32::from(u8::from(channel == class)));
            assert_eq!(pixel, wanted, "pixel {i}");
        }
        let error = read_both(&*data, &config(2), 0).unwrap_err().to_string();
        assert!(error.contains("00.bmp has class 2, and condition.channels is 2"), "{error}");
        // Of 16 bits a level is 257 of them: every class would be 0.
        let deep = image::ImageBuffer::from_pixel(8, 8, image::Luma([2_u16]));
        deep.save(dir.path().join("a/00.png")).unwrap();
        let data = open(&spec(&dir).replace("pairs", "maps"), &options(8)).unwrap();
        assert!(read_both(&*data, &config(3), 0).is_err());
        assert!(data.warnings()[0].contains("more than 8 bits"), "{:?}", data.warnings());
        RgbImage::from_pixel(8, 8, Rgb([9, 0, 0])).save(dir.path().join("a/00.png")).unwrap();
        let error = open(&spec(&dir).replace("pairs", "maps"), &options(8)).err().unwrap().to_string();
        assert!(error.contains("have colours"), "{error}");
    }
}
