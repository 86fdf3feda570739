//! The name of a record: `kind:name`.

use std::fmt;
use std::str::FromStr;

use crate::error::LabelError;
use crate::limits::MAX_LABEL_BYTES;

/// The name to which a blob is bound, such as `cred:openai`.
///
/// A kind of `a-z`, `0-9`, `-` and `_`, a colon, and a name of printable ASCII without spaces; at most 255 bytes. The
/// name itself may have colons.
///
/// ```
/// use alknet_vault::BlobLabel;
///
/// let label: BlobLabel = "cred:openai".parse()?;
/// assert_eq!((label.kind(), label.name()), ("cred", "openai"));
/// assert!("openai".parse::<BlobLabel>().is_err());
/// # Ok::<(), alknet_vault::LabelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobLabel(Box<str>);

impl BlobLabel {
    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first colon.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }

    /// The part after the first colon.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, name)| name)
    }
}

impl FromStr for BlobLabel {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if text.len() > MAX_LABEL_BYTES {
            return Err(LabelError::TooLong);
        }
        // Spaces and control characters would make two labels look alike in a log.
        if let Some(at) = text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            return Err(LabelError::Character { at });
        }
        let (kind, name) = text.split_once(':').ok_or(LabelError::Form)?;
        let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if kind.is_empty() || name.is_empty() || !kind.bytes().all(plain) {
            return Err(LabelError::Form);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for BlobLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_grammar_holds_to_the_byte() {
        let label: BlobLabel = "cred:openai:eu".parse().expect("a label");
        assert_eq!((label.kind(), label.name()), ("cred", "openai:eu"));
        let fit = format!("a:{}", "x".repeat(MAX_LABEL_BYTES - 2));
        assert!(fit.parse::<BlobLabel>().is_ok());
        let error = |text: &str| text.parse::<BlobLabel>().expect_err(text);
        assert_eq!(error(&format!("{fit}x")), LabelError::TooLong);
        for text in ["", ":", "a:", ":b", "cred", "Cred:a", "c.d:a"] {
            assert_eq!(error(text), LabelError::Form, "{text}");
        }
        assert_eq!(error("cred:a b"), LabelError::Character { at: 6 });
        assert_eq!(error("cred:ä"), LabelError::Character { at: 5 });
        assert_eq!(error("a:\n"), LabelError::Character { at: 2 });
    }

    proptest! {
        #[test]
        fn labels_read_back(text in "[a-z0-9_-]{1,20}:[!-~]{1,200}") {
            prop_assert_eq!(text.parse::<BlobLabel>().expect("a label").to_string(), text);
        }

        #[test]
        fn any_text_is_a_label_or_an_error(text in any::<String>()) {
            let _ = text.parse::<BlobLabel>();
        }
    }
}
