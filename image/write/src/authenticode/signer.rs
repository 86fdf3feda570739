//! The owner's key and certificate.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::AuthenticodeError;
use super::der::{self, CONTEXT_0, NULL, SEQUENCE, algorithm};

/// `1.2.840.113549.1.1.1`: RSA.
pub(super) const RSA: &[u64] = &[1, 2, 840, 113_549, 1, 1, 1];
/// `1.2.840.10045.4.3.2`: ECDSA with SHA-256.
pub(super) const ECDSA_SHA_256: &[u64] = &[1, 2, 840, 10_045, 4, 3, 2];

enum EfiKey {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
}

/// A key with its certificate: RSA of at least 2,048 bits, or ECDSA on P-256.
pub struct EfiSigner {
    key: EfiKey,
    certificate: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
}

impl EfiSigner {
    /// Reads a key and a certificate, both in PEM (RFC 7468).
    ///
    /// # Errors
    /// One of them has another form, or they do not belong together.
    pub fn from_pem(key: &str, certificate: &str) -> Result<Self, AuthenticodeError> {
        let key = EfiKey::from_pem(key)?;
        let certificate = certificate_der(certificate)?;
        let (issuer, serial) = issuer_and_serial(&certificate).ok_or(
            AuthenticodeError::Certificate("it is no certificate of X.509"),
        )?;
        let public = key.public();
        // The certificate has the key in exactly this form.
        if !certificate.windows(public.len()).any(|part| part == public) {
            return Err(AuthenticodeError::OtherKey);
        }
        Ok(Self {
            key,
            certificate,
            issuer,
            serial,
        })
    }

    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    pub(super) fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    pub(super) fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// The algorithm of the signature.
    pub(super) fn algorithm(&self) -> Vec<u8> {
        match self.key {
            EfiKey::Rsa(_) => algorithm(RSA, NULL),
            // Without a parameter (RFC 5758 section 3.2).
            EfiKey::Ecdsa(_) => algorithm(ECDSA_SHA_256, &[]),
        }
    }

    /// Signs a message by its SHA-256.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthenticodeError> {
        let random = SystemRandom::new();
        let failed = |_| AuthenticodeError::Key("it does not sign");
        match &self.key {
            EfiKey::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
            EfiKey::Ecdsa(key) => {
                let signature = key.sign(&random, message).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

impl std::fmt::Debug for EfiSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EfiSigner")
    }
}

impl EfiKey {
    fn from_pem(text: &str) -> Result<Self, AuthenticodeError> {
        let kinds = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
        let Some((kind, der)) = pem(text, &kinds) else {
            let why = match text.contains("ENCRYPTED") {
                true => "it is encrypted; 'openssl pkey -in FILE' shows it without its password",
                false => "it is no private key in PEM",
            };
            return Err(AuthenticodeError::Key(why));
        };
        let curve = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let rsa = |key: RsaKeyPair| Self::Rsa(Box::new(key));
        let read = match kind {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der).ok().map(rsa),
            "EC PRIVATE KEY" => EcdsaKeyPair::from_private_key_der(curve, &der)
                .ok()
                .map(Self::Ecdsa),
            _ => RsaKeyPair::from_pkcs8(&der)
                .ok()
                .map(rsa)
                .or_else(|| EcdsaKeyPair::from_pkcs8(curve, &der).ok().map(Self::Ecdsa)),
        };
        let why = "firmware takes RSA of 2,048 bits or more, or ECDSA on P-256";
        read.ok_or(AuthenticodeError::Key(why))
    }

    fn public(&self) -> &[u8] {
        match self {
            Self::Rsa(key) => key.public_key().as_ref(),
            Self::Ecdsa(key) => key.public_key().as_ref(),
        }
    }
}

/// The bytes of a certificate in PEM.
pub(super) fn certificate_der(text: &str) -> Result<Vec<u8>, AuthenticodeError> {
    let why = AuthenticodeError::Certificate("it is no certificate in PEM");
    let (_, bytes) = pem(text, &["CERTIFICATE"]).ok_or(why)?;
    Ok(bytes.to_vec())
}

/// The first block with one of these labels: the label, and the bytes.
fn pem<'k>(text: &str, labels: &[&'k str]) -> Option<(&'k str, Zeroizing<Vec<u8>>)> {
    let mut lines = text.lines().map(str::trim);
    let label = lines.find_map(|line| {
        let found = line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
        labels.iter().find(|label| **label == found)
    })?;
    let body = lines.take_while(|line| !line.starts_with("-----END "));
    // A key of OpenSSL's old form may have a head that says how it is encrypted.
    let body = Zeroizing::new(body.collect::<String>());
    Some((*label, Zeroizing::new(BASE64.decode(body.as_bytes()).ok()?)))
}

/// Issuer and serial number of a certificate (RFC 5280 section 4.1), with their tags.
pub(super) fn issuer_and_serial(certificate: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut rest = certificate;
    let mut certificate = der::next(&mut rest)?.content;
    let mut body = der::next(&mut certificate)?.content;
    let mut serial = der::next(&mut body)?;
    // The version comes first, and only certificates of version 1 have none.
    if serial.tag == CONTEXT_0 {
        serial = der::next(&mut body)?;
    }
    let signature = der::next(&mut body)?;
    let issuer = der::next(&mut body)?;
    let is_right = serial.tag == 0x02 && signature.tag == SEQUENCE && issuer.tag == SEQUENCE;
    is_right.then(|| (issuer.whole.to_vec(), serial.whole.to_vec()))
}
