//! Certificates of authorities, which are checked before the node trusts what they sign.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::der;

/// The content of a PEM text of authorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthoritySummary {
    /// Number of its certificates.
    pub certificates: usize,
    /// The earliest end of a validity in it, in seconds of Unix time.
    pub not_after: u64,
}

/// Why a text cannot be used as authorities.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The certificate is no X.509, or of a kind that the verifier does not take.
    #[error("certificate {number} cannot be used: {reason}; export it again as PEM")]
    Certificate {
        /// Number of the certificate, from 1.
        number: usize,
        /// Reason, for a person.
        reason: String,
    },
    /// The text has a private key, which no verifier needs.
    #[error("there is a private key beside the certificates; leave it out, and keep it secret")]
    Key,
    /// The text has no certificate.
    #[error("there is no certificate; give PEM text with BEGIN CERTIFICATE")]
    NoCertificate,
    /// The certificate cannot have signed that of a server.
    #[error(
        "certificate {number} is no certificate of an authority: its basicConstraints do not say CA; give the \
         authority's own certificate, not the server's"
    )]
    NotAuthority {
        /// Number of the certificate, from 1.
        number: usize,
    },
    /// The text is no PEM.
    #[error("the text is damaged: {0}; export it again as PEM")]
    Pem(String),
}

/// Reads certificates of authorities as PEM text.
///
/// # Errors
/// One of them is damaged or is no certificate of an authority, the text has no certificate, or it has a private key.
pub fn authorities_from_pem(pem: &[u8]) -> Result<AuthoritySummary, AuthorityError> {
    // A private key here is a mistake of the administrator, who must learn of it before the text is used.
    if PrivateKeyDer::pem_slice_iter(pem).next().is_some() {
        return Err(AuthorityError::Key);
    }
    let mut roots = RootCertStore::empty();
    let mut ends = Vec::new();
    for (n, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let number = n + 1;
        let certificate = certificate.map_err(|error| AuthorityError::Pem(error.to_string()))?;
        let unusable = |reason: String| AuthorityError::Certificate { number, reason };
        let fields = der::facts(&certificate);
        let fields = fields.ok_or_else(|| unusable("it is no X.509".to_owned()))?;
        if !fields.is_authority {
            return Err(AuthorityError::NotAuthority { number });
        }
        ends.push(fields.not_after);
        // The store is dropped: adding to it only shows whether the verifier's library takes this certificate.
        let added = roots.add(certificate.clone());
        added.map_err(|error| unusable(error.to_string()))?;
    }
    let not_after = ends.iter().min().copied();
    Ok(AuthoritySummary {
        certificates: ends.len(),
        not_after: not_after.ok_or(AuthorityError::NoCertificate)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::tests::PairTestCa;

    #[test]
    fn authorities_are_counted_with_their_first_end() {
        let both = format!(
            "{}{}",
            PairTestCa::new("one").pem,
            PairTestCa::new("two").pem
        );
        let summary = authorities_from_pem(both.as_bytes()).expect("authorities");
        assert_eq!(summary.certificates, 2);
        assert_eq!(summary.not_after, 2_208_988_800);
    }

    #[test]
    fn what_is_no_authority_is_refused_by_its_number() {
        let authority = PairTestCa::new("ca");
        let (chain, key) = authority.issue(&["a.example"]);
        let refused = |text: &str| authorities_from_pem(text.as_bytes()).expect_err("refused");
        assert_eq!(refused(""), AuthorityError::NoCertificate);
        assert_eq!(refused("no certificate\n"), AuthorityError::NoCertificate);
        assert_eq!(refused(&chain), AuthorityError::NotAuthority { number: 1 });
        let with_key = format!("{}{key}", authority.pem);
        assert_eq!(refused(&with_key), AuthorityError::Key);
        let second = format!("{}{chain}", authority.pem);
        assert_eq!(refused(&second), AuthorityError::NotAuthority { number: 2 });
    }
}
