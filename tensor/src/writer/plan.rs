//! Where everything will lie.

use std::borrow::Cow;

use crate::dtype::Dtype;
use crate::error::{Code, Quoted, Result, TensorError};
use crate::keys::{OFFSETS_SUFFIX, PAD_PREFIX};
use crate::layout::Field;
use crate::writer::content::Content;
use crate::writer::{ALIGN, ALIGN_GPU, ALIGN_PAGE, PAGE_ALIGN_FROM};

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    pub(super) plain: bool,
    pub(super) pages: bool,
    pub(super) gpu: bool,
    pub(super) tensors: Vec<Planned<'a>>,
    pub(super) metadata: Option<Vec<(String, String)>>,
    pub(super) schema: Option<String>,
    pub(super) root: Option<String>,
    pub(super) order: Option<Vec<String>>,
}

#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub(super) name: String,
    pub(super) dtype: Cow<'static, str>,
    pub(super) shape: Vec<u64>,
    pub(super) len: u64,
    pub(super) kind: Kind<'a>,
    pub(super) content: Option<Content<'a>>,
}

#[derive(Debug)]
pub(super) enum Kind<'a> {
    Flat,
    Struct {
        def: String,
        fields: Vec<Field<'a>>,
    },
    Blob {
        enc: String,
        shape_of: Option<String>,
        ends: u64,
        offsets: Option<Content<'a>>,
    },
}

/// What the bytes of an entry are. Tensors are named by their place in the plan.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Pad,
    Data(usize),
    Offsets(usize),
}

#[derive(Debug)]
pub(super) struct Placed {
    pub(super) name: String,
    pub(super) dtype: Cow<'static, str>,
    pub(super) shape: Vec<u64>,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) align: u32,
    pub(super) part: Part,
}

/// All entries by their bytes.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) placed: Vec<Placed>,
    pub(super) data_len: u64,
    /// What the data itself begins at a multiple of.
    pub(super) align: u32,
}

impl<'a> Plan<'a> {
    /// Gives every entry its place.
    pub(super) fn place(&mut self) -> Result<Layout> {
        if self.plain {
            // Unknown types have no place in the stock writer's order: they come last.
            self.tensors.sort_by(|a, b| {
                let types = Dtype::from_name(&b.dtype).cmp(&Dtype::from_name(&a.dtype));
                types.then_with(|| a.name.cmp(&b.name))
            });
        }
        let mut layout = Layout {
            placed: Vec::new(),
            data_len: 0,
            align: if self.plain { 8 } else { ALIGN },
        };
        let mut pads = 0;
        for (at, tensor) in self.tensors.iter().enumerate() {
            let align = self.align(tensor.len);
            layout.pad(align, &mut pads)?;
            layout.put(Part::Data(at), tensor, tensor.len, align)?;
            if let Kind::Blob { ends, .. } = tensor.kind {
                // As many bytes were found to fit when the blob was added.
                let len = ends.saturating_mul(8);
                let align = self.align(len);
                layout.pad(align, &mut pads)?;
                layout.put(Part::Offsets(at), tensor, len, align)?;
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

    /// The content of a part, once.
    pub(super) fn content(&mut self, part: Part) -> Option<Content<'a>> {
        match part {
            Part::Pad => None,
            Part::Data(at) => self.tensors.get_mut(at)?.content.take(),
            Part::Offsets(at) => match &mut self.tensors.get_mut(at)?.kind {
                Kind::Blob { offsets, .. } => offsets.take(),
                _ => None,
            },
        }
    }
}

impl Layout {
    fn put(&mut self, part: Part, tensor: &Planned<'_>, len: u64, align: u32) -> Result<()> {
        let end = self.data_len.checked_add(len).ok_or_else(|| {
            let what = format!("tensor {} ends beyond 2^64 bytes", Quoted(&tensor.name));
            TensorError::new(Code::Overflow, what)
        })?;
        self.align = self.align.max(align);
        self.placed.push(Placed {
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

    /// Fills up to a multiple of `align`.
    fn pad(&mut self, align: u32, pads: &mut u32) -> Result<()> {
        let end = self.data_len.checked_next_multiple_of(align.into());
        let what = || TensorError::new(Code::Overflow, "tensors end beyond 2^64 bytes");
        let end = end.ok_or_else(what)?;
        if end == self.data_len {
            return Ok(());
        }
        self.placed.push(Placed {
            name: format!("{PAD_PREFIX}{pads}"),
            dtype: Cow::Borrowed(Dtype::U8.name()),
            shape: vec![end - self.data_len],
            start: self.data_len,
            end,
            align: 1,
            part: Part::Pad,
        });
        *pads += 1;
        self.data_len = end;
        Ok(())
    }
}
