//! The texts of licences, each once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use alknet_licenses::LicenseText;

use crate::digest;
use crate::failure::{Result, TaskError};

/// Texts for crates without a licence file, and of parts whose sources are not at hand.
const STANDARD: &str = "crates/licenses/standard";

/// Beginnings of the names of licence files, in capitals.
const FILES: [&str; 6] = [
    "COPYING",
    "COPYRIGHT",
    "LICENCE",
    "LICENSE",
    "NOTICE",
    "UNLICENSE",
];

/// Endings of files that begin so and are no texts.
const OTHER_ENDINGS: [&str; 4] = ["html", "json", "rs", "toml"];

/// Largest licence file in bytes: that of GCC's libraries has 68,000.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// The texts that were found so far.
#[derive(Debug)]
pub(super) struct TextCollection {
    standard: PathBuf,
    /// By the text without its white space: files differ in line ends and in the width of lines.
    texts: BTreeMap<String, LicenseText>,
}

impl TextCollection {
    /// An empty collection for the tree at `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            standard: root.join(STANDARD),
            texts: BTreeMap::new(),
        }
    }

    /// Adds a file, and returns the name of its text.
    pub(super) fn file(&mut self, path: &Path) -> Result<String> {
        let bytes = fs::metadata(path).map_err(reading(path))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(TaskError::TooLarge {
                what: path.display().to_string(),
                bytes,
                limit: FILE_BYTES_MAX,
            });
        }
        let bytes = fs::read(path).map_err(reading(path))?;
        Ok(self.add(&String::from_utf8_lossy(&bytes)))
    }

    /// Adds a text of the tree, by the name of its licence.
    pub(super) fn standard(&mut self, license: &str) -> Result<String> {
        let path = self.standard.join(format!("{license}.txt"));
        self.file(&path)
    }

    fn add(&mut self, text: &str) -> String {
        // Some texts begin a page with a form feed.
        let text = text.replace('\u{c}', "");
        let words: Vec<&str> = text.split_whitespace().collect();
        let words = words.join(" ");
        let name = digest::key([words.as_bytes()]);
        let known = self.texts.entry(words).or_insert_with(|| {
            let lines = text.lines().map(str::trim_end);
            let text = lines.collect::<Vec<_>>().join("\n");
            LicenseText::new(name, format!("{}\n", text.trim_matches('\n')))
        });
        known.name.clone()
    }

    /// The texts, by their words: similar ones lie beside each other, which compresses better.
    pub(super) fn into_texts(self) -> Vec<LicenseText> {
        self.texts.into_values().collect()
    }
}

/// The licence files in the folder of a crate, by name, with the one that its manifest names.
pub(super) fn files(folder: &Path, named: Option<&Path>) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(reading(folder))?;
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(reading(folder))?.path();
        if is_license(&path) && path.is_file() {
            found.push(path);
        }
    }
    let named = named.map(|named| folder.join(named));
    found.extend(named.filter(|named| named.is_file()));
    found.sort();
    found.dedup();
    Ok(found)
}

fn is_license(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let name = name.to_ascii_uppercase();
    let ending = path.extension().and_then(|ending| ending.to_str());
    let is_other = ending.is_some_and(|ending| OTHER_ENDINGS.contains(&ending));
    FILES.iter().any(|file| name.starts_with(file)) && !is_other
}

pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(reading(path))
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> TaskError + use<> {
    TaskError::io(format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_differ_in_white_space_are_one() {
        let mut texts = TextCollection::new(Path::new("/nonexistent"));
        let first = texts.add("Permission is\nhereby granted.\n");
        assert_eq!(texts.add("\r\nPermission  is hereby\r\ngranted.  "), first);
        let other = texts.add("Permission is hereby refused.");
        assert_ne!(other, first);
        let kept = texts.into_texts();
        let kept: Vec<_> = kept.iter().map(|it| (&*it.name, &*it.text)).collect();
        let expected = [
            (&*first, "Permission is\nhereby granted.\n"),
            (&*other, "Permission is hereby refused.\n"),
        ];
        assert_eq!(kept, expected);
    }

    #[test]
    fn licence_files_are_found_by_their_names() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = [
            "COPYING",
            "LICENSE-MIT",
            "license.md",
            "license.rs",
            "README.md",
            "Terms.txt",
        ];
        for name in names {
            fs::write(folder.path().join(name), "text").expect("writable");
        }
        fs::create_dir(folder.path().join("licenses")).expect("writable");
        let found = |named: Option<&str>| {
            let found = files(folder.path(), named.map(Path::new)).expect("readable");
            let names = found.iter().filter_map(|it| it.file_name()?.to_str());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let usual = ["COPYING", "LICENSE-MIT", "license.md"];
        assert_eq!(found(None), usual);
        assert_eq!(found(Some("COPYING")), usual);
        let with = ["COPYING", "LICENSE-MIT", "Terms.txt", "license.md"];
        assert_eq!(found(Some("Terms.txt")), with);
    }
}
