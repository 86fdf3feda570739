//! What a first boot still permits. It lies in the encrypted payload, so that only an open vault changes it.

use std::fmt;

/// Permissions of a first boot. Each is given when the vault is made, withdrawn once, and never given again: a
/// payload that names none, as every payload of an earlier program does, permits nothing.
///
/// A data partition that is blank where its header was looks the same before the first boot has ended and after an
/// attacker zeroed it. This record tells the two apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstBootPermissions {
    /// The node was not configured yet: it may take its configuration from a medium.
    pub configuration: bool,
    /// The data partition was not finished yet: a blank or half-formatted one may be formatted with this vault.
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

    /// What is left of these when those of `ended` are withdrawn.
    #[must_use]
    pub fn without(self, ended: Self) -> Self {
        Self {
            configuration: self.configuration && !ended.configuration,
            partition: self.partition && !ended.partition,
            words: self.words && !ended.words,
        }
    }

    /// These and `others`.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self {
            configuration: self.configuration || others.configuration,
            partition: self.partition || others.partition,
            words: self.words || others.words,
        }
    }

    /// The permissions of these names, each at most once; `None` if one is unknown.
    pub(super) fn from_names(names: &[&str]) -> Option<Self> {
        let mut pending = Self::default();
        for name in names {
            let one = match *name {
                "configuration" => &mut pending.configuration,
                "partition" => &mut pending.partition,
                "words" => &mut pending.words,
                _ => return None,
            };
            if std::mem::replace(one, true) {
                return None;
            }
        }
        Some(pending)
    }

    /// Their names in the payload, in order.
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

/// Their names, for a log.
impl fmt::Display for FirstBootPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}
