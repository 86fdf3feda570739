//! Paths of the mount: `/fs/BUCKET[@BRANCH][#SEQ]/PATH`, and those of the server's own resources, whose names begin with a
//! dot, which no bucket's name does.

use alknet_store::{
    BucketName, ContentHash, EntryAddress, EntryPath, MAIN_BRANCH, SNAPSHOT_DIRECTORY, TreeVersion,
    WriteSessionId,
};
use http::Uri;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::DavError;

/// The first part of every path.
pub const MOUNT_PREFIX: &str = "/fs";

/// The directory of contents by their hashes.
const BLOBS: &str = ".blob";
/// The directory of uploads that can be resumed.
const UPLOADS: &str = ".upload";

/// What a URI reference encodes: everything but the unreserved characters (RFC 3986 §2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a path of the mount names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DavTarget {
    /// The list of buckets.
    Root,
    /// A content, by its hash.
    Blob(ContentHash),
    /// An upload that can be resumed.
    Upload(WriteSessionId),
    /// The list of snapshots of a bucket.
    Snapshots(BucketName),
    /// An entry of a bucket.
    Entry(TargetEntry),
}

/// An entry that a path names. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetEntry {
    /// The address of the entry.
    pub address: EntryAddress,
    /// Whether the path ends with a slash, as those of collections do (RFC 4918 §5.2).
    pub is_collection: bool,
}

impl DavTarget {
    /// Parses the path of a URI, with its percent-encoding.
    ///
    /// # Errors
    /// The path is not below the mount, breaks a rule of paths, or is that of no resource.
    pub fn parse(path: &str) -> Result<Self, DavError> {
        let rest = path
            .strip_prefix(MOUNT_PREFIX)
            .ok_or(DavError::NoResource)?;
        let Some(rest) = rest
            .strip_prefix('/')
            .or_else(|| rest.is_empty().then_some(""))
        else {
            return Err(DavError::NoResource);
        };
        let (tree, path) = rest.split_once('/').unwrap_or((rest, ""));
        let tree = decode_component(tree)?;
        match tree.as_str() {
            "" if path.is_empty() => Ok(Self::Root),
            BLOBS => {
                let hash = path.parse().map_err(|_| DavError::NoResource)?;
                Ok(Self::Blob(hash))
            }
            UPLOADS => Ok(Self::Upload(parse_upload(path)?)),
            own if own.starts_with('.') => Err(DavError::NoResource),
            tree => parse_entry(tree, path),
        }
    }
}

fn parse_entry(tree: &str, path: &str) -> Result<DavTarget, DavError> {
    let is_collection = path.is_empty() || path.ends_with('/');
    let path = match path {
        // Two slashes behind the tree: an empty component.
        "/" => path,
        path => path.strip_suffix('/').unwrap_or(path),
    };
    let mut decoded = String::from("/");
    for (at, component) in path.split('/').enumerate() {
        if at > 0 {
            decoded.push('/');
        }
        decoded.push_str(&decode_component(component)?);
    }
    if decoded.strip_prefix('/') == Some(SNAPSHOT_DIRECTORY)
        && let Ok(bucket) = BucketName::parse(tree)
    {
        return Ok(DavTarget::Snapshots(bucket));
    }
    let address = format!("{tree}:{decoded}").parse()?;
    Ok(DavTarget::Entry(TargetEntry {
        address,
        is_collection,
    }))
}

/// The text of one component. A path of the store can hold each character but a slash and NUL.
fn decode_component(component: &str) -> Result<String, DavError> {
    let bytes: Vec<u8> = percent_decode_str(component).collect();
    if bytes.contains(&b'/') {
        return Err(DavError::EncodedSlash);
    }
    String::from_utf8(bytes).map_err(|_| DavError::Path(alknet_store::PathRule::Utf8.into()))
}

fn parse_upload(text: &str) -> Result<WriteSessionId, DavError> {
    // An id has the form of half a hash.
    let padded = format!("{text}{}", "0".repeat(ContentHash::BYTES));
    let hash: ContentHash = padded.parse().map_err(|_| DavError::NoResource)?;
    let id = hash.as_bytes().first_chunk().copied();
    id.map(WriteSessionId::new).ok_or(DavError::NoResource)
}

impl TargetEntry {
    /// The entry at another path of the same tree.
    #[must_use]
    pub fn at(&self, path: EntryPath, is_collection: bool) -> Self {
        let address = EntryAddress {
            path,
            ..self.address.clone()
        };
        Self {
            address,
            is_collection,
        }
    }

    /// The URI reference of the entry: an absolute path (RFC 4918 §8.3). That of a collection ends with a slash.
    #[must_use]
    pub fn href(&self) -> String {
        let EntryAddress {
            bucket,
            version,
            path,
        } = &self.address;
        let mut href = format!("{MOUNT_PREFIX}/{bucket}");
        match version {
            TreeVersion::Head(branch) if branch.as_str() == MAIN_BRANCH => {}
            TreeVersion::Head(branch) => href.push_str(&format!("@{branch}")),
            TreeVersion::At(branch, seq) => href.push_str(&format!("@{branch}%23{seq}")),
            TreeVersion::Snapshot(name) => {
                href.push_str(&format!("/{SNAPSHOT_DIRECTORY}/{name}"));
            }
        }
        for component in path.as_str().split('/').filter(|it| !it.is_empty()) {
            href.push('/');
            href.extend(utf8_percent_encode(component, ENCODED));
        }
        if self.is_collection {
            href.push('/');
        }
        href
    }

    /// The last component of the path; for the root of a tree the name of the bucket.
    #[must_use]
    pub fn display_name(&self) -> &str {
        let split = self.address.path.split();
        split.map_or_else(|| self.address.bucket.as_str(), |(_, name)| name)
    }
}

/// The host that a request was sent to. Only URI references to it name resources of this mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestOrigin {
    host: String,
    port: Option<u16>,
}

impl RequestOrigin {
    /// The origin of a request: the authority of its URI (HTTP/2 and HTTP/3), or else its `Host`.
    #[must_use]
    pub fn from_parts(parts: &Parts) -> Option<Self> {
        if let Some(authority) = parts.uri.authority() {
            return Self::from_authority(authority);
        }
        let host = parts.headers.get(HOST)?.to_str().ok()?;
        Self::from_authority(&host.parse().ok()?)
    }

    /// The origin of an authority; `None` if it has user information.
    #[must_use]
    pub fn from_authority(authority: &Authority) -> Option<Self> {
        if authority.as_str().contains('@') {
            return None;
        }
        Some(Self {
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16(),
        })
    }

    /// What a URI reference names: an absolute URI or an absolute path (RFC 4918 §8.3, `Simple-ref`).
    ///
    /// # Errors
    /// The reference is invalid, or leads to another server or out of the mount.
    pub fn resolve(&self, reference: &str, field: &'static str) -> Result<DavTarget, DavError> {
        if reference.contains(['?', '#']) {
            return Err(DavError::header(field, "a query or a fragment"));
        }
        let invalid = || DavError::header(field, "not a URI with a path");
        let uri: Uri = reference.parse().map_err(|_| invalid())?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) => {
                let default = match scheme {
                    "https" => 443,
                    "http" => 80,
                    _ => return Err(DavError::OtherServer),
                };
                let other = Self::from_authority(authority).ok_or(DavError::OtherServer)?;
                let is_same_port = self.port.unwrap_or(default) == other.port.unwrap_or(default);
                if self.host != other.host || !is_same_port {
                    return Err(DavError::OtherServer);
                }
            }
            // `//host/path` would name another server.
            (None, None) if reference.starts_with('/') && !reference.starts_with("//") => {}
            _ => return Err(invalid()),
        }
        match DavTarget::parse(uri.path()) {
            // Another URL namespace of the server (RFC 4918 §9.8.5).
            Err(DavError::NoResource) => Err(DavError::OtherServer),
            target => target,
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_store::PathRule;
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str) -> TargetEntry {
        match DavTarget::parse(path) {
            Ok(DavTarget::Entry(entry)) => entry,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_what_the_grammar_says() {
        for (path, address, is_collection) in [
            ("/fs/docs", "docs:/", true),
            ("/fs/docs/", "docs:/", true),
            ("/fs/docs/a/b", "docs:/a/b", false),
            ("/fs/docs/a/", "docs:/a", true),
            ("/fs/docs@draft/a%20b%25", "docs@draft:/a b%", false),
            ("/fs/docs%40draft%2317/a", "docs@draft#17:/a", false),
            ("/fs/docs/.snap/v1/a", "docs:/.snap/v1/a", false),
            ("/fs/docs/%C3%A4%3A%23", "docs:/ä:#", false),
        ] {
            let entry = entry(path);
            assert_eq!(entry.address.to_string(), address, "{path}");
            assert_eq!(entry.is_collection, is_collection, "{path}");
        }
        for root in ["/fs", "/fs/"] {
            assert_eq!(DavTarget::parse(root), Ok(DavTarget::Root));
        }
        let bucket = BucketName::parse("docs").expect("a name");
        let snapshots = DavTarget::parse("/fs/docs/.snap/");
        assert_eq!(snapshots, Ok(DavTarget::Snapshots(bucket)));
        let blob = DavTarget::parse(&format!("/fs/.blob/{}", ContentHash::EMPTY));
        assert_eq!(blob, Ok(DavTarget::Blob(ContentHash::EMPTY)));
        let id = WriteSessionId::new(*b"0123456789abcdef");
        let upload = DavTarget::parse(&format!("/fs/.upload/{id}"));
        assert_eq!(upload, Ok(DavTarget::Upload(id)));
    }

    #[test]
    fn paths_that_break_a_rule_are_refused() {
        for (path, rule) in [
            ("/fs/docs/../x", PathRule::DotDot),
            ("/fs/docs/%2e%2E/x", PathRule::DotDot),
            ("/fs/docs/a//b", PathRule::EmptyComponent),
            ("/fs/docs//", PathRule::EmptyComponent),
            ("/fs/docs/a%00b", PathRule::Nul),
            ("/fs/docs/%ff", PathRule::Utf8),
            ("/fs/Docs/a", PathRule::BucketName),
            ("/fs//a", PathRule::BucketName),
            ("/fs/docs@/a", PathRule::BranchName),
        ] {
            let refused = DavTarget::parse(path).expect_err(path);
            assert_eq!(refused, DavError::Path(rule.into()), "{path}");
            assert_eq!(refused.status(), 400);
        }
        assert_eq!(
            DavTarget::parse("/fs/docs/a%2Fb"),
            Err(DavError::EncodedSlash)
        );
        for path in [
            "/",
            "/fsx",
            "/FS/docs",
            "/fs/.blob/",
            "/fs/.blob/12",
            "/fs/.upload/12",
            "/fs/.x/y",
            "/fs/.upload/0123456789ABCDEF0123456789abcdef",
        ] {
            assert_eq!(DavTarget::parse(path), Err(DavError::NoResource), "{path}");
        }
    }

    #[test]
    fn references_stay_on_the_server_and_in_the_mount() {
        let origin = |text: &str| {
            let authority = text.parse().expect("an authority");
            RequestOrigin::from_authority(&authority).expect("an origin")
        };
        for (host, reference) in [
            ("node", "/fs/docs/a"),
            ("Node:443", "https://node/fs/docs/a"),
            ("node", "https://NODE:443/fs/docs/a"),
            ("node:8443", "https://node:8443/fs/docs/a"),
            ("[::1]:443", "https://[::1]/fs/docs/a"),
        ] {
            let found = origin(host).resolve(reference, "Destination");
            assert_eq!(found, DavTarget::parse("/fs/docs/a"), "{reference}");
        }
        for (host, reference, status) in [
            ("node", "https://other/fs/docs/a", 502),
            ("node:8443", "https://node/fs/docs/a", 502),
            ("node", "https://u@node/fs/docs/a", 502),
            ("node", "ftp://node/fs/docs/a", 502),
            ("node", "/git/docs/a", 502),
            ("node", "//node/fs/docs/a", 400),
            ("node", "fs/docs/a", 400),
            ("node", "", 400),
            ("node", "/fs/docs/a?b", 400),
            ("node", "/fs/docs/a#b", 400),
            ("node", "/fs/docs/../b", 400),
        ] {
            let refused = origin(host).resolve(reference, "Destination");
            assert_eq!(
                refused.expect_err(reference).status(),
                status,
                "{reference}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_reference_leads_back(components in prop::collection::vec("[^/\0]{1,20}", 0..5), branch in "[a-z][a-z0-9]{0,5}") {
            let path = format!("/{}", components.join("/"));
            if let Ok(address) = format!("docs@{branch}:{path}").parse::<EntryAddress>() {
                let entry = TargetEntry { is_collection: address.path.is_root(), address };
                let href = entry.href();
                prop_assert!(href.is_ascii());
                prop_assert_eq!(DavTarget::parse(&href), Ok(DavTarget::Entry(entry)));
            }
        }

        #[test]
        fn no_path_makes_the_parser_panic(path in "/fs[/.@%a-f0-9~]{0,60}") {
            if let Ok(DavTarget::Entry(entry)) = DavTarget::parse(&path) {
                prop_assert_eq!(DavTarget::parse(&entry.href()), Ok(DavTarget::Entry(entry)));
            }
        }
    }
}
