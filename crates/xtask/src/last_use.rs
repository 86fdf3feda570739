//! Which compiled units the last builds used.
//!
//! Cargo 1.95 never removes an artefact, and it changes no file of a fresh unit. So neither names nor times
//! show whether an artefact is still needed or belongs to an old version. (With the unstable
//! `-Z mtime-on-use` it would update the fingerprints' times.) Its messages do show it: with
//! `--message-format=json` they name the files of each unit of a build, fresh units too. This module
//! records that in the target folder, in a text file for each [`BuildSet`].
//!
//! ```no_run
//! # use std::path::Path;
//! use xtask::last_use::{BuildSet, LastUse};
//! # fn main() -> std::io::Result<()> {
//! let target = Path::new("/cache/target");
//! let messages = "the standard output of cargo build --message-format=json";
//! LastUse::for_target(target).note(BuildSet::Binary, messages)?;
//! # Ok(())
//! # }
//! ```
//!
//! The messages are read without a JSON library, because this crate has no dependencies. Cargo writes one
//! object per line, without spaces, and escapes quotation marks in strings. So the text `"filenames":[` is
//! always that key.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Folder of the records in the target folder.
const FOLDER: &str = "alknet-used";

/// Digits of the hash in the names of a unit's files.
const HASH_DIGITS: usize = 16;

/// A unit that no build used for this long is dropped from the records. Its files' times still show
/// when it was compiled.
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// The purpose of a build. The units of each set's last build are needed until its next build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildSet {
    /// The one binary.
    Binary,
    /// `alknet-tasks`, which does the commands' work.
    Commands,
    /// The program for GPUs.
    Gpu,
    /// Some tests, a benchmark, or anything else that was built by itself. It updates the times of
    /// its units, but needs none of them later.
    Part,
    /// Every test program of the workspace.
    Tests,
}

/// The sets whose units are needed at the same time.
pub const NEEDED_SETS: [BuildSet; 4] = [
    BuildSet::Binary,
    BuildSet::Commands,
    BuildSet::Gpu,
    BuildSet::Tests,
];

/// Everything that cargo makes in one step: a crate compiled in one way, or a run of a build
/// script.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildUnit {
    /// Folder of the profile, relative to the target folder: `x86_64-unknown-linux-gnu/release`.
    pub layout: String,
    /// The hash at the end of its files' names.
    pub hash: String,
}

/// The records of a target folder. The caller holds the build lock.
#[derive(Clone, Debug)]
pub struct LastUse {
    target: PathBuf,
}

/// The records of all sets together.
#[derive(Clone, Debug, Default)]
pub struct UseRecord {
    /// Units of the last build of some set.
    pub needed: HashSet<BuildUnit>,
    /// When each known unit was last used.
    pub last_used: HashMap<BuildUnit, SystemTime>,
    /// Sets of which no complete build is recorded.
    pub missing: Vec<BuildSet>,
}

impl LastUse {
    /// The records of the target folder `target`.
    #[must_use]
    pub fn for_target(target: &Path) -> Self {
        Self {
            target: target.to_owned(),
        }
    }

    /// Records the units in `messages`. These are what one cargo command, or several that make one
    /// set, wrote with `--message-format=json` or `json-render-diagnostics`. Lines that are not
    /// messages are skipped. A failed build counts as [`BuildSet::Part`].
    pub fn note(&self, set: BuildSet, messages: &str) -> io::Result<()> {
        self.note_at(set, messages, SystemTime::now())
    }

    fn note_at(&self, set: BuildSet, messages: &str, now: SystemTime) -> io::Result<()> {
        let units = UnitFinder::for_target(&self.target).units(messages);
        // The messages of a failed build name only some of the units that the set needs.
        let set = if succeeded(messages) {
            set
        } else {
            BuildSet::Part
        };
        let file = self.file(set);
        let old = read(&file)?;
        let cutoff = seconds(now).saturating_sub(KEPT.as_secs());
        let mut record: BTreeMap<BuildUnit, UnitUse> = old
            .into_iter()
            .filter(|(_, last)| last.seconds >= cutoff)
            .map(|(unit, last)| (unit, last.former()))
            .collect();
        for unit in units {
            let last = UnitUse {
                needed: set != BuildSet::Part,
                seconds: seconds(now),
            };
            record.insert(unit, last);
        }
        let text: String = record.iter().map(line).collect();
        fs::create_dir_all(self.target.join(FOLDER))?;
        // A reader sees the old record or the new one, and an interrupted write leaves the old one.
        let fresh = file.with_extension("new");
        fs::write(&fresh, text)?;
        fs::rename(fresh, file)
    }

    /// Reads the records of all sets.
    pub fn read(&self) -> io::Result<UseRecord> {
        let mut recorded = UseRecord::default();
        for set in NEEDED_SETS.into_iter().chain([BuildSet::Part]) {
            let record = read(&self.file(set))?;
            if set != BuildSet::Part && !record.values().any(|last| last.needed) {
                recorded.missing.push(set);
            }
            for (unit, last) in record {
                let when = SystemTime::UNIX_EPOCH + Duration::from_secs(last.seconds);
                let latest = recorded.last_used.entry(unit.clone()).or_insert(when);
                *latest = when.max(*latest);
                if last.needed {
                    recorded.needed.insert(unit);
                }
            }
        }
        Ok(recorded)
    }

    fn file(&self, set: BuildSet) -> PathBuf {
        self.target.join(FOLDER).join(set.to_string())
    }
}

impl fmt::Display for BuildSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Binary => "binary",
            Self::Commands => "commands",
            Self::Gpu => "gpu",
            Self::Part => "part",
            Self::Tests => "tests",
        })
    }
}

/// The hash in the name of a unit's file or folder: `libserde-0123456789abcdef.rlib`. Files of some
/// kinds of libraries, and the links beside `deps`, have none.
#[must_use]
pub fn hash_in(name: &str) -> Option<&str> {
    let stem = name.split('.').next()?;
    let (_, hash) = stem.rsplit_once('-')?;
    let digits = hash
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (digits && hash.len() == HASH_DIGITS).then_some(hash)
}

/// A unit's line in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnitUse {
    needed: bool,
    seconds: u64,
}

impl UnitUse {
    const fn former(self) -> Self {
        Self {
            needed: false,
            seconds: self.seconds,
        }
    }
}

fn line((unit, last): (&BuildUnit, &UnitUse)) -> String {
    let word = if last.needed { "needed" } else { "former" };
    format!("{word} {} {}/{}\n", last.seconds, unit.layout, unit.hash)
}

/// Lines in another form, such as a later version's, are skipped.
fn read(file: &Path) -> io::Result<BTreeMap<BuildUnit, UnitUse>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let parse = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let needed = words.next()? == "needed";
        let seconds = words.next()?.parse().ok()?;
        let (layout, hash) = words.next()?.rsplit_once('/')?;
        let unit = BuildUnit {
            layout: layout.to_owned(),
            hash: hash.to_owned(),
        };
        Some((unit, UnitUse { needed, seconds }))
    };
    Ok(text.lines().filter_map(parse).collect())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Whether every command that wrote to `messages` succeeded.
fn succeeded(messages: &str) -> bool {
    let mut ends = messages
        .lines()
        .filter(|line| line.starts_with("{\"reason\":\"build-finished\""))
        .peekable();
    ends.peek().is_some() && ends.all(|line| line.contains("\"success\":true"))
}

/// Finds the unit of a file.
struct UnitFinder<'a> {
    target: &'a Path,
    /// The folders that were searched for files without a hash, with what they contain.
    folders: HashMap<PathBuf, Vec<Artefact>>,
}

/// A file with a hash in its name.
struct Artefact {
    name: String,
    device_and_inode: (u64, u64),
}

impl<'a> UnitFinder<'a> {
    fn for_target(target: &'a Path) -> Self {
        Self {
            target,
            folders: HashMap::new(),
        }
    }

    fn units(&mut self, messages: &str) -> BTreeSet<BuildUnit> {
        let mut units = BTreeSet::new();
        for line in messages.lines() {
            for file in files(line) {
                units.extend(self.units_of(Path::new(&file)));
            }
        }
        units
    }

    fn units_of(&mut self, file: &Path) -> Vec<BuildUnit> {
        let Some(relative) = file.strip_prefix(self.target).ok().and_then(Path::to_str) else {
            return Vec::new();
        };
        let parts: Vec<&str> = relative.split('/').collect();
        let unit = |layout: &[&str], hash: &str| BuildUnit {
            layout: layout.join("/"),
            hash: hash.to_owned(),
        };
        let part = parts
            .iter()
            .position(|part| ["build", "deps", "examples"].contains(part));
        // LAYOUT/deps/libx-HASH.rlib, LAYOUT/build/x-HASH/out
        if let Some(at) = part
            && let Some(hash) = parts.get(at + 1).and_then(|name| hash_in(name))
        {
            return vec![unit(&parts[..at], hash)];
        }
        // LAYOUT/x, which cargo linked to LAYOUT/deps/x-HASH, or LAYOUT/examples/x to the file
        // beside it.
        let Some((_, folder)) = parts.split_last() else {
            return Vec::new();
        };
        let (layout, within) = match folder.split_last() {
            Some((last, layout)) if *last == "examples" => (layout, "examples"),
            _ => (folder, "deps"),
        };
        let origin = self.target.join(layout.join("/")).join(within);
        let hashes = self.origins(file, origin);
        hashes.iter().map(|hash| unit(layout, hash)).collect()
    }

    /// The hashes of the files that `file` may be linked to: the same file, or, if the file system
    /// has no links and cargo made a copy, all with its name.
    fn origins(&mut self, file: &Path, folder: PathBuf) -> Vec<String> {
        let Ok(data) = fs::metadata(file) else {
            return Vec::new();
        };
        let own = (data.dev(), data.ino());
        let listed = self
            .folders
            .entry(folder)
            .or_insert_with_key(|folder| artefacts(folder));
        let hash = |artefact: &&Artefact| hash_in(&artefact.name).map(str::to_owned);
        let linked: Vec<&Artefact> = listed
            .iter()
            .filter(|artefact| artefact.device_and_inode == own)
            .collect();
        // The inode decides before the name, because two versions have the same name.
        if !linked.is_empty() {
            return linked.iter().filter_map(hash).collect();
        }
        let crate_name = file.file_stem().unwrap_or_default().to_string_lossy();
        let prefix = format!("{}-", crate_name.replace('-', "_"));
        let named = listed
            .iter()
            .filter(|artefact| artefact.name.starts_with(&prefix));
        named.filter_map(|artefact| hash(&artefact)).collect()
    }
}

/// The files of an artefacts folder. Empty if it cannot be read.
fn artefacts(folder: &Path) -> Vec<Artefact> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let artefact = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        hash_in(&name)?;
        let data = entry.metadata().ok()?;
        Some(Artefact {
            name,
            device_and_inode: (data.dev(), data.ino()),
        })
    };
    entries.filter_map(artefact).collect()
}

/// The files that a message names: those of an artefact, or a build script's output folder.
fn files(line: &str) -> Vec<String> {
    if line.starts_with("{\"reason\":\"compiler-artifact\"") {
        return after(line, "\"filenames\":[").map_or_else(Vec::new, strings);
    }
    if line.starts_with("{\"reason\":\"build-script-executed\"") {
        let folder = after(line, "\"out_dir\":").and_then(string);
        return folder.map(|(folder, _)| folder).into_iter().collect();
    }
    Vec::new()
}

fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key).map(|(_, rest)| rest)
}

/// The strings of an array, from after its bracket.
fn strings(mut json: &str) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((text, rest)) = string(json) {
        found.push(text);
        json = rest.strip_prefix(',').unwrap_or("");
    }
    found
}

/// The string at the start of `json`, and the rest after it. Paths need no other escapes than
/// these.
fn string(json: &str) -> Option<(String, &str)> {
    let body = json.strip_prefix('"')?;
    let mut text = String::new();
    let mut rest = body.char_indices();
    while let Some((at, letter)) = rest.next() {
        match letter {
            '"' => return Some((text, &body[at + 1..])),
            '\\' => match rest.next()?.1 {
                // Paths have no other escapes. A line with another one is skipped rather than
                // misread.
                escaped @ ('"' | '\\' | '/') => text.push(escaped),
                _ => return None,
            },
            _ => text.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISHED: &str = "{\"reason\":\"build-finished\",\"success\":true}\n";
    const FAILED: &str = "{\"reason\":\"build-finished\",\"success\":false}\n";
    const ONE: &str = "1111111111111111";
    const TWO: &str = "2222222222222222";

    /// A target folder that is removed on drop.
    struct TestTargetFolder(PathBuf);

    impl TestTargetFolder {
        fn new() -> Self {
            let path = tempfile::tempdir()
                .expect("a folder of this test's own")
                .keep();
            fs::create_dir_all(path.join("release/deps")).expect("ours");
            Self(path)
        }

        fn message(&self, files: &[&str]) -> String {
            let files: Vec<String> = files
                .iter()
                .map(|file| format!("\"{}\"", self.0.join(file).display()))
                .collect();
            format!(
                "{{\"reason\":\"compiler-artifact\",\"filenames\":[{}],\"fresh\":true}}\n",
                files.join(",")
            )
        }

        fn library(&self, hash: &str) -> String {
            self.message(&[&format!("release/deps/libx-{hash}.rmeta")])
        }

        fn note(&self, set: BuildSet, messages: &str) {
            LastUse::for_target(&self.0)
                .note(set, messages)
                .expect("writable");
        }

        fn needed(&self) -> Vec<String> {
            let recorded = LastUse::for_target(&self.0).read().expect("readable");
            let mut units: Vec<String> = recorded
                .needed
                .into_iter()
                .map(|unit| format!("{}/{}", unit.layout, unit.hash))
                .collect();
            units.sort();
            units
        }
    }

    impl Drop for TestTargetFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unit(hash: &str) -> BuildUnit {
        BuildUnit {
            layout: "release".to_owned(),
            hash: hash.to_owned(),
        }
    }

    #[test]
    fn a_hash_is_sixteen_digits_behind_the_last_hyphen() {
        let hash = Some("0123456789abcdef");
        assert_eq!(hash_in("libserde-0123456789abcdef.rlib"), hash);
        assert_eq!(hash_in("proc-macro2-0123456789abcdef"), hash);
        assert_eq!(hash_in("x-0123456789abcdef.x.1a-cgu.0.rcgu.o"), hash);
        for name in ["alknet", "liba-b.rlib", "x-0123456789ABCDEF", "", "-", "."] {
            assert_eq!(hash_in(name), None, "{name}");
        }
    }

    #[test]
    fn every_kind_of_file_names_its_unit() {
        let target = TestTargetFolder::new();
        let script = format!(
            "{{\"reason\":\"build-script-executed\",\"cfgs\":[\"a=\\\"b\\\"\"],\"out_dir\":\"{}\"}}\n",
            target
                .0
                .join(format!("a-b/release/build/x-{TWO}/out"))
                .display()
        );
        let text = [
            &target.message(&[&format!("a-b/release/deps/libx-{ONE}.rlib")]),
            &target.message(&[&format!("release/build/x-{ONE}/build-script-build")]),
            "test result: ok. 3 passed\n",
            &script,
            FINISHED,
        ];
        target.note(BuildSet::Binary, &text.map(str::to_owned).concat());
        assert_eq!(
            target.needed(),
            [
                format!("a-b/release/{ONE}"),
                format!("a-b/release/{TWO}"),
                format!("release/{ONE}"),
            ]
        );
    }

    #[test]
    fn a_link_names_the_unit_that_it_was_linked_to() {
        let target = TestTargetFolder::new();
        let file = |name: &str| target.0.join("release").join(name);
        for hash in [ONE, TWO] {
            fs::write(file(&format!("deps/my_tool-{hash}")), hash).expect("writable");
        }
        fs::hard_link(file(&format!("deps/my_tool-{TWO}")), file("my-tool")).expect("links");
        let message = target.message(&["release/my-tool"]) + FINISHED;
        target.note(BuildSet::Binary, &message);
        assert_eq!(target.needed(), [format!("release/{TWO}")]);
        // A copy may be of either version.
        fs::remove_file(file("my-tool")).expect("ours");
        fs::write(file("my-tool"), TWO).expect("writable");
        fs::write(file(&format!("deps/my_tool_too-{ONE}")), "").expect("writable");
        target.note(BuildSet::Binary, &message);
        let both = [format!("release/{ONE}"), format!("release/{TWO}")];
        assert_eq!(target.needed(), both);
    }

    #[test]
    fn a_set_needs_what_its_last_build_used() {
        let target = TestTargetFolder::new();
        target.note(BuildSet::Binary, &(target.library(ONE) + FINISHED));
        target.note(BuildSet::Binary, &(target.library(TWO) + FINISHED));
        assert_eq!(target.needed(), [format!("release/{TWO}")]);
        target.note(BuildSet::Gpu, &(target.library(ONE) + FINISHED));
        assert_eq!(target.needed().len(), 2, "each set on its own");
        let recorded = LastUse::for_target(&target.0).read().expect("readable");
        assert_eq!(recorded.missing, [BuildSet::Commands, BuildSet::Tests]);
        assert!(recorded.last_used.contains_key(&unit(ONE)));
    }

    #[test]
    fn a_part_and_a_failed_build_date_units_and_end_no_need() {
        let target = TestTargetFolder::new();
        target.note(BuildSet::Tests, &(target.library(ONE) + FINISHED));
        target.note(BuildSet::Part, &(target.library(TWO) + FINISHED));
        target.note(BuildSet::Tests, &(target.library(TWO) + FAILED));
        target.note(BuildSet::Tests, &(target.library(TWO) + FINISHED + FAILED));
        target.note(BuildSet::Tests, &target.library(TWO));
        assert_eq!(target.needed(), [format!("release/{ONE}")]);
        let recorded = LastUse::for_target(&target.0).read().expect("readable");
        assert!(recorded.last_used.contains_key(&unit(TWO)));
    }

    #[test]
    fn a_unit_is_forgotten_after_its_time() {
        let target = TestTargetFolder::new();
        let records = LastUse::for_target(&target.0);
        let then = SystemTime::now() - KEPT - Duration::from_secs(60);
        let old = target.library(ONE) + FINISHED;
        records
            .note_at(BuildSet::Binary, &old, then)
            .expect("writable");
        let recorded = records.read().expect("readable");
        assert!(recorded.needed.contains(&unit(ONE)), "however old");
        target.note(BuildSet::Binary, &(target.library(TWO) + FINISHED));
        let recorded = records.read().expect("readable");
        assert!(!recorded.last_used.contains_key(&unit(ONE)));
    }

    #[test]
    fn names_are_read_as_json_writes_them() {
        assert_eq!(
            strings(r#""/a b","/c\"d\\e"],"x":["y"]"#),
            ["/a b", "/c\"d\\e"]
        );
        assert!(strings("]").is_empty() && strings("").is_empty());
        assert_eq!(string("\"open"), None);
        // The key inside a string does not count.
        let line = r#"{"reason":"compiler-artifact","target":{"name":"\"filenames\":[\"/x\"]"},"filenames":["/y"]}"#;
        assert_eq!(files(line), ["/y"]);
        assert!(files("{\"reason\":\"compiler-message\",\"filenames\":[\"/x\"]}").is_empty());
    }

    #[test]
    fn records_of_another_form_are_passed_over() {
        let target = TestTargetFolder::new();
        fs::create_dir_all(target.0.join(FOLDER)).expect("writable");
        let text = format!("needed 12 release/{ONE}\nneeded x release/{TWO}\nlater words\n\n");
        fs::write(target.0.join(FOLDER).join("binary"), text).expect("writable");
        assert_eq!(target.needed(), [format!("release/{ONE}")]);
    }
}
