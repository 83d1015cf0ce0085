//! The output of a command that makes pictures: one file, or a folder with a file for each image.

use std::path::{Path, PathBuf};

use super::print;
use crate::data::picture::picture;
use crate::error::{Error, Result};
use crate::figures;
use crate::run::save_png;
use crate::sample::Source;

/// The target of `--out`, checked before the work begins.
pub struct Target {
    pub out: PathBuf,
    pub is_picture: bool,
}

impl Target {
    /// A picture, or a folder, which is made here and must be empty: nothing in it is overwritten.
    pub fn new(out: &Path) -> Result<Target> {
        let is_picture = is_picture(out)?;
        if !is_picture {
            make_empty_folder(out)?;
        }
        Ok(Target { out: out.to_owned(), is_picture })
    }

    /// Writes samples, as one picture beside their conditions if there are any; else as [`Target::write`].
    pub fn write_samples(&self, source: &Source, images: Vec<f32>, count: usize) -> Result<()> {
        if !self.is_picture || source.given().is_none() {
            return self.write(&images, count, source.image());
        }
        save_png(&self.out, &figures::samples(source, images).draw(None))?;
        print(&format!("{}\n", self.out.display()))
    }

    /// Writes what the samples of a batch look like after `step` steps, beside the picture or in the folder.
    pub fn write_preview(&self, images: &[f32], image: [usize; 3], [batch, step]: [usize; 2]) -> Result<()> {
        let of = if batch > 1 { format!("-{batch}") } else { String::new() };
        let path = match self.is_picture {
            true => self.out.with_extension(format!("step-{step:04}{of}.png")),
            false => self.out.join(format!("step-{step:04}{of}.png")),
        };
        match images.len() == image.iter().product::<usize>() {
            true => save_png(&path, &picture(images, image)),
            false => save_png(&path, &figures::grid(images.to_vec(), image).draw(None)),
        }
    }

    /// Writes `count` images `[N, H, W, C]`: as one picture (the bare image where there is one), or a file
    /// each.
    pub fn write(&self, images: &[f32], count: usize, image: [usize; 3]) -> Result<()> {
        if self.is_picture && count == 1 {
            save_png(&self.out, &picture(images, image))?;
        } else if self.is_picture {
            save_png(&self.out, &figures::grid(images.to_vec(), image).draw(None))?;
        } else {
            for (i, pixels) in images.chunks_exact(image.iter().product()).enumerate() {
                save_png(&self.out.join(format!("{i:06}.png")), &picture(pixels, image))?;
            }
        }
        print(&format!("{}\n", self.out.display()))
    }
}

/// The error of a folder that cannot be written into.
pub fn denied(out: &Path) -> impl Fn(std::io::Error) -> Error {
    move |e| {
        Error::new(format!("cannot write into {}", out.display())).hint("choose another --out").caused_by(e)
    }
}

/// Makes a folder, or takes one that is empty.
pub fn make_empty_folder(out: &Path) -> Result<()> {
    if out.exists() && std::fs::read_dir(out).map_err(denied(out))?.next().is_some() {
        return Err(Error::new(format!("{} is not empty", out.display())).hint("choose another --out"));
    }
    std::fs::create_dir_all(out).map_err(denied(out))
}

/// Whether `--out` names a picture: PNG, the one format that is written. Anything else is a folder, but for
/// names that are surely meant as pictures of another format.
fn is_picture(out: &Path) -> Result<bool> {
    let extension = extension(out);
    if extension == "png" && out.is_dir() {
        return Err(
            Error::new(format!("{} is a folder", out.display())).hint("name a file, or another folder")
        );
    }
    if out.to_string_lossy().ends_with(['/', '\\']) || out.is_dir() {
        return Ok(false);
    }
    if ["jpg", "jpeg", "gif", "webp", "bmp", "tif", "tiff"].contains(&extension.as_str()) {
        return Err(Error::usage(format!("--out {}: pictures are written as PNG", out.display()))
            .hint("name a file that ends in .png, or a folder"));
    }
    if extension == "png" {
        check_folder_of(out)?;
    }
    Ok(extension == "png")
}

/// The ending of a file's name, in small letters.
pub fn extension(out: &Path) -> String {
    out.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// Says early that a file cannot be written because its folder is missing.
pub fn check_folder_of(out: &Path) -> Result<()> {
    match out.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        Some(missing) => {
            Err(Error::new(format!("there is no folder {}", missing.display())).hint("make it first"))
        }
        None => Ok(()),
    }
}
