//! Whether an EFI program has a signature by the key of one certificate.

use std::iter;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

use super::der::{
    self, CONTEXT_0, NULL, OCTET_STRING, SEQUENCE, SET, algorithm, element, integer, object,
};
use super::program::{ALIGNMENT, EfiProgram};
use super::signer::{ECDSA_SHA_256, RSA, certificate_der, issuer_and_serial};
use super::{
    AuthenticodeError, CONTENT_TYPE, INDIRECT_DATA, MESSAGE_DIGEST, SHA_256, SIGNED_DATA, sha256,
};

/// `1.2.840.10045.2.1` and `1.2.840.10045.3.1.7`: a key on a curve, and the curve P-256.
const EC_KEY: &[u64] = &[1, 2, 840, 10_045, 2, 1];
const P_256: &[u64] = &[1, 2, 840, 10_045, 3, 1, 7];
/// `1.2.840.113549.1.1.11`: RSA with SHA-256, which some programs write in the place of RSA.
const RSA_SHA_256: &[u64] = &[1, 2, 840, 113_549, 1, 1, 11];
const BIT_STRING: u8 = 0x03;
/// `[1]`: attributes that are not signed, such as the time of another signer.
const CONTEXT_1: u8 = CONTEXT_0 + 1;
/// Names of attributes that are not signed: `1.2.840.113549.1.9.6`, the signature of another signer, such as one who
/// says the time; `1.3.6.1.4.1.311.3.3.1`, a time stamp (RFC 3161); and `1.3.6.1.4.1.311.2.4.1`, another signature.
const UNSIGNED_ATTRIBUTES: [&[u64]; 3] = [
    &[1, 2, 840, 113_549, 1, 9, 6],
    &[1, 3, 6, 1, 4, 1, 311, 3, 3, 1],
    &[1, 3, 6, 1, 4, 1, 311, 2, 4, 1],
];
/// Where firmware expects the name of the digest. This takes each length before it to have two bytes, so no signature
/// may be longer than 64 KiB.
const DIGEST_NAME_AT: usize = 30;
/// Sequences of a certificate before its key: algorithm, issuer, validity and subject (RFC 5280 section 4.1).
const SEQUENCES_BEFORE_KEY: usize = 4;

/// A certificate in the list of a firmware (db), with a key that firmware accepts.
pub struct EfiCertificate {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
    der: Vec<u8>,
    /// As a signature names its certificate.
    issuer_and_serial: Vec<u8>,
    /// The algorithms that a signature by the key may name.
    signature_algorithms: Vec<Vec<u8>>,
}

/// The parts of a signature that its check needs.
struct SignatureParts<'a> {
    /// What is signed, without its own tag.
    content: &'a [u8],
    /// SHA-256 of the program, according to `content`.
    hash: &'a [u8],
    certificates: &'a [u8],
    issuer_and_serial: &'a [u8],
    attributes: &'a [u8],
    algorithm: &'a [u8],
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
        let whole = der::next(&mut rest)?.whole;
        let (issuer, serial) = issuer_and_serial(whole)?;
        let mut rest = whole;
        let mut certificate = take(&mut rest, SEQUENCE)?;
        let mut body = take(&mut certificate, SEQUENCE)?;
        let mut sequences =
            iter::from_fn(|| der::next(&mut body)).filter(|part| part.tag == SEQUENCE);
        let mut key = sequences.nth(SEQUENCES_BEFORE_KEY)?.content;
        let mut kind = take(&mut key, SEQUENCE)?;
        let name = der::next(&mut kind)?.whole;
        let (verification, algorithms): (&'static dyn VerificationAlgorithm, _) =
            if name == object(RSA) {
                let algorithms = [RSA, RSA_SHA_256].map(|it| algorithm(it, NULL)).to_vec();
                (&RSA_PKCS1_2048_8192_SHA256, algorithms)
            } else if name == object(EC_KEY) && kind == object(P_256) {
                // Without a parameter (RFC 5758 section 3.2).
                (&ECDSA_P256_SHA256_ASN1, vec![algorithm(ECDSA_SHA_256, &[])])
            } else {
                return None;
            };
        // The first byte is the number of bits that the last one lacks.
        let key = take(&mut key, BIT_STRING)?.strip_prefix(&[0])?.to_vec();
        Some(Self {
            algorithm: verification,
            key,
            der: whole.to_vec(),
            issuer_and_serial: element(SEQUENCE, &[issuer, serial]),
            signature_algorithms: algorithms,
        })
    }

    /// Checks that the program is signed by the key of this certificate, and has no other signature. Firmware reads more
    /// of a signature than its key signs, and refuses it if that does not fit; so does this function.
    ///
    /// # Errors
    /// The program has no such signature or another one beside it, or is no EFI program.
    pub fn verify(&self, program: &[u8]) -> Result<(), AuthenticodeError> {
        let (program, signatures) = EfiProgram::split(program)?;
        let hash = program.hash();
        let holds = |signature: &[u8]| {
            let parts = SignatureParts::parse(signature);
            parts.is_some_and(|parts| {
                parts.hash == hash && self.is_named(&parts) && self.signed(&parts)
            })
        };
        match signatures.iter().filter(|it| holds(it)).count() {
            0 => Err(AuthenticodeError::OtherSignature),
            some if some < signatures.len() => Err(AuthenticodeError::ForeignSignature),
            _ => Ok(()),
        }
    }

    /// Whether the signature names this certificate and an algorithm of its key, and has the certificate with it. No key
    /// signs these fields, and firmware finds the certificate by them. Firmware reads all of another certificate, too,
    /// and refuses the signature if it cannot, so there may be none.
    fn is_named(&self, parts: &SignatureParts<'_>) -> bool {
        parts.certificates == self.der
            && parts.issuer_and_serial == self.issuer_and_serial
            && self
                .signature_algorithms
                .iter()
                .any(|it| it == parts.algorithm)
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
    /// The parts of signed data of PKCS #7 (RFC 2315 section 9.1). Authenticode has version 1, SHA-256 alone, and one
    /// signer in it.
    fn parse(signature: &'a [u8]) -> Option<Self> {
        let mut rest = signature;
        let mut outer = take(&mut rest, SEQUENCE)?;
        let mut explicit = explicit_content(&mut outer, SIGNED_DATA)?;
        let mut data = take(&mut explicit, SEQUENCE)?;
        take_one_of(&mut data, &[integer(1)])?;
        let mut digests = take(&mut data, SET)?;
        take_one_of(&mut digests, &digest_names())?;
        let mut inner = take(&mut data, SEQUENCE)?;
        let mut explicit_inner = explicit_content(&mut inner, INDIRECT_DATA)?;
        let content = take(&mut explicit_inner, SEQUENCE)?;
        let certificates = take(&mut data, CONTEXT_0)?;
        let mut signers = take(&mut data, SET)?;
        let mut signer = take(&mut signers, SEQUENCE)?;
        take_one_of(&mut signer, &[integer(1)])?;
        let issuer_and_serial = der::next(&mut signer)?.whole;
        take_one_of(&mut signer, &digest_names())?;
        let parts = Self {
            content,
            hash: program_hash(content)?,
            certificates,
            issuer_and_serial,
            attributes: take(&mut signer, CONTEXT_0)?,
            algorithm: der::next(&mut signer)?.whole,
            signature: take(&mut signer, OCTET_STRING)?,
        };
        if !signer.is_empty() {
            check_unsigned(take(&mut signer, CONTEXT_1)?)?;
        }
        let name = signature.get(DIGEST_NAME_AT..)?;
        let has_short_lengths = name.starts_with(&object(SHA_256));
        // The length of the entry may be that of the signature with its padding.
        let is_padding = rest.len() < ALIGNMENT && rest.iter().all(|byte| *byte == 0);
        let ends = [
            outer,
            explicit,
            data,
            digests,
            inner,
            explicit_inner,
            signers,
            signer,
        ];
        let is_whole = ends.iter().all(|end| end.is_empty());
        (is_whole && has_short_lengths && is_padding).then_some(parts)
    }
}

/// Checks that attributes which are not signed have a form that firmware reads: it parses them, but does not look into a
/// value that is a sequence. Each value of the known attributes is one.
fn check_unsigned(mut attributes: &[u8]) -> Option<()> {
    let names = UNSIGNED_ATTRIBUTES.map(object);
    while !attributes.is_empty() {
        let mut attribute = take(&mut attributes, SEQUENCE)?;
        take_one_of(&mut attribute, &names)?;
        let mut values = take(&mut attribute, SET)?;
        while !values.is_empty() {
            take(&mut values, SEQUENCE)?;
        }
        if !attribute.is_empty() {
            return None;
        }
    }
    Some(())
}

/// SHA-256 of a program, according to what is signed.
fn program_hash(mut content: &[u8]) -> Option<&[u8]> {
    take(&mut content, SEQUENCE)?;
    let mut digest = take(&mut content, SEQUENCE)?;
    take_one_of(&mut digest, &digest_names())?;
    take(&mut digest, OCTET_STRING)
}

/// The names of SHA-256: programs write it with a parameter and without one (RFC 5754 section 2).
fn digest_names() -> [Vec<u8>; 2] {
    [algorithm(SHA_256, NULL), algorithm(SHA_256, &[])]
}

/// Takes the next element, which must be one of these.
fn take_one_of(rest: &mut &[u8], allowed: &[Vec<u8>]) -> Option<()> {
    let part = der::next(rest)?.whole;
    allowed.iter().any(|it| it == part).then_some(())
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
