//! Sealed data of any length, for exports: the STREAM construction in chunks of 64 KiB.
//!
//! The header is a blob's up to the salt with the magic `ALKS`, and 7 bytes of nonce prefix. The nonce of a chunk is
//! the prefix, the chunk's number and one byte that is 1 in the last: so no chunk can be cut off, repeated or moved.
//! All chunks except the last are full, and the last is empty only if the whole stream is.

use std::io::{self, Read, Write};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::blob::{BlobLabel, COMMON, SALT_AT, aad, common, version_of};
use crate::crypto::{self, IV, TAG};
use crate::derive::KeyVersion;
use crate::error::VaultError;
use crate::limits::STREAM_CHUNK_BYTES;
use crate::secret::SecretArr;

const MAGIC: [u8; 4] = *b"ALKS";
const INFO: &[u8] = b"alknet/vault/stream/1";
const PREFIX: usize = 7;
const HEADER: usize = COMMON + PREFIX;

/// Why a stream was not sealed or opened completely.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlobStreamError {
    /// The input could not be read.
    #[error("the stream cannot be read ({0})")]
    Read(#[source] io::Error),
    /// The vault refused. The bytes written so far are genuine, but incomplete.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The output could not be written.
    #[error("the stream cannot be written ({0})")]
    Write(#[source] io::Error),
}

/// The values that all chunks of a stream share.
struct ChunkSealer {
    key: SecretArr<32>,
    aad: Vec<u8>,
    prefix: [u8; PREFIX],
    next: Option<u32>,
}

impl ChunkSealer {
    fn new(key: &SecretArr<32>, header: &[u8; HEADER], label: &BlobLabel) -> Self {
        let (common, prefix) = header.split_at(COMMON);
        let mut own = [0; PREFIX];
        own.copy_from_slice(prefix);
        Self {
            key: crypto::hkdf_sha256(key.expose(), &common[SALT_AT..], INFO),
            aad: aad(header, label),
            prefix: own,
            next: Some(0),
        }
    }

    /// The nonce of the next chunk. A stream has at most 2³² chunks, 256 TiB.
    fn nonce(&mut self, last: bool) -> Result<[u8; IV], VaultError> {
        let number = self.next.ok_or(VaultError::TooLarge {
            bytes: usize::MAX,
            limit: STREAM_CHUNK_BYTES << 32,
        })?;
        // After the last number no nonce is left; using one twice would break GCM.
        self.next = number.checked_add(1);
        let mut nonce = [0; IV];
        nonce[..PREFIX].copy_from_slice(&self.prefix);
        nonce[PREFIX..PREFIX + 4].copy_from_slice(&number.to_be_bytes());
        // The last chunk has a nonce of its own, so that a stream that was cut does not verify as complete (STREAM
        // construction).
        nonce[PREFIX + 4] = u8::from(last);
        Ok(nonce)
    }
}

/// Seals all bytes of `from`; returns their number.
pub(crate) fn seal(
    key: &SecretArr<32>,
    version: KeyVersion,
    label: &BlobLabel,
    from: &mut impl Read,
    to: &mut impl Write,
) -> Result<u64, BlobStreamError> {
    let mut header = [0; HEADER];
    header[..COMMON].copy_from_slice(&common(MAGIC, version, &crypto::random()?));
    header[COMMON..].copy_from_slice(&crypto::random::<PREFIX>()?);
    to.write_all(&header).map_err(BlobStreamError::Write)?;
    let mut chunks = ChunkSealer::new(key, &header, label);
    let mut sealed = Vec::with_capacity(STREAM_CHUNK_BYTES + TAG);
    let mut bytes = 0;
    each_piece(from, STREAM_CHUNK_BYTES, |piece, last| {
        sealed.clear();
        let nonce = chunks.nonce(last)?;
        crypto::encrypt(&chunks.key, &nonce, &chunks.aad, piece, &mut sealed);
        bytes += piece.len() as u64;
        to.write_all(&sealed).map_err(BlobStreamError::Write)
    })?;
    to.flush().map_err(BlobStreamError::Write)?;
    Ok(bytes)
}

/// Opens a stream with the key that `key_of` finds for its version; returns the number of its bytes.
///
/// Each chunk is written once it is verified; only `Ok` means that the last one was among them.
pub(crate) fn open(
    key_of: impl FnOnce(KeyVersion) -> Result<SecretArr<32>, VaultError>,
    label: &BlobLabel,
    from: &mut impl Read,
    to: &mut impl Write,
) -> Result<u64, BlobStreamError> {
    let mut header = [0; HEADER];
    let got = fill(from, &mut header)?;
    let version = version_of(&header[..got], MAGIC)?;
    if got < HEADER {
        return Err(VaultError::Decrypt.into());
    }
    let mut chunks = ChunkSealer::new(&key_of(version)?, &header, label);
    let mut bytes = 0;
    each_piece(from, STREAM_CHUNK_BYTES + TAG, |piece, last| {
        let first = chunks.next == Some(0);
        let nonce = chunks.nonce(last)?;
        let plain = crypto::decrypt(&chunks.key, &nonce, &chunks.aad, piece)?;
        // `seal` writes an empty chunk for an empty stream only, so each content has one form.
        if plain.expose().is_empty() && !first {
            return Err(VaultError::Decrypt.into());
        }
        bytes += plain.expose().len() as u64;
        to.write_all(plain.expose()).map_err(BlobStreamError::Write)
    })?;
    to.flush().map_err(BlobStreamError::Write)?;
    Ok(bytes)
}

/// Passes pieces of `size` bytes to `take` and says which is the last, by reading one piece ahead.
fn each_piece(
    from: &mut impl Read,
    size: usize,
    mut take: impl FnMut(&[u8], bool) -> Result<(), BlobStreamError>,
) -> Result<(), BlobStreamError> {
    let mut current = Zeroizing::new(vec![0; size]);
    let mut ahead = Zeroizing::new(vec![0; size]);
    let mut len = fill(from, &mut current)?;
    loop {
        // A short piece is the end; another read could block for ever on a terminal.
        let next = if len == size {
            fill(from, &mut ahead)?
        } else {
            0
        };
        take(&current[..len], next == 0)?;
        if next == 0 {
            return Ok(());
        }
        std::mem::swap(&mut current, &mut ahead);
        len = next;
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, BlobStreamError> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BlobStreamError::Read(error)),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn label() -> BlobLabel {
        "backup:all".parse().expect("a label")
    }

    fn sealed(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let key = SecretArr::copy_of(&KEY);
        let got = seal(&key, KeyVersion::FIRST, &label(), &mut &*plain, &mut out);
        assert_eq!(got.expect("sealed"), plain.len() as u64);
        out
    }

    fn opened(sealed: &[u8], label: &BlobLabel) -> Result<Vec<u8>, BlobStreamError> {
        let mut out = Vec::new();
        open(
            |_| Ok(SecretArr::copy_of(&KEY)),
            label,
            &mut &*sealed,
            &mut out,
        )?;
        Ok(out)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn every_length_around_a_chunk_comes_back() {
        const CHUNK: usize = STREAM_CHUNK_BYTES;
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5] {
            let plain = pattern(len);
            let sealed = sealed(&plain);
            let chunks = len.div_ceil(CHUNK).max(1);
            assert_eq!(sealed.len(), HEADER + len + chunks * TAG);
            assert_eq!(opened(&sealed, &label()).expect("genuine"), plain);
        }
    }

    #[test]
    fn nothing_can_be_cut_moved_repeated_or_relabelled() {
        const PIECE: usize = STREAM_CHUNK_BYTES + TAG;
        let plain = pattern(2 * STREAM_CHUNK_BYTES + 100);
        let sealed = sealed(&plain);
        let refused = |bytes: &[u8], what: &str| {
            let error = opened(bytes, &label()).expect_err(what);
            assert!(
                matches!(error, BlobStreamError::Vault(VaultError::Decrypt)),
                "{what}: {error}"
            );
        };
        for cut in [
            HEADER,
            HEADER + 1,
            HEADER + PIECE,
            HEADER + 2 * PIECE,
            sealed.len() - 1,
        ] {
            refused(&sealed[..cut], &format!("cut at {cut}"));
        }
        let (head, body) = sealed.split_at(HEADER);
        let (a, rest) = body.split_at(PIECE);
        let (b, c) = rest.split_at(PIECE);
        refused(&[head, b, a, c].concat(), "exchanged");
        refused(&[head, a, a, b, c].concat(), "repeated");
        refused(&[head, a, c].concat(), "left out");
        refused(&[&sealed[..], &[0]].concat(), "lengthened");
        let other = "backup:other".parse().expect("a label");
        assert!(opened(&sealed, &other).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let sealed = sealed(b"short");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(&bad, &label()).is_err(), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert!(opened(&sealed[..cut], &label()).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_stream_and_a_blob_are_not_each_other() {
        assert!(matches!(
            super::super::SealedBlob::parse(&sealed(b"x")),
            Err(VaultError::Foreign)
        ));
    }
}
