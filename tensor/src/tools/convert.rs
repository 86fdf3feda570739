//! `convert`: between containers, NumPy arrays and archives of NumPy arrays.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::limits::ContainerLimits;
use crate::reader::ContainerReader;
use crate::source::ReadAt;
use crate::tools::list::cat;
use crate::tools::npy::Npy;
use crate::tools::npz::{self, Cursor};
use crate::tools::rewrite::{RewriteOptions, rewrite, strip};
use crate::writer::{AtomicFile, ContainerWriter};

/// The name of a tensor from a file without names.
const UNNAMED: &str = "array";

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArrayFormat {
    /// A container with index, hashes and alignment: `.mt`, `.metatensor`.
    Metatensor,
    /// One NumPy array: `.npy`.
    Npy,
    /// An archive of NumPy arrays: `.npz`.
    Npz,
    /// A container as the stock package writes it: `.safetensors`.
    Safetensors,
}

impl ArrayFormat {
    /// The format that the extension of a file name stands for.
    ///
    /// # Errors
    /// `E_NOTFOUND` for an extension other than the known ones.
    pub fn from_path(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("metatensor" | "mt") => Ok(Self::Metatensor),
            Some("npy") => Ok(Self::Npy),
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => fail(
                TensorErrorCode::NotFound,
                format!(
                    "{} ends with none of .mt, .npy, .npz, .safetensors",
                    QuotedText(&path.to_string_lossy())
                ),
            ),
        }
    }
}

/// Converts the file `input` to `output`, which is written whole or not at all.
///
/// A container with exactly one tensor becomes an array; a tensor made of an array gets the name of
/// its file.
///
/// # Errors
/// `E_IO`; the errors of the readers of `from` and of the writers of `to`.
pub fn convert(
    (input, from): (&Path, ArrayFormat),
    output: (&Path, ArrayFormat),
    options: RewriteOptions,
    limits: &ContainerLimits,
) -> Result<()> {
    let opened = File::open(input);
    let file =
        opened.map_err(|error| TensorError::io(format_args!("open {}", input.display()), error))?;
    let name = input.file_stem().and_then(|stem| stem.to_str());
    convert_source((file, name, from), output, options, limits)
}

/// The same for a source named `name`, if it has a name.
///
/// # Errors
/// The errors of [`convert`].
pub fn convert_source<S: ReadAt>(
    (source, name, from): (S, Option<&str>, ArrayFormat),
    (output, to): (&Path, ArrayFormat),
    options: RewriteOptions,
    limits: &ContainerLimits,
) -> Result<()> {
    match from {
        ArrayFormat::Metatensor | ArrayFormat::Safetensors => container(
            &ContainerReader::open(source, limits)?,
            (output, to),
            options,
        ),
        ArrayFormat::Npy => {
            let npy = Npy::read(BufReader::new(Cursor::new(&source)?))?;
            arrays((output, to), options, |writer| {
                let (dtype, shape) = (npy.header.dtype, npy.header.shape.clone());
                writer.flat(name.unwrap_or(UNNAMED), dtype, &shape, npy.into_content())?;
                Ok(())
            })
        }
        ArrayFormat::Npz => arrays((output, to), options, |writer| {
            npz::add_archive(&source, writer)
        }),
    }
}

/// Writes a container with the tensors that `add` adds to it.
fn arrays<'a>(
    (output, to): (&Path, ArrayFormat),
    options: RewriteOptions,
    add: impl FnOnce(&mut ContainerWriter<'a, AtomicFile>) -> Result<()>,
) -> Result<()> {
    let file = AtomicFile::create(output)?;
    let mut writer = match to {
        ArrayFormat::Safetensors => ContainerWriter::plain(file),
        ArrayFormat::Metatensor => ContainerWriter::new(file),
        ArrayFormat::Npy | ArrayFormat::Npz => {
            let what = "between NumPy's own formats NumPy converts: take a container in between";
            return fail(TensorErrorCode::Dtype, what);
        }
    };
    if options.page_align {
        writer = writer.page_aligned();
    }
    if options.gpu {
        writer = writer.for_gpu();
    }
    add(&mut writer)?;
    writer.save()?;
    Ok(())
}

fn container<S: ReadAt>(
    reader: &ContainerReader<S>,
    (output, to): (&Path, ArrayFormat),
    options: RewriteOptions,
) -> Result<()> {
    let file = AtomicFile::create(output)?;
    match to {
        ArrayFormat::Metatensor => rewrite(reader, file, options)?.1.commit(),
        ArrayFormat::Safetensors => strip(reader, file)?.1.commit(),
        ArrayFormat::Npz => {
            let mut buffered = BufWriter::new(file);
            npz::write_archive(reader, &mut buffered)?;
            end(buffered)
        }
        ArrayFormat::Npy => {
            let mut names = reader.names();
            // An NPY file holds exactly one array.
            let (Some(name), None) = (names.next(), names.next()) else {
                let what = "an array is made of a container with exactly one tensor";
                return fail(TensorErrorCode::Shape, what);
            };
            let mut buffered = BufWriter::new(file);
            cat(reader, name, None, true, &mut buffered)?;
            end(buffered)
        }
    }
}

// An error of the last flush would be lost if the buffer were dropped.
fn end(mut buffered: BufWriter<AtomicFile>) -> Result<()> {
    let flushed = buffered.flush();
    flushed.map_err(|error| TensorError::io("write the end", error))?;
    let file = buffered.into_inner();
    file.map_err(|error| TensorError::io("write the end", error.into_error()))?
        .commit()
}
