//! The node's Ed25519 key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use alknet_core::PeerKey;
use aws_lc_rs::hkdf;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::BASE32_NOPAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use crate::error::TlsError;
use crate::secret_file;

/// DER of a PKCS#8 v1 Ed25519 key (RFC 8410 section 7) up to its 32 seed bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// An Ed25519 key pair: the identity of a node or of a person. It is never shown, and is wiped when dropped.
///
/// ```
/// use alknet_tls::{NodeKey, is_signed};
///
/// let key = NodeKey::from_seed(&[7; 32]);
/// let signature = key.sign(b"it is me");
/// assert!(is_signed(&key.public(), b"it is me", &signature));
/// assert!(!is_signed(&key.public(), b"it is you", &signature));
/// ```
#[derive(Clone)]
pub struct NodeKey {
    seed: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl NodeKey {
    /// Generates a key from the kernel's random bytes.
    ///
    /// # Errors
    /// The kernel gave no random bytes.
    pub fn generate() -> Result<Self, TlsError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(TlsError::Random)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed (RFC 8032 section 5.1.5).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are an Ed25519 seed");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self {
            seed: Zeroizing::new(*seed),
            public,
        }
    }

    /// Reads a key file: 32 bytes, mode 0600 at most. `None` if the file does not exist.
    ///
    /// # Errors
    /// The file cannot be read, other users can read it, or it holds no seed.
    pub fn load(path: &Path) -> Result<Option<Self>, TlsError> {
        let Some(bytes) = secret_file::read(path)? else {
            return Ok(None);
        };
        let seed = <&[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| TlsError::KeyLength {
            path: path.to_owned(),
            bytes: bytes.len(),
        })?;
        Ok(Some(Self::from_seed(seed)))
    }

    /// Reads a key file. If it does not exist, generates a key and writes it. Returns whether the key is new.
    ///
    /// # Errors
    /// The errors of [`load`](Self::load), or the file cannot be written.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), TlsError> {
        // A file that cannot be read is an error: a new key would give the node another identity.
        if let Some(key) = Self::load(path)? {
            return Ok((key, false));
        }
        let key = Self::generate()?;
        key.store(path)?;
        Ok((key, true))
    }

    /// Writes the key file: atomic, durable, mode 0600.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), TlsError> {
        secret_file::write(path, &*self.seed)
    }

    /// The public key, in the form of configuration and logs.
    #[must_use]
    pub fn public(&self) -> PeerKey {
        PeerKey::Ed25519(self.public)
    }

    /// The secret seed, for a library that signs with it.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// A secret of this key and `label` (HKDF-SHA-256), which is the same after every restart.
    #[must_use]
    pub fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"alknet node key").extract(&*self.seed);
        let mut out = Zeroizing::new([0; 32]);
        prk.expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *out))
            .expect("32 bytes are within what HKDF-SHA-256 gives");
        out
    }

    /// Signs a message (RFC 8032). The caller's message begins with its purpose, so that no signature can serve
    /// another.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*self.seed)
            .expect("every 32 bytes are an Ed25519 seed");
        let mut signature = [0; 64];
        signature.copy_from_slice(pair.sign(message).as_ref());
        signature
    }

    /// The name of this key for protocols that need a host name.
    #[must_use]
    pub fn host_name(&self) -> String {
        host_name(&self.public)
    }

    pub(crate) fn spki(&self) -> [u8; 44] {
        PeerKey::ed25519_spki(&self.public)
    }

    pub(crate) fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&PKCS8_PREFIX[..], &self.seed[..]].concat())
    }

    pub(crate) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, TlsError> {
        let pkcs8 = self.pkcs8();
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        Ok(rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der)?)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.public().short())
    }
}

/// Whether `key` made this signature of `message`. Only Ed25519 keys can.
#[must_use]
pub fn is_signed(key: &PeerKey, message: &[u8], signature: &[u8]) -> bool {
    let PeerKey::Ed25519(public) = key else {
        return false;
    };
    let key = UnparsedPublicKey::new(&ED25519, public);
    key.verify(message, signature).is_ok()
}

/// `<base32 of the key>.alknet.invalid`: it never resolves (RFC 6761), and differs for every key.
pub(crate) fn host_name(key: &[u8; 32]) -> String {
    format!(
        "{}.alknet.invalid",
        BASE32_NOPAD.encode(key).to_ascii_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.key");
        let (made, created) = NodeKey::load_or_create(&path).expect("create");
        let (loaded, again) = NodeKey::load_or_create(&path).expect("load");
        assert!(created && !again);
        assert_eq!(made.public(), loaded.public());
        let mode = fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn open_modes_and_wrong_sizes_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("node.key");
        for mode in [0o640, 0o604, 0o700, 0o644] {
            fs::write(&path, [1; 32]).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            assert!(matches!(
                NodeKey::load(&path),
                Err(TlsError::KeyMode { mode: m, .. }) if m == mode
            ));
        }
        for bytes in [0, 31, 33] {
            fs::write(&path, vec![1; bytes]).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
            assert!(matches!(
                NodeKey::load(&path),
                Err(TlsError::KeyLength { bytes: b, .. }) if b == bytes
            ));
        }
        let nowhere = dir.path().join("none/node.key");
        assert!(matches!(
            NodeKey::load_or_create(&nowhere),
            Err(TlsError::KeyWrite { .. })
        ));
    }

    #[test]
    fn rfc_8032_first_test_vector() {
        let hex = data_encoding::HEXLOWER;
        let seed = hex
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .expect("hex");
        let key = NodeKey::from_seed(seed.as_slice().try_into().expect("32 bytes"));
        assert_eq!(
            key.public().to_string(),
            "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn only_the_key_makes_its_signatures() {
        let (mine, other) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        let signature = mine.sign(b"a message");
        assert!(is_signed(&mine.public(), b"a message", &signature));
        assert!(!is_signed(&mine.public(), b"another", &signature));
        assert!(!is_signed(&other.public(), b"a message", &signature));
        assert!(!is_signed(&mine.public(), b"a message", &signature[..63]));
        assert!(!is_signed(
            &PeerKey::Spki([1; 32]),
            b"a message",
            &signature
        ));
    }

    #[test]
    fn derived_secrets_differ_by_label_and_key() {
        let (a, b) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        assert_eq!(a.derive("x"), a.derive("x"));
        assert_ne!(a.derive("x"), a.derive("y"));
        assert_ne!(a.derive("x"), b.derive("x"));
    }
}
