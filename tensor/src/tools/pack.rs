//! `pack`: the files of a folder as one container.

use std::fs::{self, File};
use std::io::{BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::limits::ENTRIES_MAX;
use crate::tools::npy::Npy;
use crate::tools::rewrite::RewriteOptions;
use crate::writer::{ContainerWriter, TensorContent, WriteSummary};

/// Depth of nested folders.
const DEPTH_MAX: usize = 32;
/// Suffix of files that hold an array.
const ARRAY_SUFFIX: &str = ".npy";
/// Encodings of other files, by the suffix of their names.
const ENCODINGS: [(&str, &str); 4] = [
    (".csv", "utf8"),
    (".json", "json"),
    (".md", "utf8"),
    (".txt", "utf8"),
];
/// The encoding of all other files.
const ENCODING: &str = "bytes";

/// Writes a metatensor with every file below `folder`, sorted by name: an array as a tensor named
/// by its path without `.npy`, any other file as a blob of one item named by its path.
///
/// # Errors
/// `E_IO`, also for an entry that is neither file nor folder; `E_VALUE` for a name that is not
/// UTF-8; `E_LIMIT`; the errors of [`Npy::read`] and [`ContainerWriter::finish`].
pub fn pack<W: Write + Seek>(
    folder: &Path,
    sink: W,
    options: RewriteOptions,
) -> Result<(WriteSummary, W)> {
    let mut files = Vec::new();
    collect(folder, "", 0, &mut files)?;
    let mut writer = ContainerWriter::new(sink);
    if options.page_align {
        writer = writer.page_aligned();
    }
    if options.gpu {
        writer = writer.for_gpu();
    }
    for (name, path) in files {
        let opened = File::open(&path);
        let file = opened.map_err(|error| TensorError::io(QuotedText(&name), error))?;
        match name.strip_suffix(ARRAY_SUFFIX) {
            Some(array) => {
                // The file is opened again when its content is written, because a folder may have
                // more files than a process may have open.
                let npy = Npy::read(BufReader::new(file));
                let header = npy
                    .map_err(|error| error.with_subject(QuotedText(&name)))?
                    .header;
                let content = TensorContent::made(move |out| {
                    let file = File::open(&path);
                    let file = file.map_err(|error| TensorError::io("open it again", error))?;
                    let npy = Npy::read(BufReader::new(file))?;
                    npy.write_elements(out)
                });
                writer.flat(array, header.dtype, &header.shape, content)?;
            }
            None => {
                let metadata = file.metadata();
                let len = metadata
                    .map_err(|error| TensorError::io(QuotedText(&name), error))?
                    .len();
                let known = ENCODINGS.iter().find(|(suffix, _)| name.ends_with(suffix));
                let enc = known.map_or(ENCODING, |(_, enc)| enc);
                let content = TensorContent::made(move |out| {
                    let copied =
                        File::open(&path).and_then(|mut file| std::io::copy(&mut file, out));
                    copied.map_err(|error| TensorError::io("copy it", error))?;
                    Ok(())
                });
                writer.blob(name, enc, [len], content)?;
            }
        }
    }
    writer.finish()
}

/// Every file below the folder, with its name and path.
fn collect(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<()> {
    // The limit bounds the recursion over folders.
    if depth > DEPTH_MAX {
        return fail(
            TensorErrorCode::Limit,
            format!("folders deeper than {DEPTH_MAX}"),
        );
    }
    let io = |error| TensorError::io(format_args!("read {}", folder.display()), error);
    let entries = fs::read_dir(folder).map_err(io)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(io)?;
    // readdir(3) returns entries in no defined order, and the same files must give the same
    // container.
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            let what = format!("{} is not UTF-8", QuotedText(&path.to_string_lossy()));
            return fail(TensorErrorCode::Value, what);
        };
        let name = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(io)?;
        // A link counts as the file that it leads to. Links to folders are not followed, because
        // they could form a cycle.
        let is_file = match kind.is_symlink() {
            true => fs::metadata(&path)
                .map_err(|error| TensorError::io(QuotedText(&name), error))?
                .is_file(),
            false => kind.is_file(),
        };
        if kind.is_dir() {
            collect(&path, &format!("{name}/"), depth + 1, files)?;
        } else if is_file {
            if files.len() >= ENTRIES_MAX as usize {
                return fail(
                    TensorErrorCode::Limit,
                    format!("more than {ENTRIES_MAX} files"),
                );
            }
            files.push((name, path));
        } else {
            let what = format!("{} is neither file nor folder", QuotedText(&name));
            return fail(TensorErrorCode::Io, what);
        }
    }
    Ok(())
}
