//! The permissions of a first boot. They are stored in the encrypted payload, so only an open vault can change them.

use std::fmt;

/// Permissions of a first boot. Each is given when the vault is made, withdrawn once, and never given again. A
/// payload without permissions, as earlier programs wrote it, permits nothing.
///
/// A data partition with a blank header looks the same before the first boot has ended and after an attacker zeroed
/// it. This record distinguishes the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstBootPermissions {
    /// The node has no configuration yet: it may take its configuration from a medium.
    pub configuration: bool,
    /// The data partition is not complete yet: a blank or half-formatted one may be formatted with this vault.
    pub partition: bool,
    /// The words are new and unconfirmed: the console may show them without proof that the reader has them.
    pub words: bool,
}

impl FirstBootPermissions {
    /// Every permission.
    pub const ALL: Self = Self {
        configuration: true,
        partition: true,
        words: true,
    };

    /// Whether nothing is permitted.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The permissions that are left when those of `ended` are withdrawn.
    #[must_use]
    pub fn without(self, ended: Self) -> Self {
        Self {
            configuration: self.configuration && !ended.configuration,
            partition: self.partition && !ended.partition,
            words: self.words && !ended.words,
        }
    }

    /// The permissions of both.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self {
            configuration: self.configuration || others.configuration,
            partition: self.partition || others.partition,
            words: self.words || others.words,
        }
    }

    /// The permissions with these names, each at most once; `None` if a name is unknown.
    pub(super) fn from_names(names: &[&str]) -> Option<Self> {
        let mut pending = Self::default();
        for name in names {
            let one = match *name {
                "configuration" => &mut pending.configuration,
                "partition" => &mut pending.partition,
                "words" => &mut pending.words,
                _ => return None,
            };
            // A name that comes twice would make two texts of one value.
            if std::mem::replace(one, true) {
                return None;
            }
        }
        Some(pending)
    }

    /// The names in the payload, in order.
    pub(super) fn names(self) -> Vec<&'static str> {
        let all = [
            ("configuration", self.configuration),
            ("partition", self.partition),
            ("words", self.words),
        ];
        let given = all.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(name, _)| name).collect()
    }
}

/// The names, for a log.
impl fmt::Display for FirstBootPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}
