//! `parts.toml`: what an image contains beside crates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alknet_licenses::{ComponentLocation, SoftwareComponent};
use serde::Deserialize;

use super::texts::{TextCollection, read};
use crate::failure::{Result, TaskError};
use crate::linked::LinkedCrate;
use crate::sources;

/// The file, from the root of the tree.
pub(super) const FILE: &str = "crates/licenses/parts.toml";

/// Longest number of a version in a source, in bytes: `2.0.0-rc.1`.
const NUMBER_BYTES_MAX: usize = 16;

/// The parts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherParts {
    part: Vec<OtherPart>,
}

/// A part that is not a crate. `parts.toml` explains the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherPart {
    name: String,
    place: ComponentLocation,
    license: String,
    source: Option<String>,
    within: Option<String>,
    version: Option<VersionLocation>,
    debian: Option<String>,
    #[serde(default)]
    files: Vec<PathBuf>,
    #[serde(default)]
    standard: Vec<String>,
    homepage: Option<String>,
}

/// Where a version stands in a source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionLocation {
    file: PathBuf,
    /// The texts in front of its numbers, which become one text with dots.
    after: Vec<String>,
    /// Whether it is one number with two digits each for the second and the third part: 30302.
    #[serde(default)]
    packed: bool,
}

/// The parts of the tree at `root`, in the order of the file. A part whose crate is not linked is
/// left out.
pub(super) fn components(
    root: &Path,
    crates: &[LinkedCrate],
    texts: &mut TextCollection,
) -> Result<Vec<SoftwareComponent>> {
    let parts: OtherParts = toml::from_str(&read(&root.join(FILE))?)
        .map_err(|error| TaskError::Arguments(format!("{FILE}: {error}")))?;
    let folders: BTreeMap<&str, &Path> = crates
        .iter()
        .map(|linked| (linked.name.as_str(), linked.folder.as_path()))
        .collect();
    let mut components = Vec::new();
    for part in &parts.part {
        let folder = match &part.within {
            // An optional library that no part uses any more is in no image.
            Some(name) => match folders.get(name.as_str()) {
                Some(folder) => *folder,
                None => continue,
            },
            None => root,
        };
        components.push(part.component(folder, texts)?);
    }
    Ok(components)
}

impl OtherPart {
    fn component(&self, folder: &Path, texts: &mut TextCollection) -> Result<SoftwareComponent> {
        let mut component = SoftwareComponent::new(&self.name, self.place, &self.license);
        if let Some(name) = &self.source {
            let pins = sources::accepted(name)?;
            let pin = pins.first().ok_or_else(|| {
                TaskError::Arguments(format!("sources.toml: {name} has no version"))
            })?;
            component.version = Some(pin.version.clone());
            component.sha256 = Some(pin.sha256.clone());
            component.source = sources::address(pin);
        }
        if let Some(place) = &self.version {
            component.version = Some(place.read(folder)?);
        }
        component.within = self.within.clone();
        component.debian = self.debian.clone();
        component.homepage = self.homepage.clone();
        for file in &self.files {
            component.texts.push(texts.file(&folder.join(file))?);
        }
        for name in &self.standard {
            component.texts.push(texts.standard(name)?);
        }
        Ok(component)
    }
}

impl VersionLocation {
    fn read(&self, folder: &Path) -> Result<String> {
        let path = folder.join(&self.file);
        let text = read(&path)?;
        let numbers = self.after.iter().map(|after| {
            let behind = text.split_once(after.as_str()).map(|(_, behind)| behind);
            behind
                .map(number)
                .filter(|it| is_number(it))
                .ok_or_else(|| {
                    TaskError::Arguments(format!(
                        "{FILE}: {} has no version behind {after:?}",
                        path.display()
                    ))
                })
        });
        let numbers: Vec<&str> = numbers.collect::<Result<_>>()?;
        let version = numbers.join(".");
        match (self.packed, version.parse::<u32>()) {
            (true, Ok(number)) => Ok(unpacked(number)),
            _ => Ok(version),
        }
    }
}

fn unpacked(number: u32) -> String {
    format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    )
}

/// The text up to a space, a quotation mark or a line's end.
fn number(text: &str) -> &str {
    let end = text.find(|c: char| c == '"' || c.is_whitespace());
    &text[..end.unwrap_or(text.len())]
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.len() <= NUMBER_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_numbers_of_a_version_are_found_behind_their_texts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let header = "#define MAJOR    1\n#define MINOR 2 // even\n#define TEXT \"1.2.3\"\n";
        fs::write(folder.path().join("x.h"), header).expect("writable");
        let at = |after: &[&str]| {
            let place = VersionLocation {
                file: "x.h".into(),
                after: after.iter().map(|it| (*it).to_owned()).collect(),
                packed: false,
            };
            place.read(folder.path())
        };
        let joined = at(&["#define MAJOR    ", "#define MINOR "]);
        assert_eq!(joined.expect("both are there"), "1.2");
        let quoted = at(&["#define TEXT \""]).expect("it is there");
        assert_eq!(quoted, "1.2.3");
        assert_eq!(unpacked(30_302), "3.3.2");
        for missing in ["#define PATCH ", "#define "] {
            let error = at(&[missing]).expect_err("no number").to_string();
            assert!(error.contains("x.h") && error.contains(missing), "{error}");
        }
    }
}
