//! Whose signatures count: those of the owner's keys, if the configuration has some, and else those of the release keys
//! in the image.

use std::fs;
use std::path::Path;

use alknet_image::UPDATE_ROOT_FILE;
use alknet_update::limits::ROOT_BYTES_MAX;
use alknet_update::{KeyThreshold, TrustAnchor};

use super::refusal::{RefusalCode, UpdateRefusal};

/// Whose keys count, for facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AnchorSource {
    #[default]
    None,
    Owner,
    Release,
}

impl AnchorSource {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Owner => "owner",
            Self::Release => "release",
        }
    }
}

/// The keys of the owner in the configuration, and the release root of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UpdateAnchor {
    /// `[update] keys`.
    keys: Vec<String>,
    /// `[update] threshold`.
    threshold: u32,
    root: Option<Vec<u8>>,
}

impl UpdateAnchor {
    /// The release root in the image, without keys of an owner.
    pub(crate) fn of_image() -> Self {
        Self::of_root(&Path::new("/").join(UPDATE_ROOT_FILE))
    }

    pub(super) fn of_root(root: &Path) -> Self {
        let is_short = fs::metadata(root).is_ok_and(|about| about.len() <= ROOT_BYTES_MAX);
        Self {
            keys: Vec::new(),
            threshold: 1,
            root: is_short.then(|| fs::read(root).ok()).flatten(),
        }
    }

    /// Like `of_root`, with the keys of a configuration.
    pub(crate) fn with_owner(&self, keys: &[String], threshold: u32) -> Self {
        Self {
            keys: keys.to_vec(),
            threshold,
            root: self.root.clone(),
        }
    }

    #[cfg(test)]
    fn source(&self) -> AnchorSource {
        self.source_with(&self.keys)
    }

    /// Whose keys count beside these of a configuration.
    pub(crate) fn source_with(&self, keys: &[String]) -> AnchorSource {
        match (keys.is_empty(), &self.root) {
            (false, _) => AnchorSource::Owner,
            (true, Some(_)) => AnchorSource::Release,
            (true, None) => AnchorSource::None,
        }
    }

    /// What trust begins with. Keys of the owner that cannot be used are never replaced by the release keys.
    pub(super) fn trust(&self) -> Result<TrustAnchor, UpdateRefusal> {
        if !self.keys.is_empty() {
            let keys = self.keys.iter().map(|key| key.parse());
            let keys: Result<Vec<_>, _> = keys.collect();
            let threshold = usize::try_from(self.threshold).unwrap_or(usize::MAX);
            let keys = keys.and_then(|keys| KeyThreshold::new(keys, threshold));
            return keys.map(TrustAnchor::keys).map_err(|error| {
                let text = format_args!(
                    "the keys of [update] in the configuration cannot be used: {error}"
                );
                UpdateRefusal::new(RefusalCode::NoKeys, text)
            });
        }
        let Some(root) = &self.root else {
            return Err(UpdateRefusal::new(
                RefusalCode::NoKeys,
                "this image has no release keys, and the configuration has no [update] keys; set those of your own builds",
            ));
        };
        TrustAnchor::root(root).map_err(|error| {
            let text = format_args!(
                "the release keys in the image cannot be used: {error}; set [update] keys"
            );
            UpdateRefusal::new(RefusalCode::NoKeys, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::testing::TestPublisher;

    #[test]
    fn the_owners_keys_replace_the_release_keys_also_if_they_are_of_no_use() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("root.json");
        let anchor =
            |keys: &[String], threshold| UpdateAnchor::of_root(&file).with_owner(keys, threshold);
        let none = anchor(&[], 1);
        assert_eq!(none.source(), AnchorSource::None);
        assert_eq!(none.trust().expect_err("no key").code, RefusalCode::NoKeys);
        let publisher = TestPublisher::new();
        fs::write(&file, publisher.root()).expect("writable");
        let release = anchor(&[], 1);
        assert_eq!(release.source(), AnchorSource::Release);
        release.trust().expect("a root document");
        let key = publisher.key();
        let owner = anchor(std::slice::from_ref(&key), 1);
        assert_eq!(owner.source(), AnchorSource::Owner);
        owner.trust().expect("a key");
        for (keys, threshold) in [(vec![key.clone()], 2), (vec!["ed25519:12".to_owned()], 1)] {
            let owner = anchor(&keys, threshold);
            assert_eq!(owner.source(), AnchorSource::Owner);
            assert_eq!(
                owner.trust().expect_err("of no use").code,
                RefusalCode::NoKeys
            );
        }
        fs::write(&file, "{}").expect("writable");
        let refused = anchor(&[], 1).trust().expect_err("no root document");
        assert_eq!(refused.code, RefusalCode::NoKeys);
    }
}
