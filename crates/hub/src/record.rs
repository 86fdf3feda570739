//! What a hub keeps of an enrolment token, and what a token is good for at a moment.

use alknet_core::{PeerEntry, PeerId, PeerKey, TokenHash};
use serde::{Deserialize, Serialize};

use crate::names::EnrolRole;

/// How long the same key may show the same token again and get the same answer, in seconds: its
/// answer may have been lost on the way.
pub const REPEAT_TIME_S: u64 = 600;
/// Most uses of one token.
pub const USES_MAX: u32 = 1000;

/// How often a token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// For so many keys.
    Many(u32),
    /// For one key.
    Once,
}

impl TokenKind {
    /// Keys it is for.
    #[must_use]
    pub const fn uses(self) -> u32 {
        match self {
            Self::Many(uses) => uses,
            Self::Once => 1,
        }
    }
}

/// A token as the hub keeps it: what it grants, and who used it. The token itself is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name and the SHA-256 of its text.
    pub hash: TokenHash,
    /// How often it counts.
    pub kind: TokenKind,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// What its user becomes.
    pub role: EnrolRole,
    /// Who made it. The token ends with them.
    pub made_by: String,
    /// A key of the maker's: administrators are named by their place in the configuration, which another one has once
    /// they are gone, and another peer may get the name of one that is gone. Absent in records of makers without a key,
    /// and in those of peers that earlier versions wrote.
    #[serde(default)]
    pub made_by_key: Option<PeerKey>,
    /// Who used it, in order.
    pub uses: Vec<TokenUse>,
    /// How many removals of peers the hub had counted when it made the token; see
    /// [`PeerEntry::removal`]. `None` in records of versions that did not count them.
    #[serde(default)]
    pub removals: Option<u64>,
    /// The hub removed a peer that had joined by this token. The token takes in no further key: the
    /// removed peer still has its text, and makes another key in no time.
    #[serde(default)]
    pub closed: bool,
    /// Counts the changes of this record; see [`TokenStore::replace`](crate::TokenStore::replace).
    pub revision: u64,
}

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The key that was shown with it.
    pub key: PeerKey,
    /// The peer that the key became.
    pub peer: PeerId,
    /// What it is called.
    pub name: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Whether the peer was made. A use without one was cut off, and is finished by a repetition.
    pub done: bool,
}

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenValidity {
    /// A use that counts.
    Fresh,
    /// Used up, over, or of another time.
    Invalid,
    /// This key used it a moment ago; the number is the place in [`TokenRecord::uses`].
    Repeat(usize),
}

impl TokenRecord {
    /// What the token is good for when `key` shows it. Without a sane clock nothing that ends is
    /// good for anything.
    #[must_use]
    pub fn judge(&self, key: &PeerKey, now_s: Option<u64>) -> TokenValidity {
        let Some(now) = now_s else {
            return TokenValidity::Invalid;
        };
        // A clock that was set back makes `at` lie in the future; such a use is recent.
        let recent =
            |used: &TokenUse| used.key == *key && now.saturating_sub(used.at) < REPEAT_TIME_S;
        if let Some(at) = self.uses.iter().position(recent) {
            return TokenValidity::Repeat(at);
        }
        if self.is_open(now) {
            TokenValidity::Fresh
        } else {
            TokenValidity::Invalid
        }
    }

    /// Whether the token can still be used.
    #[must_use]
    pub fn is_open(&self, now_s: u64) -> bool {
        !self.closed && now_s < self.expires && self.uses_left() > 0
    }

    /// Whether it was made after this peer was removed. A removed peer gets nothing of an older token.
    #[must_use]
    pub fn is_newer_than(&self, removed: &PeerEntry) -> bool {
        let counted = |removals| removed.removal.is_none_or(|number| number <= removals);
        // A record of a version that did not count removals is older than any of them.
        self.removals.is_some_and(counted)
    }

    /// Whether the peer has its text: it joined by it, or made it.
    #[must_use]
    pub fn is_of(&self, peer: &PeerId) -> bool {
        self.made_by == peer.as_str() || self.uses.iter().any(|used| used.peer == *peer)
    }

    /// Whether it may take in another key, at whatever time: a use is left, or one was cut off and can be repeated.
    #[must_use]
    pub fn admits_more(&self) -> bool {
        !self.closed && (self.uses_left() > 0 || self.uses.iter().any(|used| !used.done))
    }

    /// Uses that are left.
    #[must_use]
    pub fn uses_left(&self) -> u32 {
        let used = u32::try_from(self.uses.len()).unwrap_or(u32::MAX);
        self.kind.uses().saturating_sub(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::EnrolToken;

    fn record(kind: TokenKind) -> TokenRecord {
        TokenRecord {
            hash: EnrolToken::generate().expect("randomness").hash(),
            kind,
            expires: 1000,
            role: EnrolRole::new("worker".parse().expect("a role")),
            made_by: "admin".to_owned(),
            made_by_key: None,
            uses: Vec::new(),
            removals: Some(0),
            closed: false,
            revision: 0,
        }
    }

    fn used(key: PeerKey, at: u64) -> TokenUse {
        TokenUse {
            key,
            peer: "p1".parse().expect("a peer id"),
            name: "kitchen".to_owned(),
            at,
            done: true,
        }
    }

    #[test]
    fn a_token_counts_as_often_as_it_is_for_and_until_its_end() {
        let [one, two] = [1, 2].map(|n| PeerKey::Ed25519([n; 32]));
        let mut once = record(TokenKind::Once);
        assert_eq!(once.judge(&one, Some(999)), TokenValidity::Fresh);
        assert_eq!(once.judge(&one, Some(1000)), TokenValidity::Invalid);
        assert_eq!(once.judge(&one, None), TokenValidity::Invalid);
        once.uses.push(used(one, 10));
        assert_eq!(once.judge(&two, Some(11)), TokenValidity::Invalid);
        let mut many = record(TokenKind::Many(2));
        many.uses.push(used(one, 10));
        assert_eq!(
            (many.judge(&two, Some(11)), many.uses_left()),
            (TokenValidity::Fresh, 1)
        );
        many.uses.push(used(two, 11));
        let third = PeerKey::Ed25519([3; 32]);
        assert_eq!(many.judge(&third, Some(12)), TokenValidity::Invalid);
    }

    #[test]
    fn records_of_older_versions_are_older_than_any_removal() {
        let mut older = serde_json::to_value(record(TokenKind::Once)).expect("plain data");
        let fields = older.as_object_mut().expect("an object");
        fields.remove("removals");
        fields.remove("closed");
        let older: TokenRecord = serde_json::from_value(older).expect("an older record");
        assert!(older.is_open(0));
        let mut removed = PeerEntry::new("p1".parse().expect("a peer id"));
        let newer = record(TokenKind::Once);
        assert!(!older.is_newer_than(&removed) && newer.is_newer_than(&removed));
        removed.removal = Some(1);
        assert!(!older.is_newer_than(&removed) && !newer.is_newer_than(&removed));
    }

    #[test]
    fn the_same_key_is_answered_again_for_ten_minutes() {
        let [one, two] = [1, 2].map(|n| PeerKey::Ed25519([n; 32]));
        let mut once = record(TokenKind::Once);
        once.uses.push(used(one, 990));
        // Beyond the token's own end, too: the use was in time.
        for (now, verdict) in [
            (990, TokenValidity::Repeat(0)),
            (990 + REPEAT_TIME_S - 1, TokenValidity::Repeat(0)),
            (990 + REPEAT_TIME_S, TokenValidity::Invalid),
        ] {
            assert_eq!(once.judge(&one, Some(now)), verdict, "{now}");
            assert_eq!(once.judge(&two, Some(now)), TokenValidity::Invalid, "{now}");
        }
    }
}
