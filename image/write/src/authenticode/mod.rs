//! Signatures of EFI programs, made and checked. Firmware with Secure Boot checks them, too (Microsoft's Authenticode for
//! PE files, version 1.0; PKCS #7, RFC 2315).
//!
//! The signature has no time, so with an RSA key the same program always has the same bytes.

mod certificate;
mod der;
mod program;
mod signer;

use thiserror::Error;

pub use certificate::EfiCertificate;
pub use signer::EfiSigner;

use der::{
    CONTEXT_0, IA5_IN_CONTEXT_0, NULL, OCTET_STRING, SEQUENCE, SET, algorithm, element, integer,
    object,
};
use program::EfiProgram;

/// `1.2.840.113549.1.7.2`: signed data of PKCS #7.
const SIGNED_DATA: &[u64] = &[1, 2, 840, 113_549, 1, 7, 2];
/// `1.2.840.113549.1.9.3` and `.4`: attributes of a signature.
const CONTENT_TYPE: &[u64] = &[1, 2, 840, 113_549, 1, 9, 3];
const MESSAGE_DIGEST: &[u64] = &[1, 2, 840, 113_549, 1, 9, 4];
/// `1.3.6.1.4.1.311.2.1.4`: what Authenticode signs.
const INDIRECT_DATA: &[u64] = &[1, 3, 6, 1, 4, 1, 311, 2, 1, 4];
/// `1.3.6.1.4.1.311.2.1.15`: it is a PE file.
const PE_IMAGE_DATA: &[u64] = &[1, 3, 6, 1, 4, 1, 311, 2, 1, 15];
/// `2.16.840.1.101.3.4.2.1`.
const SHA_256: &[u64] = &[2, 16, 840, 1, 101, 3, 4, 2, 1];
/// The text that Authenticode demands in the place of a file's name.
const NO_FILE: &str = "<<<Obsolete>>>";

/// Why an EFI program was not signed, or its signature does not hold.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthenticodeError {
    /// The program has another form.
    #[error("it is no EFI program that can be signed: {0}")]
    Program(&'static str),
    /// The program is signed already.
    #[error("it has a signature already; 'sbattach --remove' takes it away")]
    Signed,
    /// The program is not signed.
    #[error("it has no signature")]
    Unsigned,
    /// Another key signed the program, the program has changed since, or the signature is not one that firmware accepts.
    #[error(
        "none of its signatures is by the key of this certificate and of these bytes, in the form that firmware accepts"
    )]
    OtherSignature,
    /// A signature by the key has another one beside it, by which firmware may refuse the program: it looks each of them
    /// up in its list of forbidden certificates (dbx), and one that it cannot read counts as forbidden.
    #[error(
        "beside the signature by the key of this certificate it has another one, for which firmware may refuse it; \
         'sbattach --remove' takes one away"
    )]
    ForeignSignature,
    /// The certificate has another form.
    #[error("the certificate cannot be used: {0}")]
    Certificate(&'static str),
    /// The key has another form.
    #[error("the key cannot be used: {0}")]
    Key(&'static str),
    /// The key belongs to another certificate.
    #[error("the certificate is not of this key")]
    OtherKey,
}

/// Signs an EFI program, and returns it with its signature.
///
/// # Errors
/// It is no EFI program, or has a signature already.
pub fn sign(program: &[u8], signer: &EfiSigner) -> Result<Vec<u8>, AuthenticodeError> {
    let program = EfiProgram::parse(program)?;
    let content = indirect_data(&program.hash());
    let signature = signed_data(&content, signer)?;
    Ok(program.with_signature(&signature))
}

/// The content of what is signed, without its own tag: that is what the digest is of.
fn indirect_data(hash: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = NO_FILE.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let name = element(CONTEXT_0 + 2, &[element(IA5_IN_CONTEXT_0, &[text])]);
    let file = element(CONTEXT_0, &[name]);
    // No flags: an empty bit string.
    let flags = vec![0x03, 0x01, 0x00];
    let image = element(SEQUENCE, &[flags, file]);
    let data = element(SEQUENCE, &[object(PE_IMAGE_DATA), image]);
    let digest = element(
        SEQUENCE,
        &[
            algorithm(SHA_256, NULL),
            element(OCTET_STRING, &[hash.to_vec()]),
        ],
    );
    [data, digest].concat()
}

fn signed_data(content: &[u8], signer: &EfiSigner) -> Result<Vec<u8>, AuthenticodeError> {
    let digest = sha256(content);
    let attribute =
        |kind: &[u64], value: Vec<u8>| element(SEQUENCE, &[object(kind), element(SET, &[value])]);
    // In the order of their encodings, as DER demands of a set.
    let attributes = [
        attribute(CONTENT_TYPE, object(INDIRECT_DATA)),
        attribute(MESSAGE_DIGEST, element(OCTET_STRING, &[digest])),
    ];
    // The signature is of the attributes as a set of their own (RFC 2315 section 9.3).
    let signature = signer.sign(&element(SET, &attributes))?;
    let info = element(
        SEQUENCE,
        &[
            integer(1),
            element(
                SEQUENCE,
                &[signer.issuer().to_vec(), signer.serial().to_vec()],
            ),
            algorithm(SHA_256, NULL),
            element(CONTEXT_0, &attributes),
            signer.algorithm(),
            element(OCTET_STRING, &[signature]),
        ],
    );
    let inner = element(CONTEXT_0, &[element(SEQUENCE, &[content.to_vec()])]);
    let signed = element(
        SEQUENCE,
        &[
            integer(1),
            element(SET, &[algorithm(SHA_256, NULL)]),
            element(SEQUENCE, &[object(INDIRECT_DATA), inner]),
            element(CONTEXT_0, &[signer.certificate().to_vec()]),
            element(SET, &[info]),
        ],
    );
    let content = element(CONTEXT_0, &[signed]);
    Ok(element(SEQUENCE, &[object(SIGNED_DATA), content]))
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}
