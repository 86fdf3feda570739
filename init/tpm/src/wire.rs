//! Big-endian fields of TPM messages, written into one buffer and read within bounds.
//!
//! This is written by hand, without a library of message types: the values of such libraries are
//! `Copy` and print their bytes, so a secret or a PIN would stay behind wherever it passed through.

use zeroize::{Zeroize, Zeroizing};

use crate::TpmError;
use crate::limits::MESSAGE_BYTES_MAX;

/// Bytes that are being written, and wiped on drop. The buffer has its full capacity from the
/// start: growing would leave a copy behind.
#[derive(Clone)]
pub(crate) struct TpmWriter(Zeroizing<Vec<u8>>);

impl TpmWriter {
    pub(crate) fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(MESSAGE_BYTES_MAX)))
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A `TPM2B`: the length in 2 bytes, and the bytes.
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).expect("callers bound what they send to a TPM");
        self.u16(length).bytes(bytes)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The unread rest of an answer or a record.
#[derive(Clone, Copy)]
pub(crate) struct TpmReader<'a>(&'a [u8]);

impl<'a> TpmReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], TpmError> {
        let (taken, left) = self
            .0
            .split_at_checked(count)
            .ok_or(TpmError::Malformed("it is cut short"))?;
        self.0 = left;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], TpmError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, TpmError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, TpmError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, TpmError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The bytes of a `TPM2B`.
    pub(crate) fn sized(&mut self) -> Result<&'a [u8], TpmError> {
        let length = self.u16()?;
        self.take(length.into())
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn end(self) -> Result<(), TpmError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(TpmError::Malformed("there are bytes behind its end"))
    }
}

/// The bytes of the first parameter, which sessions encrypt, if it is a `TPM2B` that lies inside.
pub(crate) fn first_sized_mut(parameters: &mut [u8]) -> Result<&mut [u8], TpmError> {
    let cut = TpmError::Malformed("its first parameter is cut short");
    let Some((length, rest)) = parameters.split_first_chunk_mut::<2>() else {
        return Err(cut);
    };
    rest.get_mut(..usize::from(u16::from_be_bytes(*length)))
        .ok_or(cut)
}

/// A stack buffer that is wiped on every way out.
pub(crate) struct WipedBuffer<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> Drop for WipedBuffer<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_written_and_never_past_the_end() {
        let written = TpmWriter::new()
            .u8(1)
            .u16(0x203)
            .u32(0x0405_0607)
            .sized(b"abc");
        assert_eq!(
            written.as_slice(),
            b"\x01\x02\x03\x04\x05\x06\x07\x00\x03abc"
        );
        for cut in 0..written.len() {
            let mut reader = TpmReader::new(&written.as_slice()[..cut]);
            let all = (|| {
                reader.u8()?;
                reader.u16()?;
                reader.u32()?;
                reader.sized().map(<[u8]>::len)
            })();
            assert!(matches!(all, Err(TpmError::Malformed(_))), "{cut}");
        }
        assert!(TpmReader::new(b"x").end().is_err());
        assert!(first_sized_mut(&mut [0, 3, 1, 2]).is_err());
        assert_eq!(
            first_sized_mut(&mut [0, 2, 1, 2, 9]).expect("inside"),
            [1, 2]
        );
    }
}
