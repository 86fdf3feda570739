//! `convert`: containers, NumPy arrays and archives of them, one into the other.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use crate::error::{Code, Quoted, Result, TensorError, fail};
use crate::limits::Limits;
use crate::reader::Reader;
use crate::source::ReadAt;
use crate::tools::list::cat;
use crate::tools::npy::Npy;
use crate::tools::npz::{self, Cursor};
use crate::tools::rewrite::{Options, rewrite, strip};
use crate::writer::{AtomicFile, Writer};

/// What a tensor is called that comes from a file without names.
const UNNAMED: &str = "array";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// A container with index, hashes and alignment: `.mt`, `.metatensor`.
    Metatensor,
    /// One NumPy array: `.npy`.
    Npy,
    /// An archive of NumPy arrays: `.npz`.
    Npz,
    /// A container as the stock package writes it: `.safetensors`.
    Safetensors,
}

impl Format {
    /// What a file of this name is taken for.
    ///
    /// # Errors
    /// `E_NOTFOUND`: its extension says nothing.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("metatensor" | "mt") => Ok(Self::Metatensor),
            Some("npy") => Ok(Self::Npy),
            Some("npz") => Ok(Self::Npz),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => fail(
                Code::NotFound,
                format!(
                    "{} ends with none of .mt, .npy, .npz, .safetensors",
                    Quoted(&path.to_string_lossy())
                ),
            ),
        }
    }
}

/// Reads the file `input`, writes `output`, which is there whole or not at all.
///
/// An array is made of a container with one tensor; a tensor that comes from an array is called like
/// its file.
///
/// # Errors
/// `E_IO`; what readers of the one and writers of the other refuse.
pub fn convert(
    (input, from): (&Path, Format),
    output: (&Path, Format),
    options: Options,
    limits: &Limits,
) -> Result<()> {
    let opened = File::open(input);
    let file =
        opened.map_err(|error| TensorError::io(format_args!("open {}", input.display()), error))?;
    let name = input.file_stem().and_then(|stem| stem.to_str());
    convert_source((file, name, from), output, options, limits)
}

/// The same of anything that is called `name`, if it has a name.
///
/// # Errors
/// As [`convert`].
pub fn convert_source<S: ReadAt>(
    (source, name, from): (S, Option<&str>, Format),
    (output, to): (&Path, Format),
    options: Options,
    limits: &Limits,
) -> Result<()> {
    match from {
        Format::Metatensor | Format::Safetensors => {
            container(&Reader::open(source, limits)?, (output, to), options)
        }
        Format::Npy => {
            let npy = Npy::read(BufReader::new(Cursor::new(&source)?))?;
            arrays((output, to), options, |writer| {
                let (dtype, shape) = (npy.header.dtype, npy.header.shape.clone());
                writer.flat(name.unwrap_or(UNNAMED), dtype, &shape, npy.into_content())?;
                Ok(())
            })
        }
        Format::Npz => arrays((output, to), options, |writer| {
            npz::add_archive(&source, writer)
        }),
    }
}

/// Writes a container with what `add` puts into it.
fn arrays<'a>(
    (output, to): (&Path, Format),
    options: Options,
    add: impl FnOnce(&mut Writer<'a, AtomicFile>) -> Result<()>,
) -> Result<()> {
    let file = AtomicFile::create(output)?;
    let mut writer = match to {
        Format::Safetensors => Writer::plain(file),
        Format::Metatensor => Writer::new(file),
        Format::Npy | Format::Npz => {
            let what = "between NumPy's own formats NumPy converts: take a container in between";
            return fail(Code::Dtype, what);
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
    reader: &Reader<S>,
    (output, to): (&Path, Format),
    options: Options,
) -> Result<()> {
    let file = AtomicFile::create(output)?;
    match to {
        Format::Metatensor => rewrite(reader, file, options)?.1.commit(),
        Format::Safetensors => strip(reader, file)?.1.commit(),
        Format::Npz => {
            let mut buffered = BufWriter::new(file);
            npz::write_archive(reader, &mut buffered)?;
            end(buffered)
        }
        Format::Npy => {
            let mut names = reader.names();
            let (Some(name), None) = (names.next(), names.next()) else {
                let what = "an array is made of a container with exactly one tensor";
                return fail(Code::Shape, what);
            };
            let mut buffered = BufWriter::new(file);
            cat(reader, name, None, true, &mut buffered)?;
            end(buffered)
        }
    }
}

fn end(mut buffered: BufWriter<AtomicFile>) -> Result<()> {
    let flushed = buffered.flush();
    flushed.map_err(|error| TensorError::io("write the end", error))?;
    let file = buffered.into_inner();
    file.map_err(|error| TensorError::io("write the end", error.into_error()))?
        .commit()
}
