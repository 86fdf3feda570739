//! Turns a section of the configuration into the options of an import.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use alknet_call::ImportMemory;
use alknet_core::config::{ImportAuth, ImportConfig};
use alknet_core::{Capability, CapabilityKind};
use bytes::Bytes;
use thiserror::Error;

use super::limits::DOCUMENT_BYTES_MAX;
use super::{OpenApiOptions, TokenSource};

/// The reason why an import cannot follow its section of the configuration.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The credential is of another kind than the requests need.
    #[error("the credential is of the kind {is}, but the import needs {needs}")]
    Credential {
        /// The kind of the credential.
        is: CapabilityKind,
        /// The kind that the requests need.
        needs: CapabilityKind,
    },
    /// The node cannot read the document.
    #[error("the document {name} cannot be read")]
    Document {
        /// The document's name in the folder.
        name: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A host of the section is invalid.
    #[error(transparent)]
    Host(#[from] alknet_http_client::HostRuleError),
    /// The import has no credential to send.
    #[error("the import needs a credential of the kind {0}, and no credential has its name")]
    NoCredential(CapabilityKind),
}

impl OpenApiOptions {
    /// The options that `config` describes, with the capability that its credential names.
    ///
    /// # Errors
    /// The credential is not of the kind that the section needs.
    pub fn from_config(
        config: &ImportConfig,
        credential: Option<Capability>,
    ) -> Result<Self, ImportError> {
        let needs = match config.auth {
            ImportAuth::ApiKey => Some(CapabilityKind::ApiKey),
            ImportAuth::Basic | ImportAuth::OAuth2 => Some(CapabilityKind::Basic),
            ImportAuth::Bearer => Some(CapabilityKind::Bearer),
            _ => None,
        };
        let credential = match (needs, credential) {
            (None, _) => None,
            (Some(needs), None) => return Err(ImportError::NoCredential(needs)),
            (Some(needs), Some(one)) if one.kind() != needs => {
                let is = one.kind();
                return Err(ImportError::Credential { is, needs });
            }
            (Some(_), one) => one,
        };
        let hosts = config.hosts.iter().map(|host| host.parse());
        Ok(Self {
            namespace: config.namespace.clone(),
            base_url: config.base_url.clone(),
            credential,
            tokens: config.token_url.clone().map(|url| TokenSource {
                url,
                scopes: config.scopes.clone(),
            }),
            hosts: hosts.collect::<Result<_, _>>()?,
            private: config.private.clone(),
            pins: config.pins.clone(),
            plain: config.plain,
            only: config.only.clone(),
            memory: ImportMemory::default(),
        })
    }
}

/// Reads the document `name` in `folder`. It must be a file there, possibly through links, and
/// nothing outside the folder.
///
/// # Errors
/// The file does not exist, is outside the folder, or is longer than a document may be.
pub fn read_document(folder: &Path, name: &str) -> Result<Bytes, ImportError> {
    document(folder, name).map_err(|source| ImportError::Document {
        name: name.to_owned(),
        source,
    })
}

fn document(folder: &Path, name: &str) -> io::Result<Bytes> {
    let refused = |why: &'static str| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let below = |part: Component<'_>| matches!(part, Component::Normal(_));
    if name.is_empty() || !Path::new(name).components().all(below) {
        return Err(refused("its name leads out of the folder"));
    }
    // Both paths are canonical before the comparison, so a link cannot lead out of the folder.
    let folder = folder.canonicalize()?;
    let path = folder.join(name).canonicalize()?;
    if !path.starts_with(&folder) {
        return Err(refused("it is outside of the folder"));
    }
    // This excludes devices and pipes, which might never end.
    if !path.metadata()?.is_file() {
        return Err(refused("it is no file"));
    }
    let mut bytes = Vec::new();
    // One byte more than the maximum reveals a longer file.
    let most = DOCUMENT_BYTES_MAX as u64 + 1;
    File::open(&path)?.take(most).read_to_end(&mut bytes)?;
    match bytes.len() <= DOCUMENT_BYTES_MAX {
        true => Ok(bytes.into()),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is longer than 16 MiB",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use alknet_core::capability;
    use alknet_core::config::NodeConfig;

    use super::*;

    fn config(more: &str) -> ImportConfig {
        let document = format!(
            "[[credentials]]\nname = \"key\"\nkind = \"bearer\"\n[[http.import]]\nkind = \"openapi\"\n\
             namespace = \"a\"\ndocument = \"cfg:/a.yaml\"\nbase_url = \"https://a.example\"\n{more}\n"
        );
        let config = NodeConfig::parse(document.as_bytes()).expect("a document");
        config.http.import.first().expect("an import").clone()
    }

    #[test]
    fn a_section_gets_the_credential_that_it_needs() {
        let one = |kind| capability("key", kind, Arc::new(|| true)).0;
        let none = OpenApiOptions::from_config(&config(""), Some(one(CapabilityKind::Bytes)));
        assert!(none.expect("no need").credential.is_none());
        for (auth, kind) in [
            ("bearer", CapabilityKind::Bearer),
            ("basic", CapabilityKind::Basic),
            ("api-key", CapabilityKind::ApiKey),
            (
                "oauth2\"\ntoken_url = \"https://id.example/t",
                CapabilityKind::Basic,
            ),
        ] {
            let config = config(&format!("auth = \"{auth}\"\ncredential = \"key\""));
            let options = OpenApiOptions::from_config(&config, Some(one(kind))).expect("it fits");
            assert!(options.credential.is_some(), "{auth}");
            assert_eq!(options.tokens.is_some(), auth.starts_with("oauth2"));
            let other = OpenApiOptions::from_config(&config, Some(one(CapabilityKind::Signer)));
            assert!(matches!(other, Err(ImportError::Credential { .. })));
            let none = OpenApiOptions::from_config(&config, None);
            assert!(matches!(none, Err(ImportError::NoCredential(_))));
        }
    }

    #[test]
    fn documents_are_files_of_the_folder() {
        let outer = tempfile::tempdir().expect("a folder");
        let folder = outer.path().join("config");
        std::fs::create_dir_all(folder.join("sub")).expect("a folder");
        std::fs::write(folder.join("sub/a.yaml"), "openapi: 3.1.0").expect("a file");
        std::fs::write(outer.path().join("secret"), "hush").expect("a file");
        symlink("../secret", folder.join("out.yaml")).expect("a link");
        symlink("sub/a.yaml", folder.join("in.yaml")).expect("a link");
        symlink("/dev/zero", folder.join("zero.yaml")).expect("a link");
        for name in ["sub/a.yaml", "in.yaml"] {
            let read = read_document(&folder, name).expect(name);
            assert_eq!(read, "openapi: 3.1.0");
        }
        let long = vec![b' '; DOCUMENT_BYTES_MAX + 1];
        std::fs::write(folder.join("long.yaml"), long).expect("a file");
        let absolute = outer.path().join("secret");
        for name in [
            "",
            ".",
            "sub",
            "none.yaml",
            "../secret",
            "sub/../../secret",
            "out.yaml",
            "zero.yaml",
            "long.yaml",
            absolute.to_str().expect("text"),
        ] {
            let error = read_document(&folder, name).expect_err(name);
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
