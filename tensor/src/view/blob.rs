//! Items of any size, end to end, with their offsets.

use crate::error::{Result, TensorError, TensorErrorCode, fail};
use crate::view::bytes::{ViewBytes, part};

/// Bytes of an offset.
const OFFSET_BYTES: usize = 8;

/// The items of a blob.
#[derive(Clone, Debug)]
pub struct BlobView<'a> {
    enc: &'a str,
    data: ViewBytes<'a>,
    offsets: ViewBytes<'a>,
}

impl<'a> BlobView<'a> {
    /// Items of `data` that end at `offsets`: one offset of 64 bits more than there are items.
    ///
    /// # Errors
    /// `E_LAYOUT` if the offsets do not begin with 0, fall, or do not end with the data.
    pub fn new(enc: &'a str, data: ViewBytes<'a>, offsets: ViewBytes<'a>) -> Result<Self> {
        let mut last = None;
        check_offsets(&offsets, 0, &mut last)?;
        check_end(last, data.len() as u64)?;
        Ok(Self { enc, data, offsets })
    }

    /// The encoding of the items: `utf8`, `bytes`, `json` or a media type.
    #[must_use]
    pub const fn enc(&self) -> &'a str {
        self.enc
    }

    /// The number of items.
    #[must_use]
    pub fn len(&self) -> u64 {
        (self.offsets.len() / OFFSET_BYTES) as u64 - 1
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All items end to end.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// One item.
    ///
    /// # Errors
    /// `E_NOTFOUND` if the blob has fewer items.
    pub fn item(&self, at: u64) -> Result<&[u8]> {
        let (offsets, _) = self.offsets.as_chunks::<OFFSET_BYTES>();
        let place = usize::try_from(at).ok();
        let two = place.and_then(|at| offsets.get(at..)?.first_chunk::<2>());
        match two {
            Some([start, end]) => part(
                &self.data,
                &(u64::from_le_bytes(*start)..u64::from_le_bytes(*end)),
            ),
            None => fail(
                TensorErrorCode::NotFound,
                format!("item {at} of {}", self.len()),
            ),
        }
    }

    /// One item as a text.
    ///
    /// # Errors
    /// `E_NOTFOUND` if the blob has fewer items; `E_VALUE` if the item is not UTF-8.
    pub fn text(&self, at: u64) -> Result<&str> {
        std::str::from_utf8(self.item(at)?).map_err(|error| {
            TensorError::new(TensorErrorCode::Value, format!("item {at}: {error}"))
        })
    }

    /// Every item.
    pub fn items(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let (offsets, _) = self.offsets.as_chunks::<OFFSET_BYTES>();
        offsets.windows(2).map(|two| {
            let range = u64::from_le_bytes(two[0])..u64::from_le_bytes(two[1]);
            // `new` has checked that offsets rise and end with the data, so the fallback is not
            // reached.
            part(&self.data, &range).unwrap_or_default()
        })
    }
}

/// Checks that offsets begin with 0 and never fall. `last` is the offset before these; `first` is
/// the index of the first one.
pub(crate) fn check_offsets(bytes: &[u8], first: u64, last: &mut Option<u64>) -> Result<()> {
    let (offsets, rest) = bytes.as_chunks::<OFFSET_BYTES>();
    if !rest.is_empty() {
        return fail(
            TensorErrorCode::Layout,
            format!("offsets of {} bytes", bytes.len()),
        );
    }
    for (at, offset) in offsets.iter().enumerate() {
        let offset = u64::from_le_bytes(*offset);
        let at = first + at as u64;
        match *last {
            None if offset != 0 => {
                return fail(
                    TensorErrorCode::Layout,
                    format!("the first offset is {offset}, not 0"),
                );
            }
            Some(before) if offset < before => {
                let what = format!("offset {at} is {offset}, the one before it {before}");
                return fail(TensorErrorCode::Layout, what);
            }
            _ => *last = Some(offset),
        }
    }
    Ok(())
}

/// Checks that the last offset is the end of the data.
pub(crate) fn check_end(last: Option<u64>, total: u64) -> Result<()> {
    match last {
        None => fail(TensorErrorCode::Layout, "no offsets"),
        Some(last) if last != total => {
            let what = format!("the last offset is {last}, the data has {total} bytes");
            fail(TensorErrorCode::Layout, what)
        }
        Some(_) => Ok(()),
    }
}
