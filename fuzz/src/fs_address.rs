//! Addresses `bucket@branch#seq:/path` of files, and the paths of a tree of files.

use alknet_call::CallError;
use alknet_fs::{FsError, TreePath, address_at, parse_address, resolve_path};
use alknet_store::limits::{BRANCH_NAME_BYTES_MAX, BUCKET_NAME_BYTES_MAX, PATH_BYTES_MAX, SEQ_MAX};
use alknet_store::{EntryAddress, EntryPath, InvalidPath, PathRule};

/// Bytes of the longest address as text: its parts at their limits, and signs and digits between them.
const ADDRESS_BYTES_MAX: usize =
    BUCKET_NAME_BYTES_MAX + BRANCH_NAME_BYTES_MAX + PATH_BYTES_MAX + 32;

/// Bytes of the longest refusal. It has the rule and no part of the input.
const REFUSAL_BYTES_MAX: usize = 256;

/// Reads the text as an address and as a path of the tree. Its first line is the directory in which a client means the
/// rest.
pub fn fs_address(data: &[u8]) -> bool {
    let path = EntryPath::from_bytes(data);
    let Ok(text) = std::str::from_utf8(data) else {
        let rule = match data.len() > PATH_BYTES_MAX {
            true => PathRule::PathLength,
            false => PathRule::Utf8,
        };
        assert_eq!(path, Err(rule.into()));
        return false;
    };
    assert_eq!(path, EntryPath::parse(text));
    check_tree_path(text);
    let (directory, path) = text.split_once('\n').unwrap_or(("/", text));
    check_resolved(directory, path);
    let parsed = text.parse::<EntryAddress>();
    match (&parsed, parse_address(text)) {
        (Ok(address), Ok(same)) => {
            assert_eq!(*address, same);
            check_address(address);
        }
        (Err(invalid), Err(error)) => {
            check_refusal(*invalid);
            check_call_error(*invalid, error);
        }
        (parsed, other) => panic!("two readers of one grammar: {parsed:?} {other:?}"),
    }
    parsed.is_ok()
}

/// What is shown of an address is as long as an address may be, and is read as the same one.
fn check_address(address: &EntryAddress) {
    let shown = address.to_string();
    assert!(shown.len() <= ADDRESS_BYTES_MAX, "{} bytes", shown.len());
    assert_eq!(
        shown.parse::<EntryAddress>().as_ref(),
        Ok(address),
        "{shown}"
    );
    // A path of the tree has the same parts, and a slash where the address has a colon.
    let path = format!("/{}", shown.replacen(':', "", 1));
    assert_eq!(TreePath::parse(&path), Ok(TreePath::Entry(address.clone())));
    match address_at(address.clone(), Some(SEQ_MAX)) {
        Ok(version) => {
            assert!(version.is_read_only() && !address.is_read_only());
            let again = version.to_string().parse::<EntryAddress>();
            assert_eq!(again.as_ref(), Ok(&version));
        }
        Err(_) => assert!(address.is_read_only(), "{shown}"),
    }
}

/// A refusal names a rule, and repeats nothing of the text.
fn check_refusal(invalid: InvalidPath) {
    assert!(PathRule::ALL.contains(&invalid.rule));
    let text = invalid.to_string();
    assert!(text.contains(invalid.rule.name()), "{text}");
    assert!(text.len() <= REFUSAL_BYTES_MAX, "{text}");
}

/// A caller gets the rule as a fact for programs.
fn check_call_error(invalid: InvalidPath, error: FsError) {
    let error = CallError::from(error);
    assert_eq!(error.code.name(), "INVALID_PATH");
    let details = error.details.expect("an invalid path has details");
    assert_eq!(details["rule"], invalid.rule.name());
}

fn check_tree_path(path: &str) {
    match TreePath::parse(path) {
        Ok(TreePath::Root) => assert_eq!(path, "/"),
        Ok(TreePath::Snapshots(bucket)) => assert_eq!(path, format!("/{bucket}/.snap")),
        Ok(TreePath::Entry(address)) => check_address(&address),
        Err(invalid) => check_refusal(invalid),
    }
}

/// What a client means stays in the tree, and is no longer than what the client sent.
fn check_resolved(directory: &str, path: &str) {
    let resolved = resolve_path(directory, path);
    assert!(resolved.len() <= directory.len() + path.len() + 2);
    let names = resolved.strip_prefix('/').expect("it is absolute");
    let is_clean = |name: &str| !matches!(name, "" | "." | "..");
    assert!(
        names.is_empty() || names.split('/').all(is_clean),
        "{resolved}"
    );
    assert_eq!(resolve_path("/elsewhere", &resolved), resolved);
    if let Err(InvalidPath { rule }) = TreePath::parse(&resolved) {
        let is_mended = matches!(
            rule,
            PathRule::Absolute | PathRule::Dot | PathRule::DotDot | PathRule::EmptyComponent
        );
        assert!(!is_mended, "{rule} {resolved}");
    }
}
