//! `alknet tensor serve`: a folder of tensor files, served by a node of this computer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alknet_tensor::{ContainerLimits, ContainerReader, FileId};
use alknet_tensor_serve::limits::PATH_SEGMENTS;
use alknet_tensor_serve::{ServeError, StorePath, TensorStore};
use clap::Args;

use super::super::serve::ServeArgs;
use super::super::{CommandError, CommandExit, output, serve};
use crate::node::{StateLock, tensor_store};

/// How the names of tensor files end.
const ENDINGS: [&str; 2] = ["mt", "safetensors"];

/// Arguments of `alknet tensor serve`.
#[derive(Debug, Args)]
pub(crate) struct TensorServeArgs {
    /// The folder. The command copies its files *.mt and *.safetensors, and those of folders in it, into the node's
    /// store, each under its path in the folder.
    folder: PathBuf,
    #[command(flatten)]
    serve: ServeArgs,
}

/// What was put into the store.
#[derive(Debug, Default, PartialEq, Eq)]
struct FolderImportCounts {
    files: u64,
    /// Those that were there as they are.
    unchanged: u64,
}

/// Fills the store, then serves until a signal stops it.
pub(super) fn run(args: TensorServeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let state_dir = args.serve.state_dir()?;
    // Two that write to one store would not know of each other.
    let lock = StateLock::take(&state_dir)?;
    let store = tensor_store(&state_dir).map_err(|error| of_serve(&state_dir, &error))?;
    let shared = share(&store, &args.folder)?;
    // The node that is started next opens it itself.
    drop(store);
    if !json {
        let FolderImportCounts { files, unchanged } = shared;
        output::note(&format!("{files} files, {unchanged} of them as before"));
    }
    serve::run_locked(args.serve, lock, json)
}

/// Puts every tensor file below a folder into the store.
fn share(store: &Arc<TensorStore>, folder: &Path) -> Result<FolderImportCounts, CommandError> {
    let known: BTreeMap<StorePath, FileId> = store.paths().into_iter().collect();
    let mut files = Vec::new();
    walk(folder, "", 0, &mut files)?;
    let mut shared = FolderImportCounts::default();
    for (file, path) in files {
        let failed = |error: &ServeError| of_serve(&file, error);
        let path = StorePath::parse(&path).map_err(|error| failed(&error))?;
        // What is there already is not written once more: models are large.
        let unchanged = match known.get(&path) {
            Some(known) => *known == id(&file)?,
            None => false,
        };
        if unchanged {
            shared.unchanged += 1;
        } else {
            let opened = File::open(&file).map_err(|error| cannot(&file, &error))?;
            store
                .add(opened, Some(path))
                .map_err(|error| failed(&error))?;
        }
        shared.files += 1;
    }
    Ok(shared)
}

/// Finds the tensor files below a folder, by name.
fn walk(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<(PathBuf, String)>,
) -> Result<(), CommandError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut paths: Vec<PathBuf> = entries
        .map_err(|error| cannot(folder, &error))?
        .iter()
        .map(fs::DirEntry::path)
        .collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') {
            continue;
        }
        let inner = format!("{prefix}{name}");
        // Through links, which may lead round in a circle: paths of a store are this deep.
        if path.is_dir() {
            if depth + 1 < PATH_SEGMENTS {
                walk(&path, &format!("{inner}/"), depth + 1, files)?;
            }
        } else if ENDINGS
            .iter()
            .any(|ending| path.extension().is_some_and(|it| it == *ending))
        {
            files.push((path, inner));
        }
    }
    Ok(())
}

/// What a file is called by its content.
fn id(path: &Path) -> Result<FileId, CommandError> {
    let file = File::open(path).map_err(|error| cannot(path, &error))?;
    let hash = ContainerReader::open(file, &ContainerLimits::safetensors())
        .and_then(|reader| reader.hash(0..reader.meta().file_len()));
    let hash = hash.map_err(|error| {
        let what = format!("{}: {}", path.display(), error.what());
        CommandError::new(CommandExit::Usage, error.code().as_str(), what)
    });
    hash.map(FileId)
}

fn cannot(path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::local(format!("cannot read {}: {error}", path.display()))
}

fn of_serve(path: &Path, error: &ServeError) -> CommandError {
    let exit = if error.is_io() {
        CommandExit::Failed
    } else {
        CommandExit::Usage
    };
    CommandError::new(exit, error.code(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use alknet_tensor::{ContainerWriter, Dtype};
    use alknet_tensor_serve::StoreOptions;

    use super::*;

    fn make(path: &Path, byte: u8) {
        let mut writer = ContainerWriter::create(path).expect("writable");
        let content = vec![byte; 3];
        writer
            .flat("a", Dtype::U8, &[3], content.into())
            .expect("it fits");
        writer.save().expect("writable");
    }

    #[test]
    fn a_folder_is_shared_by_its_paths() {
        let folder = tempfile::tempdir().expect("writable");
        let models = folder.path().join("models");
        fs::create_dir_all(models.join("small/.hidden")).expect("writable");
        make(&models.join("a.mt"), 1);
        make(&models.join("small/b.safetensors"), 2);
        make(&models.join("small/.hidden/c.mt"), 3);
        fs::write(models.join("notes.txt"), "no tensors").expect("writable");
        let root = folder.path().join("store");
        let store = TensorStore::open(root, StoreOptions::default()).expect("writable");
        let shared = |store| share(store, &models).expect("good files");
        let all = |files, unchanged| FolderImportCounts { files, unchanged };
        assert_eq!(shared(&store), all(2, 0));
        let paths: Vec<String> = store.paths().iter().map(|it| it.0.to_string()).collect();
        assert_eq!(paths, ["a.mt", "small/b.safetensors"]);
        make(&models.join("a.mt"), 4);
        assert_eq!(shared(&store), all(2, 1));

        fs::write(models.join("bad.mt"), "no header").expect("writable");
        let error = share(&store, &models).expect_err("no container");
        assert_eq!((error.exit, &*error.code), (CommandExit::Usage, "E_LIMIT"));
        fs::remove_file(models.join("bad.mt")).expect("ours");
        make(&models.join("a b.mt"), 4);
        let error = share(&store, &models).expect_err("no path of a store");
        assert_eq!((error.exit, &*error.code), (CommandExit::Usage, "E_VALUE"));
    }
}
