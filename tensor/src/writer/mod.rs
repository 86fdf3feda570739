//! Writes a container.
//!
//! The caller first describes all content with its sizes. [`ContainerWriter::finish`] then writes the header with
//! zeros in place of hashes, hashes the data while it writes them once, and puts the hashes into the header. The same
//! input gives the same bytes.

mod batch;
mod chunk_aligner;
mod content;
#[cfg(not(target_family = "wasm"))]
mod file;
mod plan;
mod stream;
mod sums;
mod text;
mod tree;

use std::borrow::Cow;
use std::io::{Seek, SeekFrom, Write};

use blake3::Hash;

use crate::dtype::{Dtype, ElementType};
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::header::{Meta, byte_len};
use crate::integrity::FileId;
use crate::keys::{DATA_HASH, GPU, INDEX, LEVEL, SCHEMA, is_reserved};
use crate::layout::StructField;
use crate::limits::ContainerLimits;

pub use content::TensorContent;
#[cfg(not(target_family = "wasm"))]
pub use file::AtomicFile;

use plan::{ContainerPlan, PlannedKind, PlannedTensor};
use stream::{DataHashes, DataStream};

/// Alignment of entries and of the data.
const ALIGN: u32 = 64;
/// Alignment of every offset that a GPU may bind: the largest minimum that WebGPU allows a device to require.
const ALIGN_GPU: u32 = 256;
/// Size of a page.
const ALIGN_PAGE: u32 = 4096;
/// Bytes from which a tensor begins at a page, if the caller wants that.
const PAGE_ALIGN_FROM: u64 = 1 << 20;

/// The result of writing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSummary {
    /// BLAKE3 of the whole file.
    pub id: FileId,
    /// BLAKE3 of the header with its length prefix.
    pub header_hash: Hash,
    /// Bytes of the file.
    pub file_len: u64,
}

/// Writes a container to `W`.
#[derive(Debug)]
pub struct ContainerWriter<'a, W> {
    sink: W,
    plan: ContainerPlan<'a>,
    limits: ContainerLimits,
}

impl<'a, W: Write + Seek> ContainerWriter<'a, W> {
    /// Begins a metatensor: with index, hashes and alignment. Tensors are written in the order in which the caller
    /// adds them.
    pub fn new(sink: W) -> Self {
        Self {
            sink,
            plan: ContainerPlan::default(),
            limits: ContainerLimits::safetensors(),
        }
    }

    /// Begins a plain safetensors file, byte for byte as the stock package writes it: packed by descending type, then
    /// by name.
    pub fn plain(sink: W) -> Self {
        let mut writer = Self::new(sink);
        writer.plan.plain = true;
        writer
    }

    /// Refuses content that readers with these limits would refuse. By default, the limits are those of stock
    /// readers.
    #[must_use]
    pub const fn with_limits(mut self, limits: ContainerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Makes tensors of a MiB and more begin at a page of the file.
    #[must_use]
    pub const fn page_aligned(mut self) -> Self {
        self.plan.pages = true;
        self
    }

    /// Makes tensors begin at offsets that a GPU can bind, and notes it in the file.
    #[must_use]
    pub const fn for_gpu(mut self) -> Self {
        self.plan.gpu = true;
        self
    }

    /// Sets the nested view: JSON objects whose leaves are `"#NAME"`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.plan.root = Some(root.into());
        self
    }

    /// Sets the schema of the records.
    #[must_use]
    pub fn with_schema(mut self, schema: impl Into<String>) -> Self {
        self.plan.schema = Some(schema.into());
        self
    }

    /// Sets the loading order, which is otherwise the order in which the caller adds tensors.
    #[must_use]
    pub fn with_order(mut self, order: Vec<String>) -> Self {
        self.plan.order = Some(order);
        self
    }

    /// Writes a metadata object even if it is empty.
    #[must_use]
    pub fn with_metadata(mut self) -> Self {
        self.plan.metadata.get_or_insert_default();
        self
    }

    /// Adds metadata of another program, unchanged.
    ///
    /// # Errors
    /// `E_HEADER` for the keys that this writer itself writes. `finish` refuses a duplicate key.
    pub fn metadata(
        &mut self,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<&mut Self> {
        let (key, value) = (key.into(), value.into());
        if !self.plan.plain && [LEVEL, INDEX, SCHEMA, DATA_HASH, GPU].contains(&&*key) {
            let what = format!("metadata {} is the writer's own", QuotedText(&key));
            return fail(TensorErrorCode::Header, what);
        }
        self.plan
            .metadata
            .get_or_insert_default()
            .push((key, value));
        Ok(self)
    }

    /// Adds elements of one type.
    ///
    /// # Errors
    /// `E_OVERFLOW`, `E_DTYPE` if the shape has no size in bytes; `E_SHAPE` if the content is in memory and has
    /// another size; `E_HEADER` for a reserved name.
    pub fn flat(
        &mut self,
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[u64],
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let len = byte_len(ElementType::Known(dtype), shape)?;
        self.add(PlannedTensor {
            name: name.into(),
            dtype: Cow::Borrowed(dtype.name()),
            shape: shape.to_vec(),
            len,
            kind: PlannedKind::Flat,
            content: Some(content),
        })
    }

    /// Adds elements of another program's type, in `len` bytes.
    ///
    /// # Errors
    /// The errors of [`ContainerWriter::flat`]; `E_DTYPE` if this crate knows the type.
    pub fn opaque(
        &mut self,
        name: impl Into<String>,
        dtype: impl Into<String>,
        shape: &[u64],
        len: u64,
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let dtype = dtype.into();
        // The shape determines the size of a known type, which this function does not check.
        if Dtype::from_name(&dtype).is_some() {
            return fail(
                TensorErrorCode::Dtype,
                format!("{dtype} is no unknown type"),
            );
        }
        self.add(PlannedTensor {
            name: name.into(),
            dtype: Cow::Owned(dtype),
            shape: shape.to_vec(),
            len,
            kind: PlannedKind::Flat,
            content: Some(content),
        })
    }

    /// Adds `count` records of `stride` bytes. `def` names their definition in the schema.
    ///
    /// # Errors
    /// The errors of [`ContainerWriter::flat`]. `finish` refuses fields that overlap or reach beyond a record.
    pub fn strukt(
        &mut self,
        name: impl Into<String>,
        def: impl Into<String>,
        [count, stride]: [u64; 2],
        fields: Vec<StructField<'a>>,
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let shape = vec![count, stride];
        let len = byte_len(ElementType::Known(Dtype::U8), &shape)?;
        self.add(PlannedTensor {
            name: name.into(),
            dtype: Cow::Borrowed(Dtype::U8.name()),
            shape,
            len,
            kind: PlannedKind::Struct {
                def: def.into(),
                fields,
            },
            content: Some(content),
        })
    }

    /// Adds items of these lengths, end to end in `content`. `enc` is `utf8`, `bytes`, `json` or a media type.
    ///
    /// # Errors
    /// The errors of [`ContainerWriter::flat`].
    pub fn blob(
        &mut self,
        name: impl Into<String>,
        enc: impl Into<String>,
        lengths: impl IntoIterator<Item = u64>,
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let name = name.into();
        let mut total = 0_u64;
        let mut offsets = total.to_le_bytes().to_vec();
        for length in lengths {
            let Some(sum) = total.checked_add(length) else {
                let what = format!("blob {}: items of more than 2^64 bytes", QuotedText(&name));
                return fail(TensorErrorCode::Overflow, what);
            };
            total = sum;
            offsets.extend(total.to_le_bytes());
        }
        // The offsets begin with a zero, so there is one more offset than items.
        let count = offsets.len() as u64 / 8 - 1;
        self.blob_parts(name, enc, [count, total], offsets.into(), content)
    }

    /// Adds `count` items in `total` bytes, with their `count + 1` offsets in the form of the file.
    ///
    /// # Errors
    /// The errors of [`ContainerWriter::flat`]. The offsets are not checked.
    pub fn blob_parts(
        &mut self,
        name: impl Into<String>,
        enc: impl Into<String>,
        [count, total]: [u64; 2],
        offsets: TensorContent<'a>,
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let ends = count.checked_add(1);
        let bytes = ends.and_then(|ends| ends.checked_mul(8));
        let (Some(ends), Some(bytes)) = (ends, bytes) else {
            return fail(
                TensorErrorCode::Overflow,
                format!("a blob of {count} items"),
            );
        };
        offsets.check(bytes)?;
        self.add(PlannedTensor {
            name: name.into(),
            dtype: Cow::Borrowed(Dtype::U8.name()),
            shape: vec![total],
            len: total,
            kind: PlannedKind::Blob {
                enc: enc.into(),
                shape_of: None,
                ends,
                offsets: Some(offsets),
            },
            content: Some(content),
        })
    }

    /// Notes that the items of the blob added last are ragged arrays with their shapes in this tensor.
    #[must_use]
    pub fn shape_of(&mut self, tensor: impl Into<String>) -> Option<&mut Self> {
        let last = self.plan.tensors.last_mut()?;
        let PlannedKind::Blob { shape_of, .. } = &mut last.kind else {
            return None;
        };
        *shape_of = Some(tensor.into());
        Some(self)
    }

    /// Writes the file. Returns the sink positioned after its end.
    ///
    /// # Errors
    /// `E_IO`; `E_SHAPE` if content is longer or shorter than its shape; `E_DUPKEY` for two tensors with one name;
    /// every error of a reader.
    pub fn finish(mut self) -> Result<(WriteSummary, W)> {
        let io = |what| move |error| TensorError::io(what, error);
        // The sink may already hold bytes, for example as a part of a larger file.
        let base = self.sink.stream_position().map_err(io("find the place"))?;
        let layout = self.plan.assign_ranges()?;
        let zero = Hash::from_bytes([0; 32]);
        // The hashes are not known yet. Zeros in their place give the header its final length.
        let header = text::header(&self.plan, &layout, &vec![zero; layout.placed.len()], zero);
        // The header is parsed as a reader would parse it, before any byte is written.
        Meta::parse(&header[8..], layout.data_len, &self.limits)?;
        self.sink
            .write_all(&header)
            .map_err(io("write the header"))?;

        let (header_len, hashed) = (header.len() as u64, !self.plan.plain);
        let mut stream = DataStream::new(&mut self.sink, header_len, layout.data_len, hashed);
        for placed in &layout.placed {
            let content = self.plan.content(placed.part);
            stream.entry(&placed.name, placed.end - placed.start, content)?;
        }
        let DataHashes { hashes, tree } = stream.end()?;

        let header = match hashes {
            Some((data, entries)) => text::header(&self.plan, &layout, &entries, data),
            None => header,
        };
        let file_len = header.len() as u64 + layout.data_len;
        // A plain file has no hashes to fill in.
        if !self.plan.plain {
            let seek = |to| move |error| TensorError::io(format!("seek to {to}"), error);
            let end = base + file_len;
            self.sink.seek(SeekFrom::Start(base)).map_err(seek(base))?;
            self.sink
                .write_all(&header)
                .map_err(io("write the header"))?;
            // The caller expects the sink at the end of the file.
            self.sink.seek(SeekFrom::Start(end)).map_err(seek(end))?;
        }
        self.sink.flush().map_err(io("write the end"))?;
        let written = WriteSummary {
            id: FileId(tree.finish(&header)),
            header_hash: blake3::hash(&header),
            file_len,
        };
        Ok((written, self.sink))
    }

    fn add(&mut self, tensor: PlannedTensor<'a>) -> Result<&mut Self> {
        let label = || format!("tensor {}", QuotedText(&tensor.name));
        // A plain file has no index, so only the format's own key is reserved.
        let reserved = match self.plan.plain {
            true => tensor.name == crate::keys::METADATA,
            false => is_reserved(&tensor.name),
        };
        if reserved {
            return fail(
                TensorErrorCode::Header,
                format!("{}: the name is reserved", label()),
            );
        }
        // A wrong size of content in memory is found here; that of other content is found when it is read.
        if let Some(content) = &tensor.content {
            content
                .check(tensor.len)
                .map_err(|error| error.with_subject(label()))?;
        }
        self.plan.tensors.push(tensor);
        Ok(self)
    }
}
