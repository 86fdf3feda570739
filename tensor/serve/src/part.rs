//! A part of a stored file that the node sends: its head, and its bytes block by block.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use alknet_core::PeerId;
use alknet_objects::{Outboard, TreeSteps, VerifiedPart};
use alknet_tensor::keys::OFFSETS_SUFFIX;
use alknet_tensor::{FileId, Hash, HeaderEntry, Tensor, TensorError, TensorErrorCode, TensorKind};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::ServeError;
use crate::handler::blocking;
use crate::limits::BLOCK_BYTES;
use crate::request::{Fetch, PartEncoding, PartSelector};
use crate::store::{Object, TensorStore, prepare_outboard};

/// Bytes of one offset of an item.
const OFFSET_BYTES: u64 = 8;

/// The head of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorResponseHead {
    /// Bytes that follow the head.
    #[serde(default)]
    pub len: u64,
    /// BLAKE3 of the entry, the header or the file that the part belongs to. The client verifies an
    /// encoded part by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b3: Option<String>,
    /// Element type of a tensor or its rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Dimensions of a tensor or its rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<u64>>,
    /// The client may send the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go: Option<bool>,
    /// BLAKE3 of the header, if the client requested the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_b3: Option<String>,
    /// The file's id, if the client requested the header or stored the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Bytes of the entry or file that the part belongs to, if the part is encoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A part that the peer may read.
#[derive(Debug)]
pub struct FilePart {
    /// The head, which is sent first.
    pub head: TensorResponseHead,
    /// The tensor's position in the order in which the file's writer wants them loaded.
    pub order: u32,
    object: Arc<Object>,
    pieces: VecDeque<PartPiece>,
}

#[derive(Debug)]
enum PartPiece {
    /// Bytes of the file.
    Raw(Range<u64>),
    /// Offsets of items; `first` is subtracted from each.
    Offsets {
        range: Range<u64>,
        first: u64,
        last: u64,
    },
    /// Groups with the hashes that verify them, or bytes that the node verifies.
    Verified(Box<VerifiedPart>),
}

/// The range that a part belongs to, and its hash if the file has one for it.
struct VerifiedRange {
    range: Range<u64>,
    hash: Option<Hash>,
}

/// A part of a file whose hash tree is not there yet.
enum FoundPart {
    /// Items of a blob, which have no tree.
    Items(FilePart),
    /// A range.
    Range(FoundRange),
}

struct FoundRange {
    head: TensorResponseHead,
    order: u32,
    /// What the part belongs to.
    whole: VerifiedRange,
    /// Counted from the beginning of the whole.
    part: Range<u64>,
}

impl FoundPart {
    fn find(
        object: &Arc<Object>,
        want: &PartSelector,
        encoding: PartEncoding,
    ) -> Result<Self, ServeError> {
        let meta = object.meta();
        let mut head = TensorResponseHead::default();
        let mut order = 0;
        let (whole, part) = match want {
            PartSelector::Header => {
                let range = 0..meta.data_start();
                head.header_b3 = Some(object.header_hash().to_hex().to_string());
                head.id = Some(object.id().to_string());
                let hash = Some(object.header_hash());
                (VerifiedRange { range, hash }, 0..meta.data_start())
            }
            PartSelector::Range(None, range) => {
                let len = meta.file_len();
                let hash = Some(object.id().0);
                within(range, len)?;
                (
                    VerifiedRange {
                        range: 0..len,
                        hash,
                    },
                    range.clone(),
                )
            }
            PartSelector::Range(Some(name), range) => {
                let entry = entry(object, name)?;
                within(range, entry.byte_len())?;
                order = load_order(object, name);
                (whole(object, &entry), range.clone())
            }
            PartSelector::Tensor(name) => {
                let entry = entry(object, name)?;
                describe(&mut head, &entry, entry.shape().to_vec());
                order = load_order(object, name);
                (whole(object, &entry), 0..entry.byte_len())
            }
            PartSelector::Rows(name, rows) => {
                let tensor = meta.tensor(name).map_err(ServeError::Input)?;
                order = load_order(object, name);
                if let TensorKind::Blob(_) = tensor.kind() {
                    let items = FilePart::items(object, &tensor, rows, encoding, order)?;
                    return Ok(Self::Items(items));
                }
                let entry = tensor.entry();
                let part = entry.row_range(rows.clone()).map_err(ServeError::Input)?;
                let mut shape = entry.shape().to_vec();
                if let Some(first) = shape.first_mut() {
                    *first = rows.end - rows.start;
                }
                describe(&mut head, &entry, shape);
                (whole(object, &entry), part)
            }
        };
        head.b3 = whole.hash.map(|hash| hash.to_hex().to_string());
        Ok(Self::Range(FoundRange {
            head,
            order,
            whole,
            part,
        }))
    }
}

impl FoundRange {
    /// The part without hashes.
    fn raw(mut self, object: &Arc<Object>) -> FilePart {
        self.head.len = self.part.end - self.part.start;
        let start = self.whole.range.start;
        let piece = PartPiece::Raw(start + self.part.start..start + self.part.end);
        self.with(object, piece)
    }

    /// The part with the hashes of this tree.
    fn encoded(mut self, object: &Arc<Object>, outboard: Outboard) -> FilePart {
        let len = self.whole.range.end - self.whole.range.start;
        let root = outboard.root();
        self.head.b3 = Some(root.to_hex().to_string());
        self.head.len = TreeSteps::encoded_len(len, &self.part);
        self.head.size = Some(len);
        let part = VerifiedPart::encoded(outboard, &self.part);
        self.with(object, PartPiece::Verified(Box::new(part)))
    }

    fn with(self, object: &Arc<Object>, piece: PartPiece) -> FilePart {
        FilePart {
            head: self.head,
            order: self.order,
            object: Arc::clone(object),
            pieces: [piece].into(),
        }
    }
}

impl FilePart {
    /// Finds a part that is sent without encoding. Blocks.
    ///
    /// # Errors
    /// `E_NOTFOUND`, `E_SHAPE`, `E_VALUE` if the file has no such part; [`ServeError::Stored`].
    pub fn find(object: &Arc<Object>, want: &PartSelector) -> Result<Self, ServeError> {
        Ok(match FoundPart::find(object, want, PartEncoding::Raw)? {
            FoundPart::Items(items) => items,
            FoundPart::Range(found) => found.raw(object),
        })
    }

    /// Finds the part that a request of this identity wants and, if it is encoded, the hash tree that verifies it.
    ///
    /// # Errors
    /// The errors of [`FilePart::find`] and [`TensorStore::object`].
    pub(crate) async fn prepare(
        store: &Arc<TensorStore>,
        id: FileId,
        fetch: Fetch,
        who: &PeerId,
    ) -> Result<Self, ServeError> {
        let encoding = fetch.encoding;
        let object = store.opened(id, who).await?;
        let find = {
            let object = Arc::clone(&object);
            move || FoundPart::find(&object, &fetch.want, encoding)
        };
        let found = blocking(find).await?;
        match (found, encoding) {
            (FoundPart::Items(items), _) => Ok(items),
            (FoundPart::Range(found), PartEncoding::Raw) => Ok(found.raw(&object)),
            (FoundPart::Range(found), PartEncoding::Bao16) => {
                let VerifiedRange { range, hash } = &found.whole;
                let outboard = prepare_outboard(store, &object, range.clone(), *hash, who).await?;
                Ok(found.encoded(&object, outboard))
            }
        }
    }

    /// Bytes of the file without encoding. The node verifies each group by the tree of the whole
    /// file before it sends any byte of the group.
    pub(crate) fn checked(object: &Arc<Object>, outboard: Outboard, range: Range<u64>) -> Self {
        let head = TensorResponseHead {
            len: range.end - range.start,
            ..TensorResponseHead::default()
        };
        let piece = PartPiece::Verified(Box::new(VerifiedPart::bytes(outboard, range)));
        Self {
            head,
            order: 0,
            object: Arc::clone(object),
            pieces: [piece].into(),
        }
    }

    /// Items of a blob: their offsets, relative to the first one, then their bytes.
    fn items(
        object: &Arc<Object>,
        tensor: &Tensor<'_>,
        rows: &Range<u64>,
        encoding: PartEncoding,
        order: u32,
    ) -> Result<Self, ServeError> {
        let TensorKind::Blob(blob) = tensor.kind() else {
            return Err(ServeError::input(TensorErrorCode::Dtype, "no blob"));
        };
        if encoding != PartEncoding::Raw {
            let what = "items travel raw; ask for their ranges to have them proven";
            return Err(ServeError::input(TensorErrorCode::Value, what));
        }
        within(rows, blob.count())?;
        let offsets = blob.offsets().file_range().start;
        let at = |item: u64| -> Result<u64, ServeError> {
            let mut bytes = [0; OFFSET_BYTES as usize];
            object.read(&mut bytes, offsets + item * OFFSET_BYTES)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (first, last) = (at(rows.start)?, at(rows.end)?);
        let entry = tensor.entry();
        // Offsets are data, which reading the header did not check.
        if first > last || last > entry.byte_len() {
            let what = format!("items {rows:?} are bytes {first} to {last}");
            return Err(ServeError::Stored(TensorError::new(
                TensorErrorCode::Layout,
                what,
            )));
        }
        // A list of items has one offset more than items: the end of the last one.
        let ends = (rows.end - rows.start + 1) * OFFSET_BYTES;
        let from = offsets + rows.start * OFFSET_BYTES;
        let data = entry.file_range().start;
        let mut head = TensorResponseHead {
            len: ends + (last - first),
            ..TensorResponseHead::default()
        };
        describe(&mut head, &entry, vec![rows.end - rows.start]);
        Ok(Self {
            head,
            order,
            object: Arc::clone(object),
            pieces: [
                PartPiece::Offsets {
                    range: from..from + ends,
                    first,
                    last,
                },
                PartPiece::Raw(data + first..data + last),
            ]
            .into(),
        })
    }

    /// The next bytes; `None` at the end. Blocks.
    ///
    /// # Errors
    /// `E_IO` if the file changed meanwhile; `E_HASH` if its bytes no longer match their hash.
    pub fn next_block(&mut self) -> Result<Option<Bytes>, ServeError> {
        loop {
            let Some(piece) = self.pieces.front_mut() else {
                return Ok(None);
            };
            let block = match piece {
                PartPiece::Raw(range) => raw(&self.object, range)?,
                PartPiece::Offsets { range, first, last } => {
                    let mut block = raw(&self.object, range)?;
                    rebase(&mut block, *first, *last)?;
                    block
                }
                PartPiece::Verified(part) => part.next_block(&self.object.view())?,
            };
            if block.is_empty() {
                self.pieces.pop_front();
                continue;
            }
            // The bytes are checked after they were read: another program may have written to the
            // file meanwhile.
            self.object.check()?;
            return Ok(Some(block.into()));
        }
    }
}

fn raw(object: &Object, range: &mut Range<u64>) -> Result<Vec<u8>, ServeError> {
    // At most a block, so the cast keeps the value.
    let len = (range.end - range.start).min(BLOCK_BYTES as u64) as usize;
    let mut block = vec![0; len];
    object.read(&mut block, range.start)?;
    range.start += len as u64;
    Ok(block)
}

/// Subtracts `first` from every offset. A block has whole offsets.
fn rebase(block: &mut [u8], first: u64, last: u64) -> Result<(), ServeError> {
    let (offsets, _) = block.as_chunks_mut::<{ OFFSET_BYTES as usize }>();
    for bytes in offsets {
        // The offsets between the first and the last one were not checked before either.
        let offset = u64::from_le_bytes(*bytes);
        let based = offset.checked_sub(first).filter(|_| offset <= last);
        let Some(based) = based else {
            let what = format!("an offset {offset} is not between {first} and {last}");
            return Err(ServeError::Stored(TensorError::new(
                TensorErrorCode::Layout,
                what,
            )));
        };
        *bytes = based.to_le_bytes();
    }
    Ok(())
}

fn within(range: &Range<u64>, len: u64) -> Result<(), ServeError> {
    match range.start <= range.end && range.end <= len {
        true => Ok(()),
        false => Err(ServeError::input(
            TensorErrorCode::Shape,
            format!("{range:?} of {len}"),
        )),
    }
}

/// The entry of a tensor or of its offsets; padding is no entry here.
fn entry<'o>(object: &'o Object, name: &str) -> Result<HeaderEntry<'o>, ServeError> {
    let entry = object.meta().entry(name).filter(|entry| !entry.is_pad());
    // The error of `tensor` names the entry in the form that every other error has.
    entry.map_or_else(
        || {
            Err(ServeError::Input(
                object.meta().tensor(name).err().unwrap_or_else(absent),
            ))
        },
        Ok,
    )
}

fn absent() -> TensorError {
    TensorError::new(TensorErrorCode::NotFound, "no such tensor")
}

fn whole(object: &Object, entry: &HeaderEntry<'_>) -> VerifiedRange {
    VerifiedRange {
        range: entry.file_range(),
        hash: object.meta().entry_hash(entry.name()),
    }
}

fn describe(head: &mut TensorResponseHead, entry: &HeaderEntry<'_>, shape: Vec<u64>) {
    head.dtype = Some(entry.dtype().to_string());
    head.shape = Some(shape);
}

/// The position in the loading order of the tensor that an entry belongs to.
fn load_order(object: &Object, name: &str) -> u32 {
    let owner = name.strip_suffix(OFFSETS_SUFFIX).unwrap_or(name);
    let is = |known: &str| known == name || known == owner;
    let at = object.meta().tensors().position(|tensor| is(tensor.name()));
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
}
