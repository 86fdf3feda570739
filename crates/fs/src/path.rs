//! Addresses of entries as requests write them: `bucket[@branch][#seq]:/path`, or `bucket:/.snap/NAME/path`.
//!
//! The grammar is the store's ([`EntryAddress`]): every protocol reads the same one.

use alknet_store::{EntryAddress, TreeVersion};

use crate::error::FsError;

/// Reads an address.
///
/// ```
/// use alknet_fs::parse_address;
///
/// let address = parse_address("docs@draft#17:/2026/report.txt").expect("an address");
/// assert_eq!(address.bucket.as_str(), "docs");
/// assert!(parse_address("docs:/../etc/passwd").is_err());
/// ```
///
/// # Errors
/// `INVALID_PATH` with the rule that the text breaks. Nothing was looked up by then.
pub fn parse_address(text: &str) -> Result<EntryAddress, FsError> {
    Ok(text.parse::<EntryAddress>()?)
}

/// The address as it was after a commit.
///
/// # Errors
/// `INVALID_INPUT` if the address names a version already.
pub fn address_at(address: EntryAddress, as_of: Option<u64>) -> Result<EntryAddress, FsError> {
    match (address.version, as_of) {
        (TreeVersion::Head(branch), Some(seq)) => Ok(EntryAddress {
            version: TreeVersion::At(branch, seq),
            bucket: address.bucket,
            path: address.path,
        }),
        (TreeVersion::At(..) | TreeVersion::Snapshot(_), Some(_)) => Err(FsError::input(
            "the path names a version already; leave out as_of",
        )),
        (version, None) => Ok(EntryAddress {
            version,
            bucket: address.bucket,
            path: address.path,
        }),
    }
}

#[cfg(test)]
mod tests {
    use alknet_store::limits::{COMPONENT_BYTES_MAX, PATH_DEPTH_MAX, SEQ_MAX};
    use alknet_store::{EntryPath, PathRule};
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> Option<PathRule> {
        let parsed = text.parse::<EntryAddress>();
        parsed.err().map(|invalid| invalid.rule)
    }

    fn bucket() -> impl Strategy<Value = String> {
        "[a-z0-9][a-z0-9.-]{1,62}"
    }

    fn branch() -> impl Strategy<Value = String> {
        "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
    }

    /// Components with signs that the grammar itself uses, and letters of several bytes.
    fn path() -> impl Strategy<Value = String> {
        let component = "[a-zA-Z0-9 .:@#~äß日\\\\\n-]{1,20}"
            .prop_filter("neither . nor ..", |it| {
                it != "." && it != ".." && it != ".snap"
            });
        let components = proptest::collection::vec(component, 0..8);
        components.prop_map(|parts| format!("/{}", parts.join("/")))
    }

    proptest! {
        #[test]
        fn an_address_is_read_as_it_is_shown(
            bucket in bucket(),
            branch in proptest::option::of(branch()),
            seq in proptest::option::of(0..=SEQ_MAX),
            path in path(),
        ) {
            let mut text = bucket.clone();
            if let Some(branch) = &branch {
                text.push('@');
                text.push_str(branch);
            }
            if let Some(seq) = seq {
                text.push_str(&format!("#{seq}"));
            }
            text.push(':');
            text.push_str(&path);
            let address: EntryAddress = text.parse().expect("it follows the grammar");
            prop_assert_eq!(address.bucket.as_str(), &bucket);
            prop_assert_eq!(address.path.as_str(), &path);
            prop_assert_eq!(address.is_read_only(), seq.is_some());
            let shown = address.to_string();
            let again: EntryAddress = shown.parse().expect("it was shown");
            prop_assert_eq!(&again, &address);
            prop_assert_eq!(again.to_string(), shown);
        }

        #[test]
        fn a_snapshot_is_read_as_it_is_shown(
            bucket in bucket(),
            name in branch(),
            path in path(),
        ) {
            let text = format!("{bucket}:/.snap/{name}{path}");
            let address: EntryAddress = text.parse().expect("it follows the grammar");
            let is_snapshot =
                matches!(&address.version, TreeVersion::Snapshot(it) if it.as_str() == name);
            prop_assert!(is_snapshot);
            prop_assert!(address.is_read_only());
            let shown: EntryAddress = address.to_string().parse().expect("it was shown");
            prop_assert_eq!(shown, address);
        }

        /// Whatever comes, it is an address that shows itself so, or it is refused.
        #[test]
        fn any_text_is_refused_or_comes_back(text in "\\PC{0,80}") {
            if let Ok(address) = text.parse::<EntryAddress>() {
                let shown = address.to_string();
                prop_assert_eq!(shown.parse(), Ok(address));
            }
        }

        #[test]
        fn one_wrong_component_is_refused_wherever_it_stands(
            before in path(),
            after in path(),
            wrong in prop_oneof![Just("."), Just(".."), Just("a\0b")],
        ) {
            let before = if before == "/" { String::new() } else { before };
            let text = format!("docs:{before}/{wrong}{after}");
            let expected = match wrong {
                "." => PathRule::Dot,
                ".." => PathRule::DotDot,
                _ => PathRule::Nul,
            };
            // A path that ends with a slash breaks another rule too.
            let found = rule(&text);
            prop_assert!(
                found == Some(expected) || found == Some(PathRule::EmptyComponent),
                "{:?}",
                found
            );
        }
    }

    #[test]
    fn limits_are_exact() {
        let component = |bytes: usize| format!("docs:/{}", "a".repeat(bytes));
        assert_eq!(rule(&component(COMPONENT_BYTES_MAX)), None);
        let long = rule(&component(COMPONENT_BYTES_MAX + 1));
        assert_eq!(long, Some(PathRule::ComponentLength));
        let deep = |depth: usize| format!("docs:{}", "/a".repeat(depth));
        assert_eq!(rule(&deep(PATH_DEPTH_MAX)), None);
        assert_eq!(rule(&deep(PATH_DEPTH_MAX + 1)), Some(PathRule::Depth));
    }

    #[test]
    fn a_version_is_named_once() {
        let address = |text: &str| parse_address(text).expect("an address");
        let at = address_at(address("docs:/a"), Some(7)).expect("a head");
        assert_eq!(at.to_string(), "docs@main#7:/a");
        assert_eq!(at.path, EntryPath::parse("/a").expect("a path"));
        for versioned in ["docs#3:/a", "docs:/.snap/monday/a"] {
            assert!(address_at(address(versioned), Some(7)).is_err());
            let same = address_at(address(versioned), None).expect("as it is");
            assert_eq!(same, address(versioned));
        }
    }
}
