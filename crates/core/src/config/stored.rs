//! Files that a node stores itself, and that a document names as `store:/KIND/NAME`.
//!
//! A sealed appliance has no file system that its administrator can edit. Operations store the files that its
//! configuration names, each under a kind and a name, and a document refers to them in each place where it may name a
//! path.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::NodeConfig;
use super::error::quote;
use super::values::ConfigDiagnostic;

/// Prefix of the kind and the name in a document.
const PREFIX: &str = "store:/";
/// Longest name of a stored file, in bytes: it is part of a file name and of a line of a list.
const NAME_BYTES_MAX: usize = 32;

/// What a stored file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StoredFileKind {
    /// A certificate chain with its private key, for `tls.files`.
    Certificate,
    /// An OpenAPI document, for `http.import.document`.
    Document,
    /// Certificates of authorities, for `tls.roots` and `tls.acme.ca_file`.
    Root,
    /// A folder of a static site, for `http.site`.
    Site,
}

impl StoredFileKind {
    /// Every kind, by its name.
    pub const ALL: [Self; 4] = [Self::Certificate, Self::Document, Self::Root, Self::Site];

    /// The first part of the names of such files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Document => "document",
            Self::Root => "root",
            Self::Site => "site",
        }
    }
}

impl fmt::Display for StoredFileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a stored file, `site/www`: its kind, and 1 to 32 of `a-z`, `0-9` and `-`, a letter or digit first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredFileName {
    kind: StoredFileKind,
    name: String,
}

/// A text that is no name of a stored file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a stored file is called KIND/NAME: certificate, document, root or site, and 1 to 32 of a-z, 0-9 and '-', a letter \
     or digit first"
)]
pub struct StoredFileNameError;

impl StoredFileName {
    /// The purpose of the file.
    #[must_use]
    pub const fn kind(&self) -> StoredFileKind {
        self.kind
    }

    /// Its name among those of its kind.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that a value of a document names; `None` for every other path or address.
    #[must_use]
    pub fn referred_to(value: &str) -> Option<Self> {
        value.strip_prefix(PREFIX)?.parse().ok()
    }

    /// The form in which a document names it.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{PREFIX}{self}")
    }
}

impl fmt::Display for StoredFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl FromStr for StoredFileName {
    type Err = StoredFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = text.split_once('/').ok_or(StoredFileNameError)?;
        let mut kinds = StoredFileKind::ALL.into_iter();
        let kind = kinds.find(|known| known.name() == kind);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_valid = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(plain)
            && !name.starts_with('-');
        match (kind, is_valid) {
            (Some(kind), true) => Ok(Self {
                kind,
                name: name.to_owned(),
            }),
            _ => Err(StoredFileNameError),
        }
    }
}

impl NodeConfig {
    /// Every stored file that this document names, with the key that names it.
    #[must_use]
    pub fn stored_files(&self) -> Vec<(String, StoredFileName)> {
        let mut copy = self.clone();
        // A document has one value for a stored certificate; `key` was filled in from `chain`.
        let values = file_values(&mut copy).into_iter();
        let values = values.filter(|(key, _)| !key.ends_with("].key"));
        values
            .filter_map(|(key, value)| Some((key, StoredFileName::referred_to(value)?)))
            .collect()
    }

    /// Replaces the name of each stored file by its path, for the parts that open paths. Documents of imports keep
    /// their names, because their value may also be a URL.
    pub fn locate_stored_files(&mut self, path: impl Fn(&StoredFileName) -> String) {
        for (_, value) in file_values(self) {
            let name = StoredFileName::referred_to(value);
            if let Some(name) = name.filter(|it| it.kind != StoredFileKind::Document) {
                *value = path(&name);
            }
        }
    }
}

/// Every value that may name a stored file, with its key.
fn file_values(config: &mut NodeConfig) -> Vec<(String, &mut String)> {
    let tls = &mut config.tls;
    let alone = [
        ("tls.roots", &mut tls.roots),
        ("tls.acme.ca_file", &mut tls.acme.ca_file),
        ("http.site", &mut config.http.site),
    ];
    let alone = alone
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.as_mut()?)));
    let pairs = tls.files.iter_mut().enumerate().flat_map(|(n, pair)| {
        [
            (format!("tls.files[{n}].chain"), &mut pair.chain),
            (format!("tls.files[{n}].key"), &mut pair.key),
        ]
    });
    let imports = config.http.import.iter_mut().enumerate();
    let documents = imports.filter_map(|(n, import)| {
        let document = import.document.as_mut()?;
        Some((format!("http.import[{n}].document"), document))
    });
    alone.chain(pairs).chain(documents).collect()
}

/// Checks a value with the prefix of stored files, for a key that takes files of one kind; `None` for every other
/// value.
pub(super) fn checked(
    text: &str,
    kind: StoredFileKind,
) -> Option<Result<String, ConfigDiagnostic>> {
    let name = text.strip_prefix(PREFIX)?;
    let fix = || format!("write {PREFIX}{kind}/NAME; NAME is 1 to 32 of a-z, 0-9 and '-'");
    Some(match name.parse::<StoredFileName>() {
        Ok(found) if found.kind == kind => Ok(text.to_owned()),
        Ok(found) => {
            let what = format!(
                "{} is a {}, and this key takes a {kind}",
                quote(text),
                found.kind
            );
            Err(ConfigDiagnostic::new(what, fix()))
        }
        Err(_) => Err(ConfigDiagnostic::new(
            format!("{} is no stored file", quote(text)),
            fix(),
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "[tls]\nroots = \"store:/root/lab\"\nacme.ca_file = \"/etc/ca.pem\"\n\
         files = [{ chain = \"store:/certificate/edge\" }, { chain = \"/a.pem\", key = \"/a.key\" }]\n\
         [http]\nsite = \"store:/site/www\"\n[[http.import]]\nkind = \"openapi\"\nnamespace = \"forge\"\n\
         document = \"store:/document/forge\"\nbase_url = \"https://forge.example\"\n";

    fn parsed() -> NodeConfig {
        NodeConfig::parse(DOCUMENT.as_bytes()).expect("a correct document")
    }

    #[test]
    fn a_name_has_a_kind_and_plain_characters() {
        for text in ["site/www", "certificate/edge-1", "root/2026", "document/a"] {
            let name: StoredFileName = text.parse().expect(text);
            assert_eq!(name.to_string(), text);
            assert_eq!(StoredFileName::referred_to(&name.reference()), Some(name));
        }
        let long = format!("site/{}", "a".repeat(33));
        for text in [
            "site",
            "site/",
            "page/www",
            "site/WWW",
            "site/-a",
            "site/..",
            "site/a/b",
            "site/a.b",
            "/site/a",
            "site/\u{e4}",
            "",
            &long,
        ] {
            assert!(text.parse::<StoredFileName>().is_err(), "{text}");
        }
        assert_eq!(StoredFileName::referred_to("/data/www"), None);
        assert_eq!(StoredFileName::referred_to("cfg:/site/www"), None);
    }

    #[test]
    fn each_key_that_names_a_stored_file_is_found() {
        let config = parsed();
        let found = config.stored_files();
        let found: Vec<_> = found
            .iter()
            .map(|(key, it)| (key.as_str(), it.to_string()))
            .collect();
        let expected = [
            ("tls.roots", "root/lab"),
            ("http.site", "site/www"),
            ("tls.files[0].chain", "certificate/edge"),
            ("http.import[0].document", "document/forge"),
        ];
        assert_eq!(found, expected.map(|(key, name)| (key, name.to_owned())));
        // It is neither a file beside the configuration nor an address.
        let import = &config.http.import[0];
        assert_eq!(
            (import.document_path(), import.document_url()),
            (None, None)
        );
    }

    #[test]
    fn paths_take_the_places_of_names() {
        let mut config = parsed();
        config.locate_stored_files(|name| format!("/state/{name}"));
        assert_eq!(config.http.site.as_deref(), Some("/state/site/www"));
        assert_eq!(config.tls.roots.as_deref(), Some("/state/root/lab"));
        assert_eq!(config.tls.acme.ca_file.as_deref(), Some("/etc/ca.pem"));
        assert_eq!(config.tls.files[0].key, "/state/certificate/edge");
        assert_eq!(config.tls.files[1].key, "/a.key");
        let document = config.http.import[0].document.as_deref();
        assert_eq!(document, Some("store:/document/forge"));
    }

    #[test]
    fn a_stored_file_of_another_kind_is_a_mistake() {
        for (document, words) in [
            (
                "[http]\nsite = \"store:/root/lab\"\n",
                "this key takes a site",
            ),
            ("[http]\nsite = \"store:/site/../x\"\n", "no stored file"),
            (
                "[tls]\nroots = \"store:/site/www\"\n",
                "this key takes a root",
            ),
            (
                "[tls]\nfiles = [{ chain = \"store:/certificate/a\", key = \"/b.key\" }]\n",
                "has its key with it",
            ),
            (
                "[tls]\nfiles = [{ chain = \"/a.pem\", key = \"store:/certificate/a\" }]\n",
                "is no path of a file",
            ),
            ("[tls]\nfiles = [{ chain = \"/a.pem\" }]\n", "key"),
        ] {
            let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
            let message = errors.iter().map(ToString::to_string).collect::<String>();
            assert!(message.contains(words), "{document}: {message}");
        }
    }
}
