//! A document that an administrator pastes at the console as one line: `alknet-node-1 <base64url>
//! <CRC-32 in hex>`. A terminal may wrap the line and add spaces.

use std::fmt;

use alknet_core::config::CONFIG_BYTES_MAX;
use data_encoding::BASE64URL_NOPAD;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Bytes, parts};

/// The beginning of the line.
pub const CONSOLE_HEAD: &str = "alknet-node-1";
/// Most bytes of the line: the longest document, and the white space that a terminal may add.
pub const CONSOLE_LINE_BYTES_MAX: usize = CONFIG_BYTES_MAX / 3 * 4 + 8192;

/// Why a line is not a document.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsoleDocumentError {
    /// The middle of the line is not base64url, or is too long.
    #[error("{0}")]
    Document(String),
    /// The line has another beginning.
    #[error("a document begins with {CONSOLE_HEAD}; 'alknet provision --form console' prints one")]
    Head,
    /// The line is longer than any document.
    #[error("the line is longer than {CONSOLE_LINE_BYTES_MAX} bytes")]
    Long,
    /// Characters are missing at its end, or were lost.
    #[error("characters were lost on the way, or changed; paste the line again, more slowly")]
    Sum,
}

/// A pasted document. Its bytes are wiped on drop.
pub struct ConsoleDocument(pub(crate) Bytes);

impl fmt::Debug for ConsoleDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsoleDocument({} bytes)", self.0.len())
    }
}

impl ConsoleDocument {
    /// Parses the line. White space in it is ignored.
    ///
    /// # Errors
    /// See [`ConsoleDocumentError`].
    pub fn parse(line: &str) -> Result<Self, ConsoleDocumentError> {
        if line.len() > CONSOLE_LINE_BYTES_MAX {
            return Err(ConsoleDocumentError::Long);
        }
        let rest = line.trim_start().strip_prefix(CONSOLE_HEAD);
        // Without the space it could be a later version of the head.
        let rest = rest.filter(|it| it.starts_with(char::is_whitespace));
        let rest = rest.ok_or(ConsoleDocumentError::Head)?.trim();
        let (text, sum) = rest
            .rsplit_once(char::is_whitespace)
            .ok_or(ConsoleDocumentError::Sum)?;
        let mut encoded = Zeroizing::new(String::with_capacity(text.len()));
        // A terminal may have wrapped the line when it was pasted.
        text.split_whitespace()
            .for_each(|part| encoded.push_str(part));
        // Fewer digits mean that the line lost its end.
        if sum.len() != 8 {
            return Err(ConsoleDocumentError::Sum);
        }
        let sum = u32::from_str_radix(sum, 16).map_err(|_| ConsoleDocumentError::Sum)?;
        let document = parts::decode(&encoded).map_err(ConsoleDocumentError::Document)?;
        // The checksum detects characters that a terminal lost. It does not authenticate the line.
        if crc_32(&document) == sum {
            Ok(Self(document))
        } else {
            Err(ConsoleDocumentError::Sum)
        }
    }

    /// A copy, for another reading of all sources.
    #[must_use]
    pub fn copied(&self) -> Self {
        Self(self.0.clone())
    }

    /// The line for a document, without a line end.
    ///
    /// ```
    /// use alknet_provisioning::ConsoleDocument;
    ///
    /// let line = ConsoleDocument::line(b"[node]\nname = \"edge-1\"\n");
    /// assert!(line.starts_with("alknet-node-1 "));
    /// assert!(ConsoleDocument::parse(&line).is_ok());
    /// // A serial line that lost its last character is noticed.
    /// assert!(ConsoleDocument::parse(&line[..line.len() - 1]).is_err());
    /// ```
    #[must_use]
    pub fn line(document: &[u8]) -> Zeroizing<String> {
        let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(document));
        let sum = crc_32(document);
        Zeroizing::new(format!("{CONSOLE_HEAD} {} {sum:08x}", *encoded))
    }
}

/// CRC-32 of ISO-HDLC, as in zip and gzip.
fn crc_32(bytes: &[u8]) -> u32 {
    const REFLECTED: u32 = 0xedb8_8320;
    let step = |sum: u32, _| sum >> 1 ^ (REFLECTED & 0_u32.wrapping_sub(sum & 1));
    let byte = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), step);
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCUMENT: &[u8] = b"[node]\nname = \"edge-1\"\n";

    #[test]
    fn the_sum_is_the_usual_one() {
        assert_eq!(crc_32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_line_is_read_as_terminals_break_it() {
        let line = ConsoleDocument::line(DOCUMENT);
        let broken = format!("\r\n  {}\r\n", line.replace("bm9k", "bm\r\n 9k"));
        for text in [line.as_str(), &broken] {
            let read = ConsoleDocument::parse(text).expect("whole");
            assert_eq!(*read.0, DOCUMENT);
        }
        let longest = vec![b'#'; CONFIG_BYTES_MAX];
        assert!(ConsoleDocument::parse(&ConsoleDocument::line(&longest)).is_ok());
    }

    #[test]
    fn damage_differs_from_other_input() {
        for other in ["", "hello", "alknet-node-2 YQ 0", "alknet-node-1x YQ 0"] {
            let error = ConsoleDocument::parse(other).expect_err("nothing of ours");
            assert_eq!(error, ConsoleDocumentError::Head, "{other}");
        }
        for cut in [
            "alknet-node-1 ",
            "alknet-node-1 YQ",
            "alknet-node-1 YQ 12",
            "alknet-node-1 YQ 12345678",
        ] {
            assert_eq!(
                ConsoleDocument::parse(cut).err(),
                Some(ConsoleDocumentError::Sum),
                "{cut}"
            );
        }
        let error = ConsoleDocument::parse("alknet-node-1 Y* 12345678").expect_err("no base64");
        assert!(error.to_string().contains("base64url"));
        let long = format!("{CONSOLE_HEAD} {}", "A".repeat(CONSOLE_LINE_BYTES_MAX));
        assert_eq!(
            ConsoleDocument::parse(&long).err(),
            Some(ConsoleDocumentError::Long)
        );
    }

    proptest! {
        #[test]
        fn no_lost_or_changed_character_goes_unseen(at in 14_usize..45, by in prop::char::range('A', 'Z'), cut in any::<bool>()) {
            let line = ConsoleDocument::line(DOCUMENT);
            let mut damaged = line.to_string();
            if cut { damaged.remove(at); } else { damaged.replace_range(at..=at, &by.to_string()); }
            prop_assume!(damaged != *line);
            prop_assert!(ConsoleDocument::parse(&damaged).is_err());
        }

        #[test]
        fn any_line_is_answered(line in "(alknet-node-1 )?[A-Za-z0-9_ -]{0,40}") {
            let _ = ConsoleDocument::parse(&line);
        }
    }
}
