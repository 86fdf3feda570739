//! Whether an EFI program has a signature by the key of one certificate.

use std::iter;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

use super::der::{self, CONTEXT_0, INTEGER, OCTET_STRING, SEQUENCE, SET, element, object};
use super::program::EfiProgram;
use super::signer::{RSA, certificate_der};
use super::{
    AuthenticodeError, CONTENT_TYPE, INDIRECT_DATA, MESSAGE_DIGEST, SHA_256, SIGNED_DATA, sha256,
};

/// `1.2.840.10045.2.1` and `1.2.840.10045.3.1.7`: a key on a curve, and the curve P-256.
const EC_KEY: &[u64] = &[1, 2, 840, 10_045, 2, 1];
const P_256: &[u64] = &[1, 2, 840, 10_045, 3, 1, 7];
const BIT_STRING: u8 = 0x03;
/// Sequences of a certificate before its key: algorithm, issuer, validity and subject (RFC 5280 section 4.1).
const SEQUENCES_BEFORE_KEY: usize = 4;

/// A certificate in the list of a firmware (db), with a key that firmware accepts.
pub struct EfiCertificate {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
}

/// The parts of a signature that its check needs.
struct SignatureParts<'a> {
    /// What is signed, without its own tag.
    content: &'a [u8],
    /// SHA-256 of the program, according to `content`.
    hash: &'a [u8],
    attributes: &'a [u8],
    signature: &'a [u8],
}

impl EfiCertificate {
    /// Reads a certificate in PEM (RFC 7468).
    ///
    /// # Errors
    /// It has another form, or a key that firmware does not accept.
    pub fn from_pem(text: &str) -> Result<Self, AuthenticodeError> {
        let certificate = certificate_der(text)?;
        let why = "its key is neither RSA nor ECDSA on P-256";
        Self::parse(&certificate).ok_or(AuthenticodeError::Certificate(why))
    }

    fn parse(certificate: &[u8]) -> Option<Self> {
        let mut rest = certificate;
        let mut certificate = take(&mut rest, SEQUENCE)?;
        let mut body = take(&mut certificate, SEQUENCE)?;
        let mut sequences =
            iter::from_fn(|| der::next(&mut body)).filter(|part| part.tag == SEQUENCE);
        let mut key = sequences.nth(SEQUENCES_BEFORE_KEY)?.content;
        let mut kind = take(&mut key, SEQUENCE)?;
        let name = der::next(&mut kind)?.whole;
        let algorithm: &'static dyn VerificationAlgorithm = if name == object(RSA) {
            &RSA_PKCS1_2048_8192_SHA256
        } else if name == object(EC_KEY) && kind == object(P_256) {
            &ECDSA_P256_SHA256_ASN1
        } else {
            return None;
        };
        // The first byte is the number of bits that the last one lacks.
        let key = take(&mut key, BIT_STRING)?.strip_prefix(&[0])?.to_vec();
        Some(Self { algorithm, key })
    }

    /// Checks that one of the program's signatures is by the key of this certificate, and of these bytes.
    ///
    /// # Errors
    /// The program has no such signature, or is no EFI program.
    pub fn verify(&self, program: &[u8]) -> Result<(), AuthenticodeError> {
        let (program, signatures) = EfiProgram::split(program)?;
        let hash = program.hash();
        let holds = |signature: &Vec<u8>| {
            let parts = SignatureParts::parse(signature);
            parts.is_some_and(|parts| parts.hash == hash && self.signed(&parts))
        };
        match signatures.iter().any(holds) {
            true => Ok(()),
            false => Err(AuthenticodeError::OtherSignature),
        }
    }

    /// Whether this key signed the attributes, and these are about the content.
    fn signed(&self, parts: &SignatureParts<'_>) -> bool {
        let digest = element(OCTET_STRING, &[sha256(parts.content)]);
        let kind = object(INDIRECT_DATA);
        let is_about = attribute(parts.attributes, MESSAGE_DIGEST) == Some(&digest[..])
            && attribute(parts.attributes, CONTENT_TYPE) == Some(&kind[..]);
        // The signature is of the attributes as a set of their own (RFC 2315 section 9.3).
        let message = element(SET, &[parts.attributes.to_vec()]);
        let key = UnparsedPublicKey::new(self.algorithm, &self.key);
        is_about && key.verify(&message, parts.signature).is_ok()
    }
}

impl std::fmt::Debug for EfiCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EfiCertificate")
    }
}

impl<'a> SignatureParts<'a> {
    /// The parts of signed data of PKCS #7. Authenticode has one signer in it.
    fn parse(signature: &'a [u8]) -> Option<Self> {
        let mut rest = signature;
        let mut outer = take(&mut rest, SEQUENCE)?;
        let mut data = explicit_content(&mut outer, SIGNED_DATA)?;
        let mut data = take(&mut data, SEQUENCE)?;
        take(&mut data, INTEGER)?;
        take(&mut data, SET)?;
        let mut inner = take(&mut data, SEQUENCE)?;
        let mut inner = explicit_content(&mut inner, INDIRECT_DATA)?;
        let content = take(&mut inner, SEQUENCE)?;
        let mut described = content;
        take(&mut described, SEQUENCE)?;
        let mut digest = take(&mut described, SEQUENCE)?;
        let mut algorithm = take(&mut digest, SEQUENCE)?;
        if der::next(&mut algorithm)?.whole != object(SHA_256) {
            return None;
        }
        let hash = take(&mut digest, OCTET_STRING)?;
        // Certificates come before the signers.
        let mut signers = iter::from_fn(|| der::next(&mut data)).find(|part| part.tag == SET)?;
        let mut signer = take(&mut signers.content, SEQUENCE)?;
        take(&mut signer, INTEGER)?;
        // The issuer with the serial number, and the algorithm of the digest.
        take(&mut signer, SEQUENCE)?;
        take(&mut signer, SEQUENCE)?;
        let attributes = take(&mut signer, CONTEXT_0)?;
        take(&mut signer, SEQUENCE)?;
        Some(Self {
            content,
            hash,
            attributes,
            signature: take(&mut signer, OCTET_STRING)?,
        })
    }
}

/// The content of the next element, which must have this tag.
fn take<'a>(rest: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let part = der::next(rest)?;
    (part.tag == tag).then_some(part.content)
}

/// The content behind this name, in its `[0]`.
fn explicit_content<'a>(rest: &mut &'a [u8], name: &[u64]) -> Option<&'a [u8]> {
    let found = der::next(rest)?.whole;
    if found != object(name) {
        return None;
    }
    take(rest, CONTEXT_0)
}

/// The value of the first attribute of this name, with its tag.
fn attribute<'a>(mut attributes: &'a [u8], name: &[u64]) -> Option<&'a [u8]> {
    let wanted = object(name);
    while let Some(mut attribute) = take(&mut attributes, SEQUENCE) {
        if der::next(&mut attribute)?.whole == wanted {
            return take(&mut attribute, SET);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(SignatureParts::parse(&bytes).is_none());
            prop_assert!(EfiCertificate::parse(&bytes).is_none());
        }
    }
}
