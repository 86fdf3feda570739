//! The layout of the file.

use std::borrow::Cow;

use crate::dtype::Dtype;
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode};
use crate::keys::{OFFSETS_SUFFIX, PAD_PREFIX};
use crate::layout::StructField;
use crate::writer::content::TensorContent;
use crate::writer::{ALIGN, ALIGN_GPU, ALIGN_PAGE, PAGE_ALIGN_FROM};

/// The content that the caller has added.
#[derive(Debug, Default)]
pub(super) struct ContainerPlan<'a> {
    pub(super) plain: bool,
    pub(super) pages: bool,
    pub(super) gpu: bool,
    pub(super) tensors: Vec<PlannedTensor<'a>>,
    pub(super) metadata: Option<Vec<(String, String)>>,
    pub(super) schema: Option<String>,
    pub(super) root: Option<String>,
    pub(super) order: Option<Vec<String>>,
}

#[derive(Debug)]
pub(super) struct PlannedTensor<'a> {
    pub(super) name: String,
    pub(super) dtype: Cow<'static, str>,
    pub(super) shape: Vec<u64>,
    pub(super) len: u64,
    pub(super) kind: PlannedKind<'a>,
    pub(super) content: Option<TensorContent<'a>>,
}

#[derive(Debug)]
pub(super) enum PlannedKind<'a> {
    Flat,
    Struct {
        def: String,
        fields: Vec<StructField<'a>>,
    },
    Blob {
        enc: String,
        shape_of: Option<String>,
        ends: u64,
        offsets: Option<TensorContent<'a>>,
    },
}

/// The part of a tensor that an entry holds. Tensors are referred to by their position in the plan.
#[derive(Clone, Copy, Debug)]
pub(super) enum EntryPart {
    Pad,
    Data(usize),
    Offsets(usize),
}

#[derive(Debug)]
pub(super) struct PlacedEntry {
    pub(super) name: String,
    pub(super) dtype: Cow<'static, str>,
    pub(super) shape: Vec<u64>,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) align: u32,
    pub(super) part: EntryPart,
}

/// All entries in the order of their bytes.
#[derive(Debug)]
pub(super) struct EntryLayout {
    pub(super) placed: Vec<PlacedEntry>,
    pub(super) data_len: u64,
    /// Alignment of the data in the file.
    pub(super) align: u32,
}

impl<'a> ContainerPlan<'a> {
    /// Assigns every entry its range.
    pub(super) fn assign_ranges(&mut self) -> Result<EntryLayout> {
        if self.plain {
            // The stock writer's order has no position for unknown types, so they come last.
            self.tensors.sort_by(|a, b| {
                let types = Dtype::from_name(&b.dtype).cmp(&Dtype::from_name(&a.dtype));
                types.then_with(|| a.name.cmp(&b.name))
            });
        }
        let mut layout = EntryLayout {
            placed: Vec::new(),
            data_len: 0,
            // The stock package aligns the data to eight bytes.
            align: if self.plain { 8 } else { ALIGN },
        };
        let mut pads = 0;
        for (at, tensor) in self.tensors.iter().enumerate() {
            let align = self.align(tensor.len);
            layout.pad(align, &mut pads)?;
            layout.put(EntryPart::Data(at), tensor, tensor.len, align)?;
            if let PlannedKind::Blob { ends, .. } = tensor.kind {
                // Adding the blob has checked that this product fits 64 bits.
                let len = ends.saturating_mul(8);
                let align = self.align(len);
                layout.pad(align, &mut pads)?;
                layout.put(EntryPart::Offsets(at), tensor, len, align)?;
                if let Some(last) = layout.placed.last_mut() {
                    last.name.push_str(OFFSETS_SUFFIX);
                    last.dtype = Cow::Borrowed(Dtype::U64.name());
                    last.shape = vec![ends];
                }
            }
        }
        Ok(layout)
    }

    fn align(&self, len: u64) -> u32 {
        match (self.plain, self.gpu) {
            (true, _) => 1,
            _ if self.pages && len >= PAGE_ALIGN_FROM => ALIGN_PAGE,
            (false, true) => ALIGN_GPU,
            (false, false) => ALIGN,
        }
    }

    /// Takes the content of a part, which is written once.
    pub(super) fn content(&mut self, part: EntryPart) -> Option<TensorContent<'a>> {
        match part {
            EntryPart::Pad => None,
            EntryPart::Data(at) => self.tensors.get_mut(at)?.content.take(),
            EntryPart::Offsets(at) => match &mut self.tensors.get_mut(at)?.kind {
                PlannedKind::Blob { offsets, .. } => offsets.take(),
                _ => None,
            },
        }
    }
}

impl EntryLayout {
    fn put(
        &mut self,
        part: EntryPart,
        tensor: &PlannedTensor<'_>,
        len: u64,
        align: u32,
    ) -> Result<()> {
        let end = self.data_len.checked_add(len).ok_or_else(|| {
            let what = format!("tensor {} ends beyond 2^64 bytes", QuotedText(&tensor.name));
            TensorError::new(TensorErrorCode::Overflow, what)
        })?;
        self.align = self.align.max(align);
        self.placed.push(PlacedEntry {
            name: tensor.name.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            start: self.data_len,
            end,
            align,
            part,
        });
        self.data_len = end;
        Ok(())
    }

    /// Adds padding up to a multiple of `align`.
    fn pad(&mut self, align: u32, pads: &mut u32) -> Result<()> {
        let end = self.data_len.checked_next_multiple_of(align.into());
        let what = || TensorError::new(TensorErrorCode::Overflow, "tensors end beyond 2^64 bytes");
        let end = end.ok_or_else(what)?;
        // Padding of no bytes would be an entry for nothing.
        if end == self.data_len {
            return Ok(());
        }
        self.placed.push(PlacedEntry {
            name: format!("{PAD_PREFIX}{pads}"),
            dtype: Cow::Borrowed(Dtype::U8.name()),
            shape: vec![end - self.data_len],
            start: self.data_len,
            end,
            align: 1,
            part: EntryPart::Pad,
        });
        *pads += 1;
        self.data_len = end;
        Ok(())
    }
}
