//! Making a container.
//!
//! What is to be written is said first, with its sizes; [`ContainerWriter::finish`] then writes the header
//! with zeros for hashes, lets the data pass once while it is hashed, and puts the hashes into their
//! places. The same input gives the same bytes.

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

/// What these files are aligned to, and the header.
const ALIGN: u32 = 64;
/// What a GPU may bind at any offset of: the largest that WebGPU allows a device to ask for.
const ALIGN_GPU: u32 = 256;
/// A page.
const ALIGN_PAGE: u32 = 4096;
/// From how many bytes on a tensor begins with a page, where that is asked for.
const PAGE_ALIGN_FROM: u64 = 1 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSummary {
    /// BLAKE3 of the whole file.
    pub id: FileId,
    /// BLAKE3 of the header with the length before it.
    pub header_hash: Hash,
    /// Bytes of the file.
    pub file_len: u64,
}

/// Makes a container in `W`.
#[derive(Debug)]
pub struct ContainerWriter<'a, W> {
    sink: W,
    plan: ContainerPlan<'a>,
    limits: ContainerLimits,
}

impl<'a, W: Write + Seek> ContainerWriter<'a, W> {
    /// A metatensor: with index, hashes and alignment. Tensors stand in the order that they are
    /// given in.
    pub fn new(sink: W) -> Self {
        Self {
            sink,
            plan: ContainerPlan::default(),
            limits: ContainerLimits::safetensors(),
        }
    }

    /// A plain safetensors file, byte for byte as the stock package writes it: packed by descending
    /// type, then by name.
    pub fn plain(sink: W) -> Self {
        let mut writer = Self::new(sink);
        writer.plan.plain = true;
        writer
    }

    /// Refuses what readers with these limits would. Unless this is called, what no stock reader
    /// takes is refused.
    #[must_use]
    pub const fn with_limits(mut self, limits: ContainerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Tensors of a MiB and more begin with a page of the file.
    #[must_use]
    pub const fn page_aligned(mut self) -> Self {
        self.plan.pages = true;
        self
    }

    /// Tensors begin where a GPU can bind them, and the file says so.
    #[must_use]
    pub const fn for_gpu(mut self) -> Self {
        self.plan.gpu = true;
        self
    }

    /// The nested view: JSON objects whose leaves are `"#NAME"`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<String>) -> Self {
        self.plan.root = Some(root.into());
        self
    }

    /// The schema of the records.
    #[must_use]
    pub fn with_schema(mut self, schema: impl Into<String>) -> Self {
        self.plan.schema = Some(schema.into());
        self
    }

    /// The order to load tensors in, which is otherwise the order that they are given in.
    #[must_use]
    pub fn with_order(mut self, order: Vec<String>) -> Self {
        self.plan.order = Some(order);
        self
    }

    /// There is metadata, be it empty.
    #[must_use]
    pub fn with_metadata(mut self) -> Self {
        self.plan.metadata.get_or_insert_default();
        self
    }

    /// Metadata of another program, kept as it is.
    ///
    /// # Errors
    /// `E_HEADER` for the keys that this writer itself fills in. A key that was given before is
    /// refused at the end.
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

    /// Elements of one type.
    ///
    /// # Errors
    /// `E_OVERFLOW`, `E_DTYPE` where the shape has no size in bytes; `E_SHAPE` where the content is
    /// known and has another; `E_HEADER` for a reserved name.
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

    /// Elements of another program's type, in so many bytes.
    ///
    /// # Errors
    /// As [`ContainerWriter::flat`]; `E_DTYPE` where the type is one of ours.
    pub fn opaque(
        &mut self,
        name: impl Into<String>,
        dtype: impl Into<String>,
        shape: &[u64],
        len: u64,
        content: TensorContent<'a>,
    ) -> Result<&mut Self> {
        let dtype = dtype.into();
        // A known type has its size by its shape, which is not checked here.
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

    /// `count` records of `stride` bytes. `def` names their definition in the schema.
    ///
    /// # Errors
    /// As [`ContainerWriter::flat`]. Fields that overlap or reach beyond a record are refused at the end.
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

    /// Items of these lengths, end to end in `content`. `enc` is `utf8`, `bytes`, `json` or a media
    /// type.
    ///
    /// # Errors
    /// As [`ContainerWriter::flat`].
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
        let count = offsets.len() as u64 / 8 - 1;
        self.blob_parts(name, enc, [count, total], offsets.into(), content)
    }

    /// `count` items in `total` bytes, with their `count + 1` offsets as they stand in a file.
    ///
    /// # Errors
    /// As [`ContainerWriter::flat`]. The offsets are not looked at.
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

    /// The items of the blob added last are ragged arrays, whose shapes are in this tensor.
    #[must_use]
    pub fn shape_of(&mut self, tensor: impl Into<String>) -> Option<&mut Self> {
        let last = self.plan.tensors.last_mut()?;
        let PlannedKind::Blob { shape_of, .. } = &mut last.kind else {
            return None;
        };
        *shape_of = Some(tensor.into());
        Some(self)
    }

    /// Writes the file. Gives back where it was written, behind its end.
    ///
    /// # Errors
    /// `E_IO`; `E_SHAPE` where content is longer or shorter than said; `E_DUPKEY` where two tensors
    /// have one name; whatever a reader would refuse.
    pub fn finish(mut self) -> Result<(WriteSummary, W)> {
        let io = |what| move |error| TensorError::io(what, error);
        let base = self.sink.stream_position().map_err(io("find the place"))?;
        let layout = self.plan.place()?;
        let zero = Hash::from_bytes([0; 32]);
        let header = text::header(&self.plan, &layout, &vec![zero; layout.placed.len()], zero);
        // What is written is read as another program would, before any of it is.
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
        // A plain file has no hashes to put in.
        if !self.plan.plain {
            let seek = |to| move |error| TensorError::io(format!("seek to {to}"), error);
            let end = base + file_len;
            self.sink.seek(SeekFrom::Start(base)).map_err(seek(base))?;
            self.sink
                .write_all(&header)
                .map_err(io("write the header"))?;
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
        let said = || format!("tensor {}", QuotedText(&tensor.name));
        let reserved = match self.plan.plain {
            true => tensor.name == crate::keys::METADATA,
            false => is_reserved(&tensor.name),
        };
        if reserved {
            return fail(
                TensorErrorCode::Header,
                format!("{}: the name is reserved", said()),
            );
        }
        if let Some(content) = &tensor.content {
            content
                .check(tensor.len)
                .map_err(|error| error.with_subject(said()))?;
        }
        self.plan.tensors.push(tensor);
        Ok(self)
    }
}
