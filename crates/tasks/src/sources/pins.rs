//! The pins file: the accepted bytes, and their possible origins.

use serde::Deserialize;

use crate::failure::{Result, TaskError};

/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Every pinned source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourcePins {
    #[serde(rename = "source")]
    sources: Vec<PinnedSource>,
}

/// One source that comes as a file from another project.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PinnedSource {
    /// Its name in the rest of this program.
    pub name: String,
    /// Accepted versions, best first.
    #[serde(rename = "pin")]
    pub pins: Vec<SourcePin>,
}

/// One accepted version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcePin {
    /// The version, for people.
    pub version: String,
    /// Name of the file in a folder.
    pub file: String,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
    /// The Debian package that holds it.
    pub debian: Option<DebianLocation>,
    /// The package of crates.io, as `NAME@VERSION`.
    pub cargo: Option<String>,
    /// The package of npm's registry, as `NAME@VERSION`.
    pub npm: Option<String>,
    /// The source package of Python's registry, as `NAME==VERSION`.
    pub pypi: Option<String>,
    /// Its path below the address of Debian's archive, as a part of a source package.
    pub pool: Option<String>,
    /// The upstream project's release address.
    pub upstream: Option<String>,
}

/// A Debian package, or a file inside it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianLocation {
    /// Package name.
    pub package: String,
    /// Exact package version.
    pub version: String,
    /// Release that carries it.
    pub suite: String,
    /// Path inside the package, as `dpkg-deb --contents` prints it. Without it the package itself
    /// is the source.
    pub member: Option<String>,
    /// A date on which Debian's archive had the package, and its path there:
    /// `20261123T000000Z/pool/…`. The archive itself drops a version at the next point release.
    pub snapshot: Option<String>,
}

impl SourcePins {
    /// The pins of this clone.
    pub(super) fn own() -> Result<Self> {
        Self::parse(include_str!("../../sources.toml"))
    }

    fn parse(text: &str) -> Result<Self> {
        let pins: Self = toml::from_str(text)
            .map_err(|error| TaskError::Arguments(format!("sources.toml: {error}")))?;
        for (source, pin) in pins.all() {
            if !is_sha256(&pin.sha256) {
                let text = format!(
                    "sources.toml: {} {}: sha256 must be 64 hexadecimal digits in lower case",
                    source.name, pin.version
                );
                return Err(TaskError::Arguments(text));
            }
        }
        Ok(pins)
    }

    /// The source of that name.
    pub(super) fn find(&self, name: &str) -> Result<&PinnedSource> {
        self.sources
            .iter()
            .find(|source| source.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = self
                    .sources
                    .iter()
                    .map(|source| source.name.as_str())
                    .collect();
                TaskError::Arguments(format!(
                    "no source \"{name}\" in sources.toml, only {}",
                    known.join(", ")
                ))
            })
    }

    /// Every source, with its accepted versions.
    pub(crate) fn into_all(self) -> Vec<(String, Vec<SourcePin>)> {
        let sources = self.sources.into_iter();
        sources.map(|source| (source.name, source.pins)).collect()
    }

    /// Every Debian release that some pin names, each once.
    pub(super) fn suites(&self) -> Vec<&str> {
        let mut suites: Vec<_> = self
            .all()
            .filter_map(|(_, pin)| pin.debian.as_ref())
            .map(|place| place.suite.as_str())
            .collect();
        suites.sort_unstable();
        suites.dedup();
        suites
    }

    fn all(&self) -> impl Iterator<Item = (&PinnedSource, &SourcePin)> {
        self.sources
            .iter()
            .flat_map(|source| source.pins.iter().map(move |pin| (source, pin)))
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == SHA256_DIGITS
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_pins_are_well_formed() {
        let pins = SourcePins::own().expect("sources.toml parses");
        for name in [
            "linux",
            "systemd-stub",
            "debian-cloud-kernel",
            "mesa",
            "libdrm",
        ] {
            assert!(!pins.find(name).expect("pinned").pins.is_empty());
        }
        assert_eq!(pins.suites(), ["bookworm", "bookworm-backports", "trixie"]);
    }

    #[test]
    fn every_pin_has_a_place_and_no_archive_address() {
        let pins = SourcePins::own().expect("sources.toml parses");
        for (source, pin) in pins.all() {
            assert!(
                pin.debian.is_some()
                    || pin.cargo.is_some()
                    || pin.npm.is_some()
                    || pin.pypi.is_some()
                    || pin.pool.is_some()
                    || pin.upstream.is_some(),
                "{} {}",
                source.name,
                pin.version
            );
            let address = pin.upstream.as_deref().unwrap_or_default();
            assert!(
                !address.contains("debian") && !address.contains("ubuntu"),
                "{address}"
            );
        }
    }

    /// Only Debian's archive of snapshots has such a file once Debian has another version.
    #[test]
    fn what_debian_alone_has_is_in_its_archive_of_all_times() {
        let pins = SourcePins::own().expect("sources.toml parses");
        let of_others = |pin: &SourcePin| {
            let places = [&pin.cargo, &pin.npm, &pin.pypi, &pin.pool, &pin.upstream];
            places.into_iter().any(Option::is_some)
        };
        let mut checked = 0;
        for source in &pins.sources {
            let snapshots = source.pins.iter().filter_map(|pin| {
                let place = pin.debian.as_ref()?;
                Some((place, place.snapshot.as_ref()?))
            });
            let snapshots: Vec<_> = snapshots.collect();
            let has_others = source.pins.iter().any(of_others);
            assert!(has_others || !snapshots.is_empty(), "{}", source.name);
            for (place, snapshot) in snapshots {
                let (date, path) = snapshot.split_once('/').expect("a date and a path");
                let digits = date.bytes().filter(u8::is_ascii_digit).count();
                assert!(digits == 14 && date.len() == 16, "{snapshot}");
                assert!(
                    date.as_bytes()[8] == b'T' && date.ends_with('Z'),
                    "{snapshot}"
                );
                // The path has exactly the pinned version, without its epoch.
                let version = place.version.split_once(':');
                let version = version.map_or(&*place.version, |(_, version)| version);
                let file = format!("/{}_{version}_", place.package);
                let is_there = path.starts_with("pool/main/") && path.contains(&file);
                assert!(is_there && path.ends_with(".deb"), "{snapshot}");
                checked += 1;
            }
        }
        assert!(checked >= 10, "{checked}");
    }

    #[test]
    fn mistakes_are_named() {
        let bad = "[[source]]\nname='x'\n[[source.pin]]\nversion='1'\nfile='f'\nsha256='ABC'\n";
        let error = SourcePins::parse(bad).expect_err("not a hash").to_string();
        assert!(error.contains("x 1") && error.contains("sha256"), "{error}");
        let error = SourcePins::parse("[[source]]\nnam='x'\n")
            .expect_err("a misspelt key")
            .to_string();
        assert!(error.contains("nam"), "{error}");
        let error = SourcePins::own()
            .and_then(|pins| pins.find("linus").cloned())
            .expect_err("unknown");
        assert!(error.to_string().contains("linux"), "{error}");
    }
}
