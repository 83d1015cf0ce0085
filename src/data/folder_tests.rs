//! Tests of folders of pictures: classes, parts, formats, and pictures that are broken.

use std::fs;

use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};

use super::super::tests::{options, refusal};
use super::super::{Loader, Resize, open as open_spec, open_whole_folder, picture::to_u8, read_picture};
use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
    /// A picture of one colour.
    fn add(&self, name: &str, rgb: [u8; 3]) {
        RgbImage::from_pixel(12, 10, Rgb(rgb)).save(self.file(name)).unwrap();
    }
    fn spec(&self) -> String {
        format!("images:{}", self.0.path().display())
    }
    fn open(&self, options: &Options) -> std::sync::Arc<dyn Dataset> {
        open_spec(&self.spec(), options).unwrap()
    }
}

fn first_pixel(data: &dyn Dataset, index: u64) -> (u32, Vec<u8>) {
    let mut out = vec![f32::NAN; data.shape().iter().product()];
    let label = data.read(index, &mut out).unwrap();
    (label, out[..data.shape()[2]].iter().map(|&v| to_u8(v)).collect())
}

#[test]
fn sub_folders_are_classes_and_pictures_are_sorted() {
    let place = Place::new();
    place.add("dogs/a.png", [1, 2, 3]);
    place.add("cats/deep/b.png", [4, 5, 6]);
    place.add("cats/a.bmp", [7, 8, 9]);
    fs::create_dir(place.0.path().join("empty")).unwrap();
    let data = place.open(&options(8));
    assert_eq!(data.classes(), ["cats", "dogs"]);
    assert_eq!((data.len(), data.shape()), (Some(3), [8, 8, 3]));
    assert_eq!(first_pixel(data.as_ref(), 0), (0, vec![7, 8, 9]));
    assert_eq!(first_pixel(data.as_ref(), 1), (0, vec![4, 5, 6]));
    assert_eq!(first_pixel(data.as_ref(), 2), (1, vec![1, 2, 3]));
    assert_eq!(data.describe(2), Path::new("dogs").join("a.png").display().to_string());
    assert_eq!(data.warnings(), [""; 0]);

    place.add("loose.png", [0; 3]);
    let data = place.open(&options(8));
    assert_eq!(data.classes(), [""; 0]);
    assert!(data.warnings()[0].contains("1 images lie beside the 2 sub-folders"), "{:?}", data.warnings());
}

#[test]
fn one_in_ten_is_held_out_and_never_trained_on() {
    let place = Place::new();
    for i in 0..30 {
        place.add(&format!("{i}.png"), [i, 0, 0]);
    }
    let part = |split| {
        let data = place.open(&Options { split, ..options(8) });
        (0..data.len().unwrap()).map(|i| first_pixel(data.as_ref(), i).1[0]).collect::<Vec<_>>()
    };
    let (train, held_out) = (part(Split::Train), part(Split::HeldOut));
    assert_eq!((train.len(), held_out.len()), (27, 3));
    assert_eq!(held_out, part(Split::HeldOut));
    let mut all = [train, held_out].concat();
    all.sort();
    assert_eq!(all, (0..30).collect::<Vec<u8>>());
    let dir = place.0.path().to_str().unwrap();
    assert_eq!(open_whole_folder(dir, &options(8)).unwrap().len(), Some(30));

    let small = Place::new();
    small.add("1.png", [0; 3]);
    assert_eq!(small.open(&options(8)).len(), Some(1));
    let message = refusal(&small.spec(), &Options { split: Split::HeldOut, ..options(8) });
    assert!(message.contains("too few images to hold some out"), "{message}");
}

#[test]
fn grey_sets_have_one_channel_unless_asked_otherwise() {
    let place = Place::new();
    GrayImage::from_pixel(9, 9, Luma([77])).save(place.file("1.png")).unwrap();
    GrayImage::from_pixel(9, 9, Luma([78])).save(place.file("2.pgm")).unwrap();
    assert_eq!(first_pixel(place.open(&options(8)).as_ref(), 1), (0, vec![78]));
    let rgb = Options { channels: Some(3), ..options(8) };
    assert_eq!(first_pixel(place.open(&rgb).as_ref(), 0), (0, vec![77; 3]));
    place.add("3.png", [1, 2, 3]);
    assert_eq!(place.open(&options(8)).shape()[2], 3);
}

#[test]
fn a_wrong_ending_does_not_matter_and_every_format_reads() {
    let place = Place::new();
    let image = RgbImage::from_pixel(16, 16, Rgb([200, 40, 90]));
    for name in ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tiff", "a.tga", "a.qoi", "a.webp", "a.ppm"] {
        image.save(place.file(name)).unwrap();
    }
    // An icon is always RGBA.
    image::DynamicImage::ImageRgb8(image.clone()).into_rgba8().save(place.file("a.ico")).unwrap();
    image.save_with_format(place.file("b.jpg"), ImageFormat::Png).unwrap();
    let data = place.open(&options(16));
    assert_eq!(data.len(), Some(11));
    for i in 0..11 {
        let pixel = first_pixel(data.as_ref(), i).1;
        let near = pixel.iter().zip([200_i32, 40, 90]).all(|(&v, w)| (i32::from(v) - w).abs() <= 4);
        assert!(near, "{}: {pixel:?}", data.describe(i));
    }
    assert_eq!(data.warnings(), [""; 0]);
}

#[test]
fn pictures_are_turned_as_their_exif_data_says() {
    // Exif with one entry, orientation 3 (turned by 180 degrees), put behind the JPEG's start marker.
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0";
    let image = RgbImage::from_fn(16, 16, |_, y| Rgb([if y < 8 { 255 } else { 0 }; 3]));
    let place = Place::new();
    let path = place.file("a.jpg");
    image.save(&path).unwrap();
    let top = |place: &Place| first_pixel(place.open(&options(16)).as_ref(), 0).1[0];
    assert!(top(&place) > 200);
    let plain = fs::read(&path).unwrap();
    fs::write(&path, [&plain[..2], exif, &plain[2..]].concat()).unwrap();
    assert!(top(&place) < 50);
}

#[test]
fn a_broken_picture_is_named_and_the_next_one_stands_in() {
    let place = Place::new();
    for i in 0..6 {
        place.add(&format!("{i}.png"), [10 * i, 0, 0]);
    }
    let whole = fs::read(place.file("2.png")).unwrap();
    fs::write(place.file("2.png"), &whole[..whole.len() / 2]).unwrap();
    fs::write(place.file("5.png"), "no picture").unwrap();
    let data = place.open(&options(8));
    assert_eq!(data.skipped(), 0, "nothing is decoded before it is read");
    for _ in 0..2 {
        assert_eq!(first_pixel(data.as_ref(), 2).1[0], 30);
        assert_eq!(first_pixel(data.as_ref(), 5).1[0], 0);
    }
    assert_eq!((data.skipped(), data.warnings().len()), (2, 2));
    assert!(data.warnings()[0].contains("2.png cannot be read and is left out"), "{:?}", data.warnings());

    let run = |start| {
        let mut loader = Loader::new(place.open(&options(8)), 2, 3, true, start).unwrap();
        (0..6).map(|_| loader.next().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(0)[3..], run(6)[..3]);
}

#[test]
fn a_folder_that_is_mostly_broken_is_an_error() {
    let place = Place::new();
    place.add("9.png", [1; 3]);
    for i in 0..2 {
        fs::write(place.file(&format!("{i}.png")), "no picture").unwrap();
    }
    let data = place.open(&options(8));
    let report = data.read(0, &mut [0.0; 192]).unwrap_err().report();
    assert!(report.contains("2 of the 3 images in") && report.contains("caused by: 0.png"), "{report}");

    fs::remove_file(place.file("9.png")).unwrap();
    assert!(refusal(&place.spec(), &options(8)).contains("no image in"));
    let empty = Place::new();
    assert!(refusal(&empty.spec(), &options(8)).contains("holds no images"));
}

#[test]
fn a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded() {
    let place = Place::new();
    place.add("a.png", [5; 3]);
    place.add("b.png", [6; 3]);
    fs::write(place.file("c.ppm"), "P6 60000 60000 255\n").unwrap();
    let mut tga = vec![0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 24, 0];
    tga.resize(100, 0);
    fs::write(place.file("d.tga"), tga).unwrap();
    let data = place.open(&options(8));
    assert_eq!(first_pixel(data.as_ref(), 2).1, [5; 3]);
    assert_eq!(data.skipped(), 2, "{:?}", data.warnings());
}

#[test]
fn crop_cuts_before_resizing() {
    let place = Place::new();
    let framed = RgbImage::from_fn(40, 50, |x, y| {
        Rgb([if (10..30).contains(&x) && (15..35).contains(&y) { 255 } else { 0 }; 3])
    });
    framed.save(place.file("a.png")).unwrap();
    let corner = |crop| first_pixel(place.open(&Options { crop, ..options(10) }).as_ref(), 0).1[0];
    assert_eq!((corner(None), corner(Some(20))), (0, 255));
}

#[test]
fn each_position_of_training_may_see_another_square() {
    let place = Place::new();
    // Red is the column and green the row of a picture of 40 x 10.
    RgbImage::from_fn(40, 10, |x, y| Rgb([x as u8, y as u8, 0])).save(place.file("a.png")).unwrap();
    let corners = |crop, first| -> Vec<[u8; 2]> {
        let data = place.open(&Options { crop, ..options(10) });
        let mut loader = Loader::cropping(data, 60, 5, false, first).unwrap();
        let images = loader.next().unwrap().images;
        images.chunks(10 * 10 * 3).map(|image| [to_u8(image[0]), to_u8(image[1])]).collect()
    };
    let all = corners(None, 0);
    assert_eq!(all[20..], corners(None, 20)[..40], "a function of seed and position");
    let columns: std::collections::BTreeSet<u8> = all.iter().map(|[x, _]| *x).collect();
    assert!(columns.len() > 20 && columns.first() < Some(&3) && columns.last() > Some(&27), "{columns:?}");
    assert!(all.iter().all(|[x, y]| *x <= 30 && *y == 0), "{all:?}");
    let small = corners(Some(8), 0);
    assert!(small.iter().any(|[_, y]| *y >= 2) && small.iter().any(|[_, y]| *y == 0), "{small:?}");
}

#[test]
fn a_single_picture_is_read_as_in_a_folder() {
    let place = Place::new();
    let wave = RgbImage::from_fn(40, 50, |x, y| Rgb([(x * 6) as u8, (y * 5) as u8, ((x * y) % 256) as u8]));
    wave.save(place.file("a.png")).unwrap();
    let path = place.0.path().join("a.png");
    for (size, channels, crop) in [(16, 3, None), (10, 1, Some(20)), (64, 3, Some(999)), (8, 1, None)] {
        let data = place.open(&Options { channels: Some(channels), crop, ..options(size) });
        let mut wanted = vec![f32::NAN; size * size * channels];
        data.read(0, &mut wanted).unwrap();
        assert_eq!(
            read_picture(&path, size, channels, crop, Resize::Bicubic).unwrap(),
            wanted,
            "{size} {channels} {crop:?}"
        );
    }
}

#[test]
fn a_single_picture_that_cannot_be_read_says_why() {
    let place = Place::new();
    place.add("a.png", [1; 3]);
    fs::write(place.file("b.png"), "no picture").unwrap();
    fs::write(place.file("c.ppm"), "P6 60000 60000 255\n").unwrap();
    let report = |name: &str, size, channels, crop| {
        read_picture(&place.0.path().join(name), size, channels, crop, Resize::Bicubic).unwrap_err().report()
    };
    for (name, wrong) in [("x.png", "x.png does not exist; give"), ("", "is not a file; give")] {
        let report = report(name, 8, 3, None);
        assert!(report.contains(wrong), "{report}");
    }
    for name in ["b.png", "c.ppm"] {
        let report = report(name, 8, 3, None);
        assert!(report.contains(&format!("{name} cannot be read; check")), "{report}");
        assert!(report.contains("\n  caused by: "), "{report}");
    }
    assert!(report("a.png", 5, 3, None).contains("5 pixels"));
    assert!(report("a.png", 8, 2, None).contains("2 image channels"));
    assert!(report("a.png", 8, 3, Some(0)).contains("crop of 0"));
}

#[test]
fn a_cut_jpeg_is_left_out() {
    let place = Place::new();
    let wave = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, ((x * y) % 256) as u8]));
    for name in ["a.jpg", "b.jpg", "c.png"] {
        wave.save(place.file(name)).unwrap();
    }
    let whole = fs::read(place.file("b.jpg")).unwrap();
    // Under another format's ending too.
    for name in ["b.jpg", "d.png"] {
        fs::write(place.file(name), &whole[..whole.len() / 2]).unwrap();
    }
    let data = place.open(&options(16));
    for i in 0..4 {
        data.read(i, &mut [0.0; 768]).unwrap();
    }
    let warnings = data.warnings();
    assert_eq!((data.skipped(), warnings.len()), (2, 2), "{warnings:?}");
    assert!(warnings[0].contains("b.jpg cannot be read and is left out: the file is cut"), "{warnings:?}");
}

#[test]
fn a_file_without_end_is_not_begun() {
    let place = Place::new();
    place.add("a.png", [5; 3]);
    let end = fs::File::create(place.file("b.png")).unwrap();
    end.set_len(2 * super::super::decode::MAX_FILE).unwrap();
    let data = place.open(&options(8));
    assert_eq!(first_pixel(data.as_ref(), 1).1, [5; 3]);
    assert!(data.warnings()[0].contains("more than the 1024 allowed"), "{:?}", data.warnings());
}

#[test]
fn what_is_not_read_is_told() {
    let place = Place::new();
    place.add("a/1.png", [1; 3]);
    place.add("b/2.png", [2; 3]);
    place.add("@eaDir/3.png", [3; 3]);
    fs::write(place.file("b/4.heic"), "").unwrap();
    let data = place.open(&options(8));
    assert_eq!((data.classes().len(), data.len()), (2, Some(2)));
    assert_eq!(data.warnings(), ["2 files and folders are not read: 1 .heic, 1 @eaDir"]);
    let empty = Place::new();
    fs::write(empty.file("4.heic"), "").unwrap();
    let report = open_spec(&empty.spec(), &options(8)).err().unwrap().report();
    assert!(report.contains("holds no images") && report.contains("1 .heic"), "{report}");
}

#[cfg(unix)]
#[test]
fn classes_are_told_apart_whatever_their_names_are() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    place.add("plain/1.png", [3; 3]);
    for (name, level) in [(&b"\x8c\xa2"[..], 1), (b"\x94\xe9", 2), (b"z\n\x1b[2J", 4)] {
        let folder = place.0.path().join(OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        RgbImage::from_pixel(9, 9, Rgb([level; 3])).save(folder.join("1.png")).unwrap();
        fs::write(folder.join(OsStr::from_bytes(b"\x8c.png")), "no picture").unwrap();
    }
    let data = place.open(&options(8));
    assert_eq!(data.classes(), ["plain", "z\\x0a\\x1b[2J", "\\x8c\\xa2", "\\x94\\xe9"]);
    assert_eq!(data.labels().unwrap(), [0, 1, 1, 2, 2, 3, 3]);
    let pixels: Vec<_> = [0, 1, 3, 5].map(|i| first_pixel(data.as_ref(), i)).to_vec();
    assert_eq!(pixels, [(0, vec![3; 3]), (1, vec![4; 3]), (2, vec![1; 3]), (3, vec![2; 3])]);
    assert_eq!(first_pixel(data.as_ref(), 2).1, [1; 3], "the next one stands in");
    assert_eq!(data.describe(3), "\\x8c\\xa2/1.png");
    let warnings = data.warnings();
    assert!(warnings[0].contains("/z\\x0a\\x1b[2J/\\x8c.png cannot be read"), "{warnings:?}");
}
