//! The messages of `/iroh-bytes/4`: a request in the encoding of postcard, with a byte in front that says its kind.
//!
//! ```text
//! Get      0  hash  count { distance  count { width } }    per content of a sequence, from the content itself on
//! Observe  1  hash  count { width }                        which chunks of a content the provider has
//! ```
//!
//! Counts, distances and widths are variable-length numbers (LEB128). Widths alternate between chunks that are not selected
//! and chunks that are; distances count contents. What the last entry of a `Get` selects is selected of all contents behind
//! it. The response to a `Get` is, for each content of which anything is selected, its length in 8 bytes with the least
//! significant first, and its encoded chunks.

use alknet_objects::ChunkSelection;
use alknet_store::ContentHash;
use thiserror::Error;

use crate::limits::{BLOB_BOUNDARIES_MAX, BLOB_REQUEST_BYTES_MAX, BLOB_SELECTIONS_MAX};

const GET: u8 = 0;
const OBSERVE: u8 = 1;

/// A request for contents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobRequest {
    /// Chunks of a content, and of the contents that it lists.
    Get {
        /// The content.
        hash: ContentHash,
        /// What is selected of it and of the contents that it lists.
        selections: BlobSelections,
    },
    /// Which of its chunks the provider has.
    Observe {
        /// The content.
        hash: ContentHash,
        /// The chunks that the peer asks about.
        selection: ChunkSelection,
    },
}

/// What is selected of each content of a sequence. Number 0 is the sequence itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobSelections(Vec<(u64, ChunkSelection)>);

impl BlobSelections {
    /// Chunks of one content.
    #[must_use]
    pub fn of_one(selection: ChunkSelection) -> Self {
        match selection.is_empty() {
            true => Self::default(),
            false => Self(vec![(0, selection), (1, ChunkSelection::default())]),
        }
    }

    /// What is selected of the content of this number.
    #[must_use]
    pub fn selection(&self, number: u64) -> Option<&ChunkSelection> {
        let behind = self.0.partition_point(|(from, _)| *from <= number);
        let (_, selection) = self.0.get(behind.checked_sub(1)?)?;
        (!selection.is_empty()).then_some(selection)
    }

    /// The first content from this number on of which anything is selected.
    #[must_use]
    pub fn next_selected(&self, number: u64) -> Option<u64> {
        if self.selection(number).is_some() {
            return Some(number);
        }
        let behind = self.0.partition_point(|(from, _)| *from <= number);
        let mut rest = self.0.get(behind..)?.iter();
        let next = rest.find(|(_, selection)| !selection.is_empty());
        next.map(|(from, _)| *from)
    }
}

/// Why bytes are no request that a node serves.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobRequestError {
    /// A kind of request that this node does not serve to any peer.
    #[error("requests of kind {0} are not served")]
    Kind(u8),
    /// The request is larger than any that is served.
    #[error("a request has too many {0}")]
    Limit(&'static str),
    /// The bytes have no meaning.
    #[error("a request is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads a request as its bytes arrive, and refuses it at the first byte that breaks a rule. The memory that it takes is
/// bounded by what is selected, and not by the length of the request.
#[derive(Debug, Default)]
pub struct BlobRequestParser {
    state: ParseState,
    bytes: usize,
    kind: u8,
    hash: [u8; ContentHash::BYTES],
    number: VariableNumber,
    /// Entries that are announced and not yet read.
    entries_left: u64,
    /// Widths of the present entry that are announced and not yet read.
    widths_left: u64,
    /// The first content of the present entry.
    from: u64,
    boundaries: Vec<u64>,
    boundaries_before: usize,
    selections: Vec<(u64, ChunkSelection)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ParseState {
    #[default]
    Kind,
    /// So many bytes of the hash are there.
    Hash(usize),
    Entries,
    Distance,
    Widths,
    Width,
    Done,
}

impl BlobRequestParser {
    /// Nothing has arrived.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// The bytes so far cannot begin a request that is served.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BlobRequestError> {
        bytes.iter().try_for_each(|byte| self.push_byte(*byte))
    }

    /// The request, when no more bytes come.
    ///
    /// # Errors
    /// The request is not complete.
    pub fn finish(self) -> Result<BlobRequest, BlobRequestError> {
        if self.state != ParseState::Done {
            return Err(BlobRequestError::Malformed("it ends before its end"));
        }
        let hash = ContentHash::new(self.hash);
        match self.kind {
            OBSERVE => {
                let selection = self.selections.into_iter().next();
                let (_, selection) = selection.unwrap_or_default();
                Ok(BlobRequest::Observe { hash, selection })
            }
            _ => Ok(BlobRequest::Get {
                hash,
                selections: BlobSelections(self.selections),
            }),
        }
    }

    fn push_byte(&mut self, byte: u8) -> Result<(), BlobRequestError> {
        match self.state {
            ParseState::Kind => {
                self.kind = byte;
                self.state = match byte {
                    GET | OBSERVE => ParseState::Hash(0),
                    other => return Err(BlobRequestError::Kind(other)),
                };
                return Ok(());
            }
            ParseState::Done => {
                return Err(BlobRequestError::Malformed("bytes come after its end"));
            }
            _ => {}
        }
        self.bytes += 1;
        if self.bytes > BLOB_REQUEST_BYTES_MAX {
            return Err(BlobRequestError::Limit("bytes"));
        }
        if let ParseState::Hash(at) = self.state {
            self.hash[at] = byte;
            self.state = match (at + 1 == ContentHash::BYTES, self.kind) {
                (false, _) => ParseState::Hash(at + 1),
                (true, OBSERVE) => ParseState::Widths,
                (true, _) => ParseState::Entries,
            };
            return Ok(());
        }
        match self.number.push(byte)? {
            Some(number) => self.take_number(number),
            None => Ok(()),
        }
    }

    fn take_number(&mut self, number: u64) -> Result<(), BlobRequestError> {
        match self.state {
            ParseState::Entries => {
                if number > BLOB_SELECTIONS_MAX as u64 {
                    return Err(BlobRequestError::Limit("contents"));
                }
                self.entries_left = number;
                self.state = match number {
                    0 => ParseState::Done,
                    _ => ParseState::Distance,
                };
            }
            ParseState::Distance => {
                let is_first = self.selections.is_empty();
                let from = self.from.checked_add(number);
                let from = from.filter(|_| is_first || number > 0);
                let not_in_order = BlobRequestError::Malformed("its contents are not in order");
                self.from = from.ok_or(not_in_order)?;
                self.state = ParseState::Widths;
            }
            ParseState::Widths => {
                let most = (BLOB_BOUNDARIES_MAX - self.boundaries_before) as u64;
                if number > most {
                    return Err(BlobRequestError::Limit("ranges"));
                }
                self.widths_left = number;
                self.state = ParseState::Width;
                if number == 0 {
                    self.end_entry()?;
                }
            }
            ParseState::Width => {
                let last = self.boundaries.last();
                let next = match last {
                    None => Some(number),
                    Some(last) => last.checked_add(number).filter(|next| next > last),
                };
                let next =
                    next.ok_or(BlobRequestError::Malformed("its ranges are not in order"))?;
                self.boundaries.push(next);
                self.widths_left -= 1;
                if self.widths_left == 0 {
                    self.end_entry()?;
                }
            }
            ParseState::Kind | ParseState::Hash(_) | ParseState::Done => {}
        }
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), BlobRequestError> {
        let boundaries = std::mem::take(&mut self.boundaries);
        self.boundaries_before += boundaries.len();
        let selection = ChunkSelection::from_boundaries(boundaries);
        let selection =
            selection.ok_or(BlobRequestError::Malformed("its ranges are not in order"))?;
        let before = self.selections.last().map(|(_, before)| before);
        // An encoder merges contents of which the same is selected.
        let is_repeated = match before {
            Some(before) => *before == selection,
            None => selection.is_empty(),
        };
        if self.kind == GET && is_repeated {
            return Err(BlobRequestError::Malformed("it repeats a selection"));
        }
        self.selections.push((self.from, selection));
        self.entries_left = self.entries_left.saturating_sub(1);
        self.state = match self.entries_left {
            0 => ParseState::Done,
            _ => ParseState::Distance,
        };
        Ok(())
    }
}

impl BlobRequest {
    /// The bytes of the request.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Get { hash, selections } => {
                bytes.push(GET);
                bytes.extend(hash.as_bytes());
                put_number(&mut bytes, selections.0.len() as u64);
                let mut before = 0;
                for (from, selection) in &selections.0 {
                    put_number(&mut bytes, from - before);
                    before = *from;
                    put_selection(&mut bytes, selection);
                }
            }
            Self::Observe { hash, selection } => {
                bytes.push(OBSERVE);
                bytes.extend(hash.as_bytes());
                put_selection(&mut bytes, selection);
            }
        }
        bytes
    }
}

fn put_selection(bytes: &mut Vec<u8>, selection: &ChunkSelection) {
    let boundaries = selection.boundaries();
    put_number(bytes, boundaries.len() as u64);
    let mut before = 0;
    for boundary in boundaries {
        put_number(bytes, boundary - before);
        before = *boundary;
    }
}

/// The answer to an `Observe`, with its length in front: the size of the content, and the chunks that are here.
pub(super) fn encode_observed(size: u64, is_whole: bool) -> Vec<u8> {
    let mut item = Vec::new();
    put_number(&mut item, size);
    match is_whole {
        // One open range from the first chunk on.
        true => item.extend([1, 0]),
        false => item.push(0),
    }
    let mut bytes = Vec::new();
    put_number(&mut bytes, item.len() as u64);
    bytes.extend(item);
    bytes
}

/// The size of a content and the chunks of it that a peer has, from the answer to an `Observe` without its length.
pub(super) fn decode_observed(item: &[u8]) -> Option<(u64, ChunkSelection)> {
    let mut numbers = Vec::new();
    let mut number = VariableNumber::default();
    for byte in item {
        numbers.extend(number.push(*byte).ok()?);
    }
    let [size, count, boundaries @ ..] = numbers.as_slice() else {
        return None;
    };
    if *count != boundaries.len() as u64 || !number.is_empty() {
        return None;
    }
    // Here boundaries are numbers of chunks, and not widths.
    let selection = ChunkSelection::from_boundaries(boundaries.to_vec())?;
    Some((*size, selection))
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        // The low seven bits, so the cast keeps them.
        bytes.push(number as u8 & 0x7f | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A number of which some bytes have arrived, seven bits each with the least significant first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VariableNumber {
    value: u64,
    bits: u32,
}

impl VariableNumber {
    /// Takes a byte, and returns the number if it is the last one.
    pub(super) fn push(&mut self, byte: u8) -> Result<Option<u64>, BlobRequestError> {
        let part = u64::from(byte & 0x7f);
        // The tenth byte has the last bit of 64.
        if self.bits > 63 || (self.bits == 63 && part > 1) {
            return Err(BlobRequestError::Malformed("a number is too large"));
        }
        self.value |= part << self.bits;
        self.bits += 7;
        if byte & 0x80 != 0 {
            return Ok(None);
        }
        let value = self.value;
        *self = Self::default();
        Ok(Some(value))
    }

    const fn is_empty(&self) -> bool {
        self.bits == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: ContentHash = ContentHash::new([7; 32]);

    fn parse(bytes: &[u8]) -> Result<BlobRequest, BlobRequestError> {
        let mut parser = BlobRequestParser::new();
        parser.push(bytes)?;
        parser.finish()
    }

    fn get(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![GET];
        bytes.extend(HASH.as_bytes());
        bytes.extend(body);
        bytes
    }

    fn selection(boundaries: &[u64]) -> ChunkSelection {
        ChunkSelection::from_boundaries(boundaries.to_vec()).expect("in order")
    }

    #[test]
    fn requests_are_read_as_they_are_written() {
        let whole = BlobSelections::of_one(ChunkSelection::all());
        // The bytes that the documentation of the protocol has for a whole content.
        let request = BlobRequest::Get {
            hash: HASH,
            selections: whole,
        };
        assert_eq!(request.encode(), get(&[2, 0, 1, 0, 1, 0]));
        let selections = BlobSelections(vec![
            (0, selection(&[2, 7, 10, 11])),
            (3, selection(&[])),
            (500, selection(&[u64::MAX])),
        ]);
        for request in [
            request,
            BlobRequest::Get {
                hash: HASH,
                selections,
            },
            BlobRequest::Get {
                hash: HASH,
                selections: BlobSelections::default(),
            },
            BlobRequest::Observe {
                hash: HASH,
                selection: selection(&[5, 300]),
            },
        ] {
            let bytes = request.encode();
            assert_eq!(parse(&bytes), Ok(request));
            for end in 0..bytes.len() {
                assert!(parse(&bytes[..end]).is_err());
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(matches!(
                parse(&longer),
                Err(BlobRequestError::Malformed(_))
            ));
        }
    }

    #[test]
    fn what_is_selected_is_found_by_number() {
        let of_all = BlobSelections(vec![(0, ChunkSelection::all())]);
        assert!(of_all.selection(u64::MAX).is_some());
        let selections = BlobSelections(vec![
            (2, ChunkSelection::all()),
            (4, ChunkSelection::default()),
            (9, selection(&[1, 2])),
        ]);
        let selected: Vec<_> = (0..12)
            .filter(|at| selections.selection(*at).is_some())
            .collect();
        assert_eq!(selected, [2, 3, 9, 10, 11]);
        let next = |at| selections.next_selected(at);
        assert_eq!(
            [next(0), next(3), next(4), next(20)],
            [Some(2), Some(3), Some(9), Some(20)]
        );
        let one = BlobSelections::of_one(ChunkSelection::all());
        assert_eq!(
            [one.next_selected(0), one.next_selected(1)],
            [Some(0), None]
        );
    }

    #[test]
    fn other_requests_are_refused_by_their_first_byte() {
        // A push is 8, and a request for many contents is 9.
        for kind in 2..=u8::MAX {
            assert_eq!(parse(&[kind]), Err(BlobRequestError::Kind(kind)));
        }
    }

    #[test]
    fn rules_of_the_encoding_are_kept() {
        for wrong in [
            // A content twice; the same selection twice; nothing selected at the begin.
            &[2, 0, 1, 0, 0, 0][..],
            &[2, 0, 1, 0, 1, 1, 0],
            &[1, 0, 0],
            // A range of no chunks; ranges and contents beyond the largest number.
            &[1, 0, 2, 5, 0],
            &[1, 0, 2, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            &[
                2, 1, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0,
            ],
            // A number of more than 64 bits.
            &[1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            &[1, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 0],
        ] {
            let parsed = parse(&get(wrong));
            assert!(
                matches!(parsed, Err(BlobRequestError::Malformed(_))),
                "{wrong:?} {parsed:?}"
            );
        }
    }

    /// A million ranges in one request.
    #[test]
    fn ranges_contents_and_bytes_have_limits() {
        let mut many = vec![1, 0];
        put_number(&mut many, 2_000_000);
        many.extend(vec![1; 2_000_000]);
        assert_eq!(parse(&get(&many)), Err(BlobRequestError::Limit("ranges")));
        for (count, limit) in [
            (BLOB_BOUNDARIES_MAX, None),
            (BLOB_BOUNDARIES_MAX + 1, Some("ranges")),
        ] {
            let mut body = vec![1, 0];
            put_number(&mut body, count as u64);
            body.extend(vec![1; count]);
            assert_eq!(parse(&get(&body)).err(), limit.map(BlobRequestError::Limit));
        }
        for (count, limit) in [
            (BLOB_SELECTIONS_MAX, None),
            (BLOB_SELECTIONS_MAX + 1, Some("contents")),
        ] {
            let mut body = Vec::new();
            put_number(&mut body, count as u64);
            for at in 0..count {
                body.extend([1, 1, (at % 2) as u8]);
            }
            assert_eq!(parse(&get(&body)).err(), limit.map(BlobRequestError::Limit));
        }
        // Numbers of more bytes than they need make a long request of a few ranges.
        let mut parser = BlobRequestParser::new();
        parser.bytes = BLOB_REQUEST_BYTES_MAX - ContentHash::BYTES;
        parser.push(&get(&[])).expect("it fits");
        assert_eq!(parser.push(&[0]), Err(BlobRequestError::Limit("bytes")));
    }

    #[test]
    fn descriptions_are_read_as_they_are_written() {
        for (size, is_whole) in [(0, true), (300, false), (u64::MAX, true)] {
            let bytes = encode_observed(size, is_whole);
            assert_eq!(usize::from(bytes[0]), bytes.len() - 1);
            let chunks = if is_whole {
                ChunkSelection::all()
            } else {
                ChunkSelection::default()
            };
            assert_eq!(decode_observed(&bytes[1..]), Some((size, chunks)));
        }
        for wrong in [
            &[][..],
            &[5],
            &[5, 1],
            &[5, 2, 3, 3],
            &[5, 1, 0, 0],
            &[5, 1, 128],
        ] {
            assert_eq!(decode_observed(wrong), None, "{wrong:?}");
        }
    }
}
