//! The content of the cache by its folders.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};

use super::needs::TARGET;
use super::units::{self, entries, is_folder};
use super::usage::{self, DiskUsage};

/// Folders of a profile with their own row in the table.
const PROFILE_ROWS: [&str; 5] = [".fingerprint", "build", "deps", "examples", "incremental"];

/// A line of the table.
#[derive(Clone, Debug)]
pub(super) struct FolderUsage {
    pub(super) name: String,
    pub(super) usage: DiskUsage,
}

impl FolderUsage {
    /// The sum of all rows.
    pub(super) fn total(rows: &[Self]) -> DiskUsage {
        rows.iter().fold(DiskUsage::default(), |mut sum, row| {
            sum.add(&row.usage);
            sum
        })
    }
}

/// The content of the cache by its folders, the largest first. Cargo's target folder has a row for
/// each of its parts.
pub(super) fn rows(cache: &Path) -> io::Result<Vec<FolderUsage>> {
    let named = named_paths(cache)?;
    let paths: Vec<Vec<PathBuf>> = named.values().cloned().collect();
    let usages = usage::measure(&paths)?;
    let rows = named.into_keys().zip(usages);
    let mut rows: Vec<FolderUsage> = rows
        .map(|((_, name), usage)| FolderUsage { name, usage })
        .collect();
    rows.sort_by_key(|row| (Reverse(row.usage.bytes), row.name.clone()));
    Ok(rows)
}

/// The paths of each row. The rest of the target folder comes last: the programs in it have another
/// name in `deps`, and count there.
fn named_paths(cache: &Path) -> io::Result<BTreeMap<(bool, String), Vec<PathBuf>>> {
    let mut named: BTreeMap<(bool, String), Vec<PathBuf>> = BTreeMap::new();
    let mut add = |last: bool, name: String, path: PathBuf| {
        named.entry((last, name)).or_default().push(path);
    };
    let target = cache.join(TARGET);
    let layouts = units::layouts(&target)?;
    let mut folders = Vec::new();
    for entry in entries(cache)? {
        let path = entry.path();
        if path == target && is_folder(&path) {
            folders.push(path);
        } else if is_folder(&path) {
            add(false, name(&entry), path);
        } else {
            add(true, "(files)".to_owned(), path);
        }
    }
    while let Some(folder) = folders.pop() {
        let profile = layouts.contains(&folder);
        for entry in entries(&folder)? {
            let (path, name) = (entry.path(), name(&entry));
            if profile && PROFILE_ROWS.contains(&name.as_str()) {
                add(false, format!("{TARGET}/{name}"), path);
            } else if !profile && layouts.iter().any(|layout| layout.starts_with(&path)) {
                folders.push(path);
            } else {
                add(true, format!("{TARGET}/(others)"), path);
            }
        }
    }
    Ok(named)
}

fn name(entry: &DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}
