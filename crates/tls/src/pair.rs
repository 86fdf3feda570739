//! A certificate chain with its key, which are checked before a client gets them.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use zeroize::Zeroizing;

use crate::der;

/// Longest file that is read, in bytes. A chain of ten certificates has 20 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Permission bits that a key file may have: those of its owner, and reading by its group.
const KEY_MODE_MAX: u32 = 0o640;

/// Most names of one certificate that are read.
const NAMES_MAX: usize = 256;

/// The files of a chain and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those of its issuers.
    pub chain: PathBuf,
    /// PEM: the key in PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// A chain, and the key of its first certificate.
#[derive(Clone)]
pub struct CertificatePair {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: u64,
    not_after: u64,
}

impl CertificatePair {
    /// Reads both files.
    ///
    /// # Errors
    /// A file cannot be read, other users can read the key, or the key is not that of the chain.
    pub fn load(files: &CertificateFiles) -> Result<Self, PairError> {
        let chain = read(&files.chain, None)?;
        let key = read(&files.key, Some(KEY_MODE_MAX))?;
        Self::from_pem(&chain, &key)
    }

    /// Reads both from PEM texts.
    ///
    /// # Errors
    /// One of them is damaged, or the key is not that of the chain.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| PairError::Pem(error.to_string()))?;
        if chain.is_empty() {
            return Err(PairError::NoCertificate);
        }
        let mut keys = PrivateKeyDer::pem_slice_iter(key);
        let key = match keys.next() {
            // The parser's own text could quote a part of the key.
            Some(key) => key.map_err(|_| PairError::DamagedKey)?,
            None => return Err(PairError::NoKey),
        };
        // The first of several keys may be the wrong one.
        if keys.next().is_some() {
            return Err(PairError::SeveralKeys);
        }
        Self::new(chain, key)
    }

    /// Joins a chain and a key.
    ///
    /// # Errors
    /// The key is not that of the chain.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, PairError> {
        linked(&chain)?;
        let first = chain.first().ok_or(PairError::NoCertificate)?;
        let facts = der::facts(first).ok_or(PairError::Certificate { number: 1 })?;
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        let names = names(first)?;
        let provider = crate::provider();
        let private = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| PairError::KeyKind)?;
        let key = CertifiedKey::new(chain, private);
        // The key is tried with the certificate: a wrong pair would fail only in the handshakes of clients.
        key.keys_match().map_err(|_| PairError::KeyMismatch)?;
        Ok(Self {
            key: Arc::new(key),
            names,
            not_before,
            not_after,
        })
    }

    /// The DNS names for which it is valid, in lower case; `*.` stands for one label.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Start of validity in seconds of Unix time.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// End of validity in seconds of Unix time.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Checks whether a client that trusts the end of the chain would accept it for `names` at `now`.
    ///
    /// # Errors
    /// The client would not; the text says why.
    pub fn validate(&self, names: &[String], now: u64) -> Result<(), PairError> {
        let refused = |error: webpki::Error| PairError::Invalid(error.to_string());
        let chain = &self.key.cert;
        let (first, issuers) = chain.split_first().ok_or(PairError::NoCertificate)?;
        // The last certificate counts as trusted: only clients know whether it leads to one of their roots.
        let last = issuers.last().ok_or(PairError::NoIssuer)?;
        let certificate = EndEntityCert::try_from(first).map_err(refused)?;
        let anchor = anchor_from_trusted_cert(last).map_err(refused)?;
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &[anchor],
                issuers,
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(refused)?;
        for name in names {
            // A wildcard is checked with a name that it covers.
            let concrete = name.replacen('*', "any", 1);
            let server = ServerName::try_from(concrete.as_str())
                .map_err(|_| PairError::MissingName(name.clone()))?;
            certificate
                .verify_is_valid_for_subject_name(&server)
                .map_err(|_| PairError::MissingName(name.clone()))?;
        }
        Ok(())
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl fmt::Debug for CertificatePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificatePair({})", self.names.join(", "))
    }
}

/// Why a chain and a key cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PairError {
    /// The certificate is no X.509.
    #[error("certificate {number} of the chain is no X.509 certificate; export it again as PEM")]
    Certificate {
        /// Number of the certificate, from 1.
        number: usize,
    },
    /// The certificates do not follow each other.
    #[error(
        "certificate {number} of the chain is not issued by the next; the order is the server's \
         certificate, then its issuer, then that one's issuer"
    )]
    ChainOrder {
        /// Number of the certificate, from 1.
        number: usize,
    },
    /// The key's PEM cannot be read.
    #[error("the key is damaged or encrypted; write it as PEM without a passphrase")]
    DamagedKey,
    /// A client would refuse it.
    #[error("clients would refuse the certificate: {0}")]
    Invalid(String),
    /// TLS 1.3 servers use no keys of this kind here.
    #[error("the key is of a kind that is not served; use ECDSA (P-256, P-384), Ed25519 or RSA")]
    KeyKind,
    /// The key belongs to another certificate.
    #[error("the key does not fit the certificate; give the key the certificate was made for")]
    KeyMismatch,
    /// The certificate does not cover a name.
    #[error("the certificate is not valid for {0}")]
    MissingName(String),
    /// Other users can read the key.
    #[error("{path} has mode {mode:04o} and may have 0640 at most; run 'chmod 600 {path}'")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The chain has no certificate.
    #[error("the chain holds no certificate; it needs PEM text with BEGIN CERTIFICATE")]
    NoCertificate,
    /// The chain has no certificate but the server's.
    #[error("the chain has no issuer's certificate; append it, or clients cannot verify")]
    NoIssuer,
    /// The text has no key.
    #[error("there is no key; it needs PEM text with BEGIN PRIVATE KEY")]
    NoKey,
    /// The certificate has no DNS name.
    #[error("the certificate names no DNS name in its subjectAltName; have it issued for one")]
    NoNames,
    /// The text is no PEM.
    #[error("the chain is damaged: {0}; export it again as PEM")]
    Pem(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// More than one key.
    #[error("there is more than one key; leave the one that fits the certificate")]
    SeveralKeys,
}

/// Checks that each certificate was issued by the one after it, the order in which RFC 8446 section 4.4.2 has them
/// sent.
fn linked(chain: &[CertificateDer<'_>]) -> Result<(), PairError> {
    let mut expected: Option<Vec<u8>> = None;
    for (n, der) in chain.iter().enumerate() {
        let certificate =
            EndEntityCert::try_from(der).map_err(|_| PairError::Certificate { number: n + 1 })?;
        // Many clients do not sort a chain.
        if expected.is_some_and(|issuer| issuer != certificate.subject()) {
            return Err(PairError::ChainOrder { number: n });
        }
        expected = Some(certificate.issuer().to_vec());
    }
    Ok(())
}

fn names(der: &CertificateDer<'_>) -> Result<Vec<String>, PairError> {
    let certificate =
        EndEntityCert::try_from(der).map_err(|_| PairError::Certificate { number: 1 })?;
    let names: Vec<String> = certificate
        .valid_dns_names()
        // Each name costs an entry in the table by which the server chooses a certificate.
        .take(NAMES_MAX)
        .map(str::to_ascii_lowercase)
        .collect();
    if names.is_empty() {
        return Err(PairError::NoNames);
    }
    Ok(names)
}

/// The content of `path`. A file with more permissions than `mode_max` is refused.
fn read(path: &Path, mode_max: Option<u32>) -> Result<Zeroizing<Vec<u8>>, PairError> {
    let fail = |source| PairError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    // The mode is that of the open file: its path could lead to another one by now.
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode_max.is_some_and(|max| mode & !max != 0) {
        return Err(PairError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    // The path may lead to a device that never ends.
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    /// A time at which the certificates made here are valid.
    pub(crate) const NOW: u64 = 1_767_225_600;

    pub(crate) struct PairTestCa {
        pub(crate) pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl PairTestCa {
        pub(crate) fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(vec![]).expect("no names");
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2040, 1, 1);
            let key = KeyPair::generate().expect("a key");
            let pem = params.self_signed(&key).expect("signed").pem();
            Self {
                pem,
                issuer: Issuer::new(params, key),
            }
        }

        /// A chain of two and the key.
        pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names).expect("names");
            params.not_before = date_time_ymd(2025, 1, 1);
            params.not_after = date_time_ymd(2035, 1, 1);
            let key = KeyPair::generate().expect("a key");
            let leaf = params.signed_by(&key, &self.issuer).expect("signed").pem();
            (format!("{leaf}{}", self.pem), key.serialize_pem())
        }

        pub(crate) fn pair(&self, names: &[&str]) -> CertificatePair {
            let (chain, key) = self.issue(names);
            CertificatePair::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
        }
    }

    #[test]
    fn a_good_pair_knows_its_names_and_dates() {
        let pair = PairTestCa::new("ca").pair(&["Example.org", "*.example.org"]);
        assert_eq!(pair.names(), ["example.org", "*.example.org"]);
        assert_eq!(pair.not_before(), 1_735_689_600);
        assert_eq!(pair.not_after(), 2_051_222_400);
        let names = ["example.org".to_owned(), "*.example.org".to_owned()];
        pair.validate(&names, NOW).expect("valid");
        assert!(matches!(
            pair.validate(&["other.org".to_owned()], NOW),
            Err(PairError::MissingName(name)) if name == "other.org"
        ));
        for time in [0, pair.not_after() + 1] {
            assert!(matches!(
                pair.validate(&names, time),
                Err(PairError::Invalid(_))
            ));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let authority = PairTestCa::new("ca");
        let (chain, key) = authority.issue(&["a.example"]);
        let (other_chain, other_key) = PairTestCa::new("other").issue(&["b.example"]);
        let check = |chain: &str, key: &str| {
            CertificatePair::from_pem(chain.as_bytes(), key.as_bytes()).expect_err("refused")
        };
        assert!(matches!(check(&chain, &other_key), PairError::KeyMismatch));
        assert!(matches!(check("", &key), PairError::NoCertificate));
        assert!(matches!(check(&key, &key), PairError::NoCertificate));
        assert!(matches!(check(&chain, ""), PairError::NoKey));
        assert!(matches!(check(&chain, &chain), PairError::NoKey));
        let two = format!("{key}{other_key}");
        assert!(matches!(check(&chain, &two), PairError::SeveralKeys));
        let mixed = format!("{chain}{other_chain}");
        assert!(matches!(
            check(&mixed, &key),
            PairError::ChainOrder { number: 2 }
        ));
        let nameless = PairTestCa::new("ca").issue(&[]);
        assert!(matches!(
            check(&nameless.0, &nameless.1),
            PairError::NoNames
        ));
        let cut = chain.replacen("-----END", "-----ENT", 1);
        assert!(matches!(
            check(&cut, &key),
            PairError::Pem(_) | PairError::NoCertificate | PairError::Certificate { .. }
        ));
        let leaf = chain.replace(&authority.pem, "");
        let pair = CertificatePair::from_pem(leaf.as_bytes(), key.as_bytes()).expect("one is fine");
        assert!(matches!(pair.validate(&[], NOW), Err(PairError::NoIssuer)));
    }

    /// Every form OpenSSL writes: PKCS#8, SEC1, PKCS#1.
    #[test]
    fn every_kind_of_key_file_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let openssl = |args: &[&str]| {
            let output = std::process::Command::new("openssl")
                .args(args)
                .current_dir(dir.path())
                .output()
                .expect("openssl is installed");
            assert!(output.status.success(), "{output:?}");
        };
        openssl(&[
            "ecparam",
            "-genkey",
            "-noout",
            "-name",
            "prime256v1",
            "-out",
            "sec1",
        ]);
        openssl(&["genrsa", "-traditional", "-out", "pkcs1", "2048"]);
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", "pkcs8"]);
        for kind in ["sec1", "pkcs1", "pkcs8"] {
            let chain = format!("{kind}.pem");
            openssl(&[
                "req",
                "-x509",
                "-key",
                kind,
                "-subj",
                "/CN=x",
                "-days",
                "9",
                "-addext",
                "subjectAltName=DNS:x.example",
                "-out",
                &chain,
            ]);
            let files = CertificateFiles {
                chain: dir.path().join(&chain),
                key: dir.path().join(kind),
            };
            let set = |mode| {
                let mode = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(&files.key, mode).expect("chmod");
            };
            for mode in [0o600, 0o640, 0o400] {
                set(mode);
                let pair = CertificatePair::load(&files).expect(kind);
                assert_eq!(pair.names(), ["x.example"]);
            }
            for bad in [0o644, 0o660, 0o641, 0o750] {
                set(bad);
                assert!(matches!(
                    CertificatePair::load(&files),
                    Err(PairError::Mode { mode, .. }) if mode == bad
                ));
            }
        }
        let none = CertificateFiles {
            chain: dir.path().join("none"),
            key: dir.path().join("sec1"),
        };
        assert!(matches!(
            CertificatePair::load(&none),
            Err(PairError::Read { .. })
        ));
    }
}
