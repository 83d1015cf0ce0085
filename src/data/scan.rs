//! Finding the pictures of a folder: recursive, in one order on every machine, safe from loops of links.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use rayon::prelude::*;

use super::captions::METADATA;
use crate::error::{Error, Result};
use crate::names::shown;

/// Folders that systems and programs leave behind; their pictures are previews, copies or refuse.
const NOT_DATA: [&str; 11] = [
    "@eaDir",
    "@tmp",
    "@Recycle",
    "@Recently-Snapshot",
    "#recycle",
    "#snapshot",
    "__MACOSX",
    "__pycache__",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
];
/// Kinds of what is left out that are named; the rest are counted.
const NAMED: usize = 8;

/// What lies below a folder.
#[derive(Default)]
pub(super) struct Found {
    /// Relative to the folder, sorted component by component.
    pub pictures: Vec<PathBuf>,
    /// The number of each kind of files and folders that are not looked at.
    left_out: BTreeMap<String, usize>,
}

impl Found {
    /// Says in a line what is left out, if anything is; the most frequent kinds first.
    pub(super) fn left_out(&self) -> Option<String> {
        let mut kinds: Vec<(&String, usize)> = self.left_out.iter().map(|(kind, &n)| (kind, n)).collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let mut parts: Vec<String> =
            kinds.iter().take(NAMED).map(|(kind, n)| format!("{n} {kind}")).collect();
        let rest: usize = kinds.iter().skip(NAMED).map(|(_, n)| n).sum();
        parts.extend((rest > 0).then(|| format!("{rest} of other kinds")));
        let all: usize = self.left_out.values().sum();
        let files = if all == 1 { "file or folder is" } else { "files and folders are" };
        (all > 0).then(|| format!("{all} {files} not read: {}", parts.join(", ")))
    }
}

/// The image files below `dir`. Hidden files and folders are left out, and so is what is not a file (a pipe
/// would never end).
pub(super) fn pictures(dir: &Path) -> Result<Found> {
    let mut found = Found::default();
    let mut visited = HashSet::new();
    // Folders, relative and without links. Asking the system where each one lies would take a tree of 900
    // folders, one in another, 15 seconds.
    let mut folders = vec![(PathBuf::new(), real(dir)?)];
    // Links wait until the real folders are done, so that a picture is found under its own name where it
    // has one.
    let mut links: Vec<PathBuf> = Vec::new();
    let mut texts: Vec<PathBuf> = Vec::new();
    loop {
        let (folder, place) = match folders.pop() {
            Some(folder) => folder,
            None => {
                let Some(link) = links.pop() else { break };
                let place = real(&dir.join(&link))?;
                (link, place)
            }
        };
        // A folder is entered once, under whatever name: links that lead back up end here.
        if !visited.insert(place.clone()) {
            continue;
        }
        let full = dir.join(&folder);
        for entry in fs::read_dir(&full).map_err(|e| unreadable(&full, e))? {
            let entry = entry.map_err(|e| unreadable(&full, e))?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = folder.join(&name);
            // The listing tells what an entry is; only links need a look at where they lead, which may be
            // nowhere. Asking for each of 200,000 files took a third of a second.
            let kind = entry.file_type().ok();
            let linked = kind.is_some_and(|kind| kind.is_symlink());
            let target = if linked { fs::metadata(entry.path()).ok().map(|t| t.file_type()) } else { kind };
            match target {
                Some(target) if target.is_file() && is_picture(&path) => found.pictures.push(path),
                Some(target) if target.is_dir() && !NOT_DATA.iter().any(|other| name == *other) => {
                    if linked {
                        links.push(path);
                    } else {
                        folders.push((path, place.join(&name)));
                    }
                }
                // The table that `denoir data` writes beside its pictures.
                Some(target) if target.is_file() && path == Path::new("labels.csv") => {}
                Some(target) if target.is_file() && METADATA.iter().any(|other| name == *other) => {}
                Some(target) if target.is_file() && path.extension().is_some_and(|e| e == "txt") => {
                    texts.push(path)
                }
                target => *found.left_out.entry(kind_of(target, &name)).or_default() += 1,
            }
        }
        links.sort_by(|a, b| b.cmp(a));
    }
    found.pictures.par_sort_unstable();
    if !texts.is_empty() {
        // Those beside pictures are their captions.
        let captions: BTreeSet<PathBuf> = found.pictures.iter().map(|p| p.with_extension("txt")).collect();
        let others = texts.iter().filter(|text| !captions.contains(*text)).count();
        if others > 0 {
            *found.left_out.entry(".txt".to_owned()).or_default() += others;
        }
    }
    Ok(found)
}

/// Where a folder lies, without links.
fn real(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().map_err(|e| unreadable(folder, e))
}

fn unreadable(folder: &Path, cause: std::io::Error) -> Error {
    Error::new(format!("folder {} cannot be listed", folder.display()))
        .hint("check its permissions, or move it away")
        .caused_by(cause)
}

/// True if a file has the ending of a format that the program reads.
fn is_picture(path: &Path) -> bool {
    ImageFormat::from_path(path).is_ok_and(|format| format.reading_enabled())
}

/// Words for what is left out.
fn kind_of(target: Option<fs::FileType>, name: &OsStr) -> String {
    match target {
        Some(target) if target.is_dir() => shown(name),
        Some(target) if target.is_file() => match Path::new(name).extension() {
            Some(ending) => format!(".{}", shown(ending).to_lowercase()),
            None => "without an ending".to_owned(),
        },
        _ => "that are no files (pipes, devices, links to nothing)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let found = pictures(dir).unwrap().pictures;
        found.iter().map(|p| p.to_string_lossy().replace('\\', "/")).collect()
    }

    fn touch(dir: &Path, name: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn pictures_are_found_below_in_a_fixed_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/2.JPG", "b/c/1.png", "a.webp", "notes.txt", ".hidden/x.png", ".x.png", "b-1/0.tiff"] {
            touch(dir.path(), name);
        }
        fs::create_dir(dir.path().join("folder.png")).unwrap();
        assert_eq!(names(dir.path()), ["a.webp", "b/2.JPG", "b/c/1.png", "b-1/0.tiff"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_in_circles_end() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        touch(dir.path(), "z/1.png");
        touch(outside.path(), "2.png");
        symlink("..", dir.path().join("z/up")).unwrap();
        symlink(dir.path().join("z"), dir.path().join("a")).unwrap();
        symlink("self", dir.path().join("self")).unwrap();
        symlink("nothing.png", dir.path().join("broken.png")).unwrap();
        symlink(outside.path(), dir.path().join("m")).unwrap();
        assert_eq!(names(dir.path()), ["m/2.png", "z/1.png"], "under its real name, once");
    }

    #[test]
    fn what_is_not_read_is_counted_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["a/1.png", "a/2.HEIC", "a/3.heic", "b/4.avif", "b/5.jpe", "b/6", "labels.csv", ".DS_Store"]
        {
            touch(dir.path(), name);
        }
        for name in ["a/@eaDir/1.png", "__MACOSX/a/1.png", "b/@eaDir/4.png"] {
            touch(dir.path(), name);
        }
        let found = pictures(dir.path()).unwrap();
        assert_eq!(found.pictures, [Path::new("a/1.png")]);
        let line = "8 files and folders are not read: 2 .heic, 2 @eaDir, 1 .avif, 1 .jpe, 1 __MACOSX, \
                    1 without an ending";
        assert_eq!(found.left_out().unwrap(), line);
        touch(dir.path(), "c/x.e\n\u{1b}[2J");
        assert!(pictures(dir.path()).unwrap().left_out().unwrap().contains("1 .e\\x0a\\x1b[2j"));
        let clean = tempfile::tempdir().unwrap();
        touch(clean.path(), "1.png");
        assert_eq!(pictures(clean.path()).unwrap().left_out(), None);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "1.png");
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("2.png")).unwrap();
        std::os::unix::fs::symlink("nothing", dir.path().join("3.png")).unwrap();
        let pipe = dir.path().join("4.png");
        assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let found = pictures(dir.path()).unwrap();
        assert_eq!(found.pictures, [Path::new("1.png")]);
        assert!(
            found.left_out().unwrap().contains("not read: 3 that are no files"),
            "{:?}",
            found.left_out()
        );
    }

    #[test]
    fn a_deep_tree_takes_no_longer_than_a_wide_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut deepest = dir.path().to_owned();
        deepest.extend(std::iter::repeat_n("d", 900));
        fs::create_dir_all(&deepest).unwrap();
        fs::write(deepest.join("1.png"), "").unwrap();
        let began = std::time::Instant::now();
        assert_eq!(names(dir.path()).len(), 1);
        assert!(began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
        // Removing the tree at once would hold 900 folders open.
        fs::remove_file(deepest.join("1.png")).unwrap();
        while deepest != dir.path() {
            fs::remove_dir(&deepest).unwrap();
            deepest.pop();
        }
    }
}
