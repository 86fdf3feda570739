//! How a bucket is synchronised with peers.

/// When the content of a name that a peer made is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ContentFetchMode {
    /// As soon as the name is there.
    Eager,
    /// When the content is read.
    #[default]
    Lazy,
    /// Never: a read of a content that is not here fails.
    None,
}

impl ContentFetchMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Eager, Self::Lazy, Self::None];

    /// The name in requests and responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::None => "none",
        }
    }

    /// The mode with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How a bucket is synchronised with peers. Each node has its own settings of a bucket, of which
/// [`is_split`](Self::is_split) has to be the same on all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BucketSync {
    /// When contents are fetched.
    pub fetch: ContentFetchMode,
    /// Whether it is synchronised at all.
    pub is_on: bool,
    /// Whether each name in the root of a branch has a document of its own, with everything below it.
    pub is_split: bool,
    /// Whether a file that loses against a concurrent version is put beside it under a name of its own. It is in the
    /// history in any case.
    pub keeps_both: bool,
}

/// First word of the column of a bucket that is synchronised, and of one that is not.
const ON: &str = "on";
const OFF: &str = "off";
/// Further words of the column, behind a comma each, in this order.
const SPLIT: &str = "split";
const KEEP_BOTH: &str = "keep-both";

impl BucketSync {
    /// The text of the column, such as `on` or `off,eager,split,keep-both`. The defaults have no word.
    pub(super) fn to_column(self) -> String {
        let mut words = vec![if self.is_on { ON } else { OFF }];
        if self.fetch != ContentFetchMode::default() {
            words.push(self.fetch.name());
        }
        if self.is_split {
            words.push(SPLIT);
        }
        if self.keeps_both {
            words.push(KEEP_BOTH);
        }
        words.join(",")
    }

    /// The settings in a column. `None` for a text that this program does not write.
    pub(super) fn from_column(text: &str) -> Option<Self> {
        let mut sync = Self::default();
        for (at, word) in text.split(',').enumerate() {
            match (at, word) {
                (0, ON) => sync.is_on = true,
                (0, OFF) => {}
                (1.., SPLIT) => sync.is_split = true,
                (1.., KEEP_BOTH) => sync.keeps_both = true,
                (1.., other) => sync.fetch = ContentFetchMode::from_name(other)?,
                _ => return None,
            }
        }
        Some(sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_their_column() {
        for fetch in ContentFetchMode::ALL {
            for bits in 0..8 {
                let sync = BucketSync {
                    fetch,
                    is_on: bits & 1 != 0,
                    is_split: bits & 2 != 0,
                    keeps_both: bits & 4 != 0,
                };
                let column = sync.to_column();
                assert_eq!(BucketSync::from_column(&column), Some(sync), "{column}");
            }
        }
        // What the first format has.
        assert_eq!(BucketSync::default().to_column(), "off");
        for wrong in ["", "yes", "split", "on,", "on,later", "on on"] {
            assert_eq!(BucketSync::from_column(wrong), None, "{wrong}");
        }
    }
}
