//! EFI programs, whose signatures are checked as `alknet image verify --efi-cert` checks them.

use alknet_image_write::authenticode::{AuthenticodeError, EfiCertificate};
use data_encoding::BASE64;

/// The certificate by whose key one program of the corpus is signed. Its key no longer exists.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBbjCCARWgAwIBAgIUH1N3xgHvOVxw7YBooAzSldxHqZIwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBYTAgFw0yNjExMjkwODQzMzdaGA8yMTI2MTEwNTA4NDMzN1ow
DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBlfWqyC4rBR
grZJGkn9qCG9qkFfdpWbuZzz0EiIxld78/FsoglrSIqzli10cmpoEaYG+L5oqoLi
aRI28uchx4ajUzBRMB0GA1UdDgQWBBSmVsm4wWhugVnxJvLkIyRoSLtoKzAfBgNV
HSMEGDAWgBSmVsm4wWhugVnxJvLkIyRoSLtoKzAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0cAMEQCIBU+KH1pr0yyjMhN2x6b0sVfRQvwZccHcmaiWdM8BR1y
AiB4jaBlqH3JPT0hD5Vl893Ti/8K0hcv5//vCtcx939ZIQ==
-----END CERTIFICATE-----
";
/// A byte of the DOS header that each signature covers and that no parser reads.
const COVERED_AT: usize = 2;

/// Checks the input as a program, and reads it as a certificate.
pub fn authenticode(data: &[u8]) -> bool {
    let certificate = EfiCertificate::from_pem(CERTIFICATE).expect("OpenSSL made it");
    let is_certificate = is_certificate(data);
    match certificate.verify(data) {
        Ok(()) => {
            assert_covered(&certificate, data);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            is_certificate
        }
    }
}

/// A program that counts as signed loses its signature with a changed byte, or with a byte behind it.
fn assert_covered(certificate: &EfiCertificate, program: &[u8]) {
    let mut changed = program.to_vec();
    changed[COVERED_AT] ^= 1;
    let refused = certificate.verify(&changed);
    assert!(
        matches!(refused, Err(AuthenticodeError::OtherSignature)),
        "{refused:?}"
    );
    let longer = [program, &[0]].concat();
    assert!(certificate.verify(&longer).is_err(), "a byte behind it");
}

/// Whether the bytes are a certificate, which then are no program.
fn is_certificate(der: &[u8]) -> bool {
    let body = BASE64.encode(der);
    let text = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    match EfiCertificate::from_pem(&text) {
        Ok(certificate) => {
            assert!(certificate.verify(der).is_err(), "it is a program, too");
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
