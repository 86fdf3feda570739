//! The forms in which keys are presented: raw, or in a self-signed certificate.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SigningKey, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::error::TlsError;
use crate::key::NodeKey;
use crate::secret_file;

/// File of the key for browsers, in the state directory.
const BROWSER_KEY_FILE: &str = "browser.key";

/// The raw public key (RFC 7250): the "certificate" is its SubjectPublicKeyInfo.
pub(crate) fn raw(key: &NodeKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let spki = CertificateDer::from(key.spki().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![spki], key.signing_key()?)))
}

/// The node key in a self-signed certificate, which is the same to the byte each time.
pub(crate) fn wrapped(key: &NodeKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let pkcs8 = key.pkcs8();
    let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))?;
    let certificate = self_signed(&key.host_name(), &pair)?;
    Ok(Arc::new(CertifiedKey::new(
        vec![certificate],
        key.signing_key()?,
    )))
}

/// A self-signed P-256 certificate for browsers, which do not support Ed25519. The key is stored in `state_dir`, so
/// that an exception granted in a browser stays valid. Without a directory it lives as long as the process.
pub(crate) fn browser(
    key: &NodeKey,
    state_dir: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let pair = match state_dir {
        Some(dir) => stored_p256(&dir.join(BROWSER_KEY_FILE))?,
        None => new_p256()?,
    };
    let certificate = self_signed(&key.host_name(), &pair)?;
    let private = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
    let private = provider.key_provider.load_private_key(private)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], private)))
}

fn stored_p256(path: &Path) -> Result<KeyPair, TlsError> {
    if let Some(der) = secret_file::read(path)? {
        let der = PrivatePkcs8KeyDer::from(der.as_slice());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256);
        return pair.map_err(|error| TlsError::State {
            path: path.to_owned(),
            reason: error.to_string(),
        });
    }
    let pair = new_p256()?;
    secret_file::write(path, pair.serialized_der())?;
    Ok(pair)
}

fn new_p256() -> Result<KeyPair, TlsError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
}

/// Makes a certificate that is valid from before any clock to after any: the key is what counts, and a machine
/// without a sane clock must be reachable.
pub(crate) fn self_signed(
    name: &str,
    pair: &impl SigningKey,
) -> Result<CertificateDer<'static>, TlsError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1975, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    Ok(params.self_signed(pair)?.der().clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::PeerProof;

    #[test]
    fn raw_and_wrapped_are_one_identity() {
        let key = NodeKey::from_seed(&[5; 32]);
        for form in [raw(&key).expect("raw"), wrapped(&key).expect("wrapped")] {
            let proof = PeerProof::from_certificate(&form.cert[0]).expect("a key");
            assert_eq!(proof.key, key.public());
        }
        let (a, b) = (wrapped(&key).expect("one"), wrapped(&key).expect("two"));
        assert_eq!(a.cert, b.cert);
    }

    #[test]
    fn the_browser_key_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = NodeKey::from_seed(&[5; 32]);
        let make = || {
            let made = browser(&key, Some(dir.path()), &crate::provider()).expect("a key");
            PeerProof::from_certificate(&made.cert[0])
                .expect("a key")
                .key
        };
        assert_eq!(make(), make());
        let file = dir.path().join(BROWSER_KEY_FILE);
        secret_file::write(&file, b"no key").expect("ours");
        let damaged = browser(&key, Some(dir.path()), &crate::provider());
        let error = damaged.expect_err("no key").to_string();
        assert!(error.contains(BROWSER_KEY_FILE), "{error}");
        std::fs::remove_file(&file).expect("ours");
        let other = browser(&key, None, &crate::provider()).expect("a key");
        assert_ne!(
            PeerProof::from_certificate(&other.cert[0])
                .expect("a key")
                .key,
            make()
        );
    }
}
