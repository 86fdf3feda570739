//! CBOR (RFC 8949) with bounds, and the two kinds of bytes that messages hold.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::WorkerFrameError;
use crate::limits::BODY_NESTING_MAX;

/// Writes `value`.
pub(crate) fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), WorkerFrameError> {
    ciborium::ser::into_writer(value, out)
        .map_err(|error| WorkerFrameError::Cbor(error.to_string()))
}

/// Reads exactly one value of at most `nesting` levels.
pub(crate) fn read<T: DeserializeOwned>(
    bytes: &[u8],
    nesting: usize,
) -> Result<T, WorkerFrameError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, nesting);
    let value = value.map_err(|error| match error {
        ciborium::de::Error::RecursionLimitExceeded => WorkerFrameError::Nesting,
        ciborium::de::Error::Io(_) => WorkerFrameError::Cbor("it ends too early".to_owned()),
        other => WorkerFrameError::Cbor(shorten(&other.to_string())),
    })?;
    if !rest.is_empty() {
        return Err(WorkerFrameError::Cbor(
            "something follows the message".to_owned(),
        ));
    }
    Ok(value)
}

/// Shortens an error text: the library quotes unexpected input, which the peer chose.
fn shorten(text: &str) -> String {
    text.chars().take(160).collect()
}

/// A value that this crate passes on unread: CBOR in a byte string. The role defines its meaning.
///
/// ```
/// use alknet_worker::CborBody;
///
/// let body = CborBody::encode(&(7, "seven"))?;
/// let (number, text): (u8, String) = body.read()?;
/// assert_eq!((number, text.as_str()), (7, "seven"));
/// # Ok::<(), alknet_worker::WorkerFrameError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CborBody(Vec<u8>);

impl CborBody {
    /// Wraps bytes that are CBOR already.
    #[must_use]
    pub const fn from_cbor(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Encodes `value`.
    ///
    /// # Errors
    /// The value has no form in CBOR.
    pub fn encode<T: Serialize>(value: &T) -> Result<Self, WorkerFrameError> {
        let mut bytes = Vec::new();
        write(value, &mut bytes)?;
        Ok(Self(bytes))
    }

    /// Reads the value, at most [`BODY_NESTING_MAX`] levels of it.
    ///
    /// # Errors
    /// The bytes are not exactly one value of the expected shape.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, WorkerFrameError> {
        read(&self.0, BODY_NESTING_MAX)
    }

    /// The CBOR.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The CBOR.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Shows only the length: a body may hold a secret, and is long.
impl fmt::Debug for CborBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CborBody({} bytes)", self.0.len())
    }
}

impl Serialize for CborBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for CborBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_byte_buf(ByteStringVisitor)
            .map(Self)
    }
}

/// 32 bytes: a hash or a seed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes32(pub [u8; 32]);

impl fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Bytes32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_byte_buf(ByteStringVisitor)?;
        let bytes = <[u8; 32]>::try_from(&bytes[..]);
        bytes
            .map(Self)
            .map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

/// Accepts a byte string, and refuses an array of numbers.
struct ByteStringVisitor;

impl<'de> Visitor<'de> for ByteStringVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Vec<u8>, A::Error> {
        Err(A::Error::custom("an array where a byte string belongs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_nest_up_to_the_limit_and_no_further() {
        // Arrays of one element around a number.
        let nested = |depth: usize| {
            let mut bytes = vec![0x81; depth];
            bytes.push(0);
            CborBody::from_cbor(bytes)
        };
        let deep = nested(BODY_NESTING_MAX + 1).read::<ciborium::Value>();
        assert!(matches!(deep, Err(WorkerFrameError::Nesting)), "{deep:?}");
        let million = nested(1_000_000).read::<ciborium::Value>();
        assert!(matches!(million, Err(WorkerFrameError::Nesting)));
        nested(BODY_NESTING_MAX - 1)
            .read::<ciborium::Value>()
            .expect("within the limit");
    }

    #[test]
    fn lengths_that_lie_take_no_memory() {
        // A byte string and an array of 2^62 elements, of which none follows.
        for head in [0x5b_u8, 0x9b, 0x7b, 0xbb] {
            let mut bytes = vec![head];
            bytes.extend_from_slice(&(1_u64 << 62).to_be_bytes());
            let outcome = CborBody::from_cbor(bytes).read::<ciborium::Value>();
            assert!(outcome.is_err());
        }
    }

    #[test]
    fn bytes_are_bytes_and_one_value_is_one() {
        let hash = CborBody::encode(&Bytes32([7; 32])).expect("writable");
        assert_eq!(hash.as_bytes()[..2], [0x58, 32]);
        assert_eq!(hash.read::<Bytes32>().expect("itself"), Bytes32([7; 32]));
        assert!(
            CborBody::encode(&vec![7_u8; 32])
                .expect("writable")
                .read::<Bytes32>()
                .is_err()
        );
        assert!(CborBody::from_cbor(vec![0, 0]).read::<u8>().is_err());
        assert!(CborBody::default().read::<u8>().is_err());
    }
}
