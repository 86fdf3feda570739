//! A key in the form for other programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::CliRunner;

/// The bytes before the 32 bytes of an Ed25519 private key in PKCS#8 (RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The key of a [`CliRunner`] in files that OpenSSL wrote.
#[derive(Clone, Debug)]
pub struct PemKeyFiles {
    /// The private key.
    pub key: PathBuf,
    /// The public key.
    pub public: PathBuf,
    /// A self-signed certificate of it, followed by the private key.
    pub certificate: PathBuf,
}

impl PemKeyFiles {
    /// Writes the files beside the key of `cli`.
    ///
    /// # Panics
    /// OpenSSL is not installed, or does not support Ed25519 keys.
    pub fn from_cli(cli: &CliRunner) -> Self {
        cli.identity();
        let path = |name: &str| cli.state().join(name);
        let seed = std::fs::read(path("identity.key")).expect("`alknet identity` made it");
        let pem = Self {
            key: path("key.pem"),
            public: path("public.pem"),
            certificate: path("certificate.pem"),
        };
        let pkcs8 = [&PKCS8_PREFIX[..], &seed].concat();
        openssl("pkey -inform DER -out", &pem.key, &pkcs8);
        let key = std::fs::read(&pem.key).expect("OpenSSL wrote it");
        openssl("pkey -pubout -out", &pem.public, &key);
        let certify = "req -x509 -subj /CN=client -days 9 -key /dev/stdin -out";
        openssl(certify, &pem.certificate, &key);
        let mut certificate = std::fs::read(&pem.certificate).expect("OpenSSL wrote it");
        certificate.extend_from_slice(&key);
        std::fs::write(&pem.certificate, certificate).expect("the folder is ours");
        pem
    }
}

fn openssl(words: &str, out: &Path, input: &[u8]) {
    let mut child = Command::new("openssl")
        .args(words.split_whitespace())
        .arg(out)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed: it comes with the set-up");
    let mut stdin = child.stdin.take().expect("it was asked for above");
    stdin.write_all(input).expect("OpenSSL reads it");
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "openssl {words}: {output:?}");
}
