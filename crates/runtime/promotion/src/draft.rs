//! A bundle in the form in which its author keeps it: a folder with sources and a file that describes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use alknet_core::{PeerId, PeerKey};
use alknet_runtime::ops::ScriptTestCase;
use alknet_runtime::{ENGINE, IsolateLimits, ScriptRegistration};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::bundle::{BundleContent, FORMAT, FuelPercentiles};
use crate::limits::{BUNDLE_BYTES_MAX, FOLDERS_MAX, MODULES_MAX};

/// The file in the folder that describes the sources.
pub const DRAFT_FILE: &str = "operation.json";
/// The endings of files that are modules.
const SOURCES: [&str; 6] = ["js", "jsx", "mjs", "mts", "ts", "tsx"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DraftManifest {
    spec: ScriptRegistration,
    entry: String,
    export: Option<String>,
    #[serde(default)]
    service: bool,
    tests: Vec<ScriptTestCase>,
    /// The most that a call may take; the defaults apply without it.
    fuel: Option<FuelPercentiles>,
}

/// Reads a folder. `operation.json` has `spec`, `entry`, `tests`, and optionally `export`, `service` and `fuel`.
/// `calls` of a test may be the name of a file of the folder that a session recorded them in. Every file below the
/// folder with the ending of a script is a module, by its path. Names that begin with a dot, and `node_modules`, are
/// left out.
///
/// # Errors
/// A file cannot be read, `operation.json` is invalid, or the folder has too much.
/// [`PromotionBundle::sign`](crate::PromotionBundle::sign) checks whether the content can be signed.
pub fn read_draft(
    folder: &Path,
    author: PeerId,
    key: PeerKey,
) -> Result<BundleContent, DraftError> {
    let path = folder.join(DRAFT_FILE);
    let draft = crate::bundle::read_json(read(&path)?.as_bytes());
    let mut draft = draft.map_err(|error| DraftError::Draft(path.clone(), error.to_string()))?;
    recorded(folder, &mut draft)?;
    let draft: DraftManifest = serde_json::from_value(draft)
        .map_err(|error| DraftError::Draft(path.clone(), error.to_string()))?;
    let most = IsolateLimits::default().fuel_ticks;
    Ok(BundleContent {
        format: FORMAT,
        engine: ENGINE.to_owned(),
        spec: draft.spec,
        entry: draft.entry,
        export: draft.export,
        service: draft.service,
        modules: modules(folder)?,
        tests: draft.tests,
        fuel: draft.fuel.unwrap_or(FuelPercentiles {
            p50: most,
            p99: most,
        }),
        author,
        key,
    })
}

/// Replaces the name of a file by the content of the file.
fn recorded(folder: &Path, draft: &mut Value) -> Result<(), DraftError> {
    let tests = draft.get_mut("tests").and_then(Value::as_array_mut);
    for case in tests.into_iter().flatten() {
        let Some(calls) = case.get_mut("calls") else {
            continue;
        };
        let Some(name) = calls.as_str().map(PathBuf::from) else {
            continue;
        };
        let path = folder.join(&name);
        let invalid = |what: String| DraftError::Draft(path.clone(), what);
        let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        // A path could otherwise lead out of the folder.
        if !name.components().all(plain) {
            return Err(invalid(
                "recorded calls lie in the draft's folder".to_owned(),
            ));
        }
        let read = crate::bundle::read_json(read(&path)?.as_bytes());
        *calls = read.map_err(|error| invalid(error.to_string()))?;
        if !calls.is_array() {
            return Err(invalid("no list of recorded calls".to_owned()));
        }
    }
    Ok(())
}

fn modules(folder: &Path) -> Result<BTreeMap<String, String>, DraftError> {
    let mut modules = BTreeMap::new();
    let mut open = vec![("./".to_owned(), folder.to_owned())];
    let (mut folders, mut bytes) = (0, 0);
    while let Some((prefix, folder)) = open.pop() {
        folders += 1;
        if folders > FOLDERS_MAX {
            return Err(DraftError::TooMuch("folders", FOLDERS_MAX));
        }
        let failed = |error| DraftError::Read(folder.clone(), error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(failed)?;
            if name.starts_with('.') || name == "node_modules" {
                continue;
            }
            // Links are skipped: a link could lead out of the folder or into a cycle.
            if kind.is_dir() {
                open.push((format!("{prefix}{name}/"), entry.path()));
            } else if kind.is_file() && is_source(&name) {
                let text = read(&entry.path())?;
                bytes += text.len();
                modules.insert(format!("{prefix}{name}"), text);
            }
            if modules.len() > MODULES_MAX {
                return Err(DraftError::TooMuch("modules", MODULES_MAX));
            }
            if bytes > BUNDLE_BYTES_MAX {
                return Err(DraftError::TooMuch("bytes", BUNDLE_BYTES_MAX));
            }
        }
    }
    Ok(modules)
}

fn is_source(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    // Files with declarations are only for editors.
    ending.is_some_and(|ending| SOURCES.contains(&ending)) && !name.ends_with(".d.ts")
}

/// Reads a text that is at most as long as a bundle may be.
fn read(path: &Path) -> Result<String, DraftError> {
    let failed = |error| DraftError::Read(path.to_owned(), error);
    let file = fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    // One byte more than the maximum reveals a longer file.
    let most = u64::try_from(BUNDLE_BYTES_MAX + 1).unwrap_or(u64::MAX);
    file.take(most).read_to_string(&mut text).map_err(failed)?;
    match text.len() > BUNDLE_BYTES_MAX {
        true => Err(DraftError::TooMuch("bytes", BUNDLE_BYTES_MAX)),
        false => Ok(text),
    }
}

/// The reason why a folder is no draft.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DraftError {
    /// `operation.json` is invalid.
    #[error("{path}: {1}", path = .0.display())]
    Draft(PathBuf, String),
    /// A file cannot be read.
    #[error("cannot read {path}: {1}", path = .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The folder has more than a bundle may have.
    #[error("the folder has more than {1} {0}")]
    TooMuch(&'static str, usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PeerKey {
        PeerKey::Ed25519([1; 32])
    }

    fn read_in(folder: &Path) -> Result<BundleContent, DraftError> {
        read_draft(folder, "ada".parse().expect("a name"), key())
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("room");
            fs::write(path, text).expect("room");
        }
        folder
    }

    const DRAFT: &str = r#"{ "spec": { "name": "a/b", "kind": "query" }, "entry": "./main.ts",
        "export": "run", "tests": [{ "expect": { "output": 1 } }] }"#;

    #[test]
    fn a_folder_is_a_draft() {
        let folder = folder(&[
            (DRAFT_FILE, DRAFT),
            ("main.ts", "1"),
            ("lib/a.js", "2"),
            ("types.d.ts", "3"),
            (".git/x.js", "4"),
            ("node_modules/y/z.js", "5"),
            ("notes.txt", "6"),
        ]);
        let content = read_in(folder.path()).expect("a draft");
        let names: Vec<_> = content.modules.keys().map(String::as_str).collect();
        assert_eq!(names, ["./lib/a.js", "./main.ts"]);
        assert_eq!(
            (content.spec.name.as_str(), content.fuel.p99),
            ("a/b", 5_000)
        );
    }

    #[test]
    fn recorded_calls_may_lie_in_a_file() {
        let draft = |calls: &str| {
            let named = format!(r#"[{{ "calls": {calls}, "expect": {{ "output": 1 }} }}]"#);
            DRAFT.replace(r#"[{ "expect": { "output": 1 } }]"#, &named)
        };
        let list = r#"[{ "path": "a/b", "input": {}, "output": 0.30000000000000004 }]"#;
        let files = |draft: &str| {
            folder(&[
                (DRAFT_FILE, draft),
                ("main.ts", "1"),
                ("calls/one.json", list),
                ("none.json", "{}"),
            ])
        };
        let from_file = files(&draft("\"./calls/one.json\""));
        let written_out = files(&draft(list));
        let content = read_in(from_file.path()).expect("a draft");
        assert_eq!(content, read_in(written_out.path()).expect("a draft"));
        assert_eq!(
            content.tests[0].calls[0].output,
            Some(0.300_000_000_000_000_04.into())
        );
        for wrong in [
            "../one.json",
            "/etc/hostname",
            "none.json",
            "operation.json",
        ] {
            let folder = files(&draft(&format!("{wrong:?}")));
            let error = read_in(folder.path()).expect_err("no calls");
            assert!(matches!(error, DraftError::Draft(..)), "{wrong}: {error}");
        }
        let missing = files(&draft("\"gone.json\""));
        assert!(matches!(read_in(missing.path()), Err(DraftError::Read(..))));
    }

    #[test]
    fn what_is_none_says_why() {
        let empty = folder(&[]);
        assert!(matches!(read_in(empty.path()), Err(DraftError::Read(..))));
        for text in [
            "",
            "[]",
            "{}",
            r#"{ "entry": 1 }"#,
            &DRAFT.replace("tests", "more"),
        ] {
            let folder = folder(&[(DRAFT_FILE, text)]);
            assert!(
                matches!(read_in(folder.path()), Err(DraftError::Draft(..))),
                "{text}"
            );
        }
        let long = "x".repeat(BUNDLE_BYTES_MAX + 1);
        let long = folder(&[(DRAFT_FILE, DRAFT), ("a.js", &long)]);
        assert!(matches!(
            read_in(long.path()),
            Err(DraftError::TooMuch("bytes", _))
        ));
        let names: Vec<_> = (0..=MODULES_MAX).map(|n| format!("{n}.js")).collect();
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        files.push((DRAFT_FILE, DRAFT));
        let many = folder(&files);
        assert!(matches!(
            read_in(many.path()),
            Err(DraftError::TooMuch("modules", _))
        ));
    }
}
