//! Writes the tensors of a container to another file, with the additions of level 1 or without them.

use std::io::{Seek, Write};

use crate::dtype::ElementType;
use crate::error::{Result, TensorError};
use crate::header::{HeaderEntry, TensorKind};
use crate::keys::{DATA_HASH, GPU, INDEX, LEVEL, SCHEMA, is_own};
use crate::reader::ContainerReader;
use crate::source::ReadAt;
use crate::writer::{ContainerWriter, TensorContent, WriteSummary};

/// How a container is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteOptions {
    /// Tensors of a MiB and more begin at a page of the file.
    pub page_align: bool,
    /// Tensors begin at offsets that a GPU can bind. A file that already has this property keeps it.
    pub gpu: bool,
}

/// Writes a metatensor with the tensors of any container, in the order of their bytes. It keeps foreign metadata, the
/// schema, the nested view and the order.
///
/// # Errors
/// `E_IO`; the errors of [`ContainerWriter::finish`], for example for a tensor of plain safetensors with a reserved
/// name.
pub fn rewrite<S: ReadAt, W: Write + Seek>(
    reader: &ContainerReader<S>,
    sink: W,
    options: RewriteOptions,
) -> Result<(WriteSummary, W)> {
    write(reader, sink, options, None)
}

/// The same with some of the tensors. The nested view is left out, because it may name tensors that are left out.
///
/// # Errors
/// The errors of [`rewrite`].
pub fn select<S: ReadAt, W: Write + Seek>(
    reader: &ContainerReader<S>,
    sink: W,
    options: RewriteOptions,
    keep: &dyn Fn(&str) -> bool,
) -> Result<(WriteSummary, W)> {
    write(reader, sink, options, Some(keep))
}

fn write<S: ReadAt, W: Write + Seek>(
    reader: &ContainerReader<S>,
    sink: W,
    options: RewriteOptions,
    keep: Option<&dyn Fn(&str) -> bool>,
) -> Result<(WriteSummary, W)> {
    let meta = reader.meta();
    let is_kept = |name: &str| keep.is_none_or(|keep| keep(name));
    let mut writer = ContainerWriter::new(sink);
    if options.page_align {
        writer = writer.page_aligned();
    }
    let level = meta.level();
    if options.gpu || (level > 0 && meta.metadata_value(GPU) == Some("1")) {
        writer = writer.for_gpu();
    }
    if let Some(schema) = meta.schema() {
        writer = writer.with_schema(schema);
    }
    if let Some(root) = meta.root().filter(|_| keep.is_none()) {
        writer = writer.with_root(root);
    }
    if level > 0 {
        let names = meta.tensors().map(|tensor| tensor.name());
        let order = names.filter(|name| is_kept(name)).map(str::to_owned);
        writer = writer.with_order(order.collect());
    }
    for (key, value) in meta.metadata() {
        if ![LEVEL, INDEX, SCHEMA, DATA_HASH, GPU].contains(&key) {
            writer.metadata(key, value)?;
        }
    }
    for entry in meta.entries() {
        // The writer makes its own padding and offsets.
        let Some(tensor) = meta.tensor(entry.name()).ok().filter(|t| is_kept(t.name())) else {
            continue;
        };
        let content = copied(reader, entry);
        match tensor.kind() {
            TensorKind::Flat => add(&mut writer, &entry, content)?,
            TensorKind::Struct(records) => {
                let size = [records.count(), records.stride()];
                let fields = records.fields().collect();
                writer.strukt(entry.name(), records.def(), size, fields, content)?;
            }
            TensorKind::Blob(blob) => {
                let offsets = copied(reader, blob.offsets());
                let size = [blob.count(), entry.byte_len()];
                writer.blob_parts(entry.name(), blob.enc(), size, offsets, content)?;
                if let Some(other) = blob.shape_of().filter(|other| is_kept(other)) {
                    // The tensor added last is a blob, so `shape_of` finds it.
                    let _ = writer.shape_of(other);
                }
            }
        }
    }
    writer.finish()
}

/// Writes a plain safetensors file, byte for byte as the stock package would: without this format's metadata and
/// padding, and packed in the stock order. Records and items stay in the entries that hold them.
///
/// # Errors
/// `E_IO`.
pub fn strip<S: ReadAt, W: Write + Seek>(
    reader: &ContainerReader<S>,
    sink: W,
) -> Result<(WriteSummary, W)> {
    let meta = reader.meta();
    let mut writer = ContainerWriter::plain(sink);
    let own = |key: &str| meta.level() > 0 && is_own(key);
    if meta.level() == 0 && meta.has_metadata() {
        writer = writer.with_metadata();
    }
    for (key, value) in meta.metadata().filter(|(key, _)| !own(key)) {
        writer.metadata(key, value)?;
    }
    for entry in meta.entries().filter(|entry| !entry.is_pad()) {
        add(&mut writer, &entry, copied(reader, entry))?;
    }
    writer.finish()
}

/// Adds an entry as elements of its type.
fn add<'a, W: Write + Seek>(
    writer: &mut ContainerWriter<'a, W>,
    entry: &HeaderEntry<'_>,
    content: TensorContent<'a>,
) -> Result<()> {
    match entry.dtype() {
        ElementType::Known(dtype) => writer.flat(entry.name(), dtype, entry.shape(), content)?,
        ElementType::Opaque(dtype) => writer.opaque(
            entry.name(),
            dtype,
            entry.shape(),
            entry.byte_len(),
            content,
        )?,
    };
    Ok(())
}

/// The bytes of an entry, which are read while the other file is written.
fn copied<'a, S: ReadAt>(
    reader: &'a ContainerReader<S>,
    entry: HeaderEntry<'a>,
) -> TensorContent<'a> {
    TensorContent::made(move |out| {
        reader.pass(entry.file_range(), |bytes| {
            let written = out.write_all(bytes);
            written.map_err(|error| TensorError::io("copy content", error))
        })
    })
}
