//! Reads the few fields of a certificate that the certificate library does not show: its dates, the identifier of its
//! issuer's key, and whether it may issue certificates.

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Tag `[0]` of an AuthorityKeyIdentifier (RFC 5280 section 4.2.1.1).
const KEY_IDENTIFIER: u8 = 0x80;
/// `version` of a TBSCertificate (RFC 5280 section 4.1).
const VERSION: u8 = 0xa0;
/// `extensions` of a TBSCertificate.
const EXTENSIONS: u8 = 0xa3;

/// 2.5.29.19, BasicConstraints.
const OID_BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];
/// 2.5.29.35, AuthorityKeyIdentifier.
const OID_AUTHORITY_KEY: [u8; 3] = [0x55, 0x1d, 0x23];

/// Longest element that is read. A certificate has a few KiB.
const ELEMENT_BYTES_MAX: usize = 1 << 20;

/// The fields that [`facts`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFields<'a> {
    /// Start of validity in seconds of Unix time; dates before 1970 are 0.
    pub(crate) not_before: u64,
    /// End of validity.
    pub(crate) not_after: u64,
    /// Serial number, as its DER INTEGER holds it.
    pub(crate) serial: &'a [u8],
    /// Identifier of the issuer's key, if the certificate has one.
    pub(crate) authority_key: Option<&'a [u8]>,
    /// Whether it may issue certificates: `cA` of BasicConstraints (RFC 5280 section 4.2.1.9).
    pub(crate) is_authority: bool,
}

/// Reads an X.509 certificate; `None` for anything else.
pub(crate) fn facts(certificate: &[u8]) -> Option<CertificateFields<'_>> {
    let mut outer = DerReader(DerReader(certificate).take(SEQUENCE)?);
    let mut tbs = DerReader(outer.take(SEQUENCE)?);
    // Version 1 is the default, which DER leaves out (RFC 5280 section 4.1).
    if tbs.tag() == Some(VERSION) {
        tbs.take(VERSION)?;
    }
    let serial = tbs.take(INTEGER)?;
    let _signature = tbs.take(SEQUENCE)?;
    let _issuer = tbs.take(SEQUENCE)?;
    let mut validity = DerReader(tbs.take(SEQUENCE)?);
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let (mut authority_key, mut is_authority) = (None, false);
    while let Some((tag, content)) = tbs.next() {
        if tag == EXTENSIONS {
            authority_key = authority_key_of(content);
            // Without BasicConstraints the certificate may issue none (RFC 5280 section 4.2.1.9).
            is_authority = authority_flag(content).unwrap_or(false);
        }
    }
    Some(CertificateFields {
        not_before,
        not_after,
        serial,
        authority_key,
        is_authority,
    })
}

fn authority_key_of(extensions: &[u8]) -> Option<&[u8]> {
    let value = extension(extensions, OID_AUTHORITY_KEY)?;
    DerReader(DerReader(value).take(SEQUENCE)?).take(KEY_IDENTIFIER)
}

/// An absent flag is false, as its DEFAULT says.
fn authority_flag(extensions: &[u8]) -> Option<bool> {
    let value = extension(extensions, OID_BASIC_CONSTRAINTS)?;
    let flag = DerReader(DerReader(value).take(SEQUENCE)?).take(BOOLEAN)?;
    Some(flag.first().is_some_and(|byte| *byte != 0))
}

/// The value of one extension.
fn extension(extensions: &[u8], oid: [u8; 3]) -> Option<&[u8]> {
    let mut list = DerReader(DerReader(extensions).take(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = list.next() {
        let mut extension = DerReader(extension);
        if extension.take(OBJECT_IDENTIFIER)? != oid {
            continue;
        }
        // A BOOLEAN for "critical" may stand before the value.
        while let Some((tag, content)) = extension.next() {
            if tag == OCTET_STRING {
                return Some(content);
            }
        }
    }
    None
}

/// Reads elements one after the other.
struct DerReader<'a>(&'a [u8]);

impl<'a> DerReader<'a> {
    fn tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            // Zero bytes would be the indefinite length, which DER does not have (X.690 section 10.1).
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            rest = after;
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        // A damaged length must not make the reader take more than a certificate can have.
        if length > ELEMENT_BYTES_MAX {
            return None;
        }
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which must have `tag`.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .and_then(|(found, content)| (found == tag).then_some(content))
    }

    fn time(&mut self) -> Option<u64> {
        let (tag, text) = self.next()?;
        // Certificates have no other time zone (RFC 5280 sections 4.1.2.5.1 and 4.1.2.5.2).
        let digits = text.strip_suffix(b"Z")?;
        let (year, rest) = match tag {
            // Two digits: 1950 to 2049 (RFC 5280 section 4.1.2.5.1).
            UTC_TIME => {
                let (year, rest) = number(digits, 2)?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => number(digits, 4)?,
            _ => return None,
        };
        let (month, rest) = number(rest, 2)?;
        let (day, rest) = number(rest, 2)?;
        let (hour, rest) = number(rest, 2)?;
        let (minute, rest) = number(rest, 2)?;
        let (second, rest) = number(rest, 2)?;
        let sane = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            // 60 is a leap second.
            && second < 61
            && rest.is_empty();
        let days = days_from_civil(year, month, day);
        let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
        sane.then_some(u64::try_from(seconds).unwrap_or(0))
    }
}

fn number(text: &[u8], digits: usize) -> Option<(i64, &[u8])> {
    let (text, rest) = text.split_at_checked(digits)?;
    let digit = |sum: i64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        Some(sum * 10 + digit)
    };
    Some((text.iter().try_fold(0, digit)?, rest))
}

/// Days since 1970-01-01 of a date in the Gregorian calendar. Years are counted from March, so that the leap day is
/// the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    const DAYS_TO_1970: i64 = 719_468;
    year * 365 + leap_days + day_of_year - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["example.org".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(vec![0x12, 0x34].into());
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (date, days) in [
            ((1970, 1, 1), 0),
            ((1970, 12, 31), 364),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2024, 12, 31), 20_088),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days_from_civil(date.0, date.1, date.2), days, "{date:?}");
        }
    }

    #[test]
    fn dates_serial_and_issuer_are_read() {
        let der = certificate((1975, 1, 1), (4096, 1, 1));
        let facts = facts(&der).expect("a certificate");
        assert_eq!(facts.not_before, 157_766_400);
        assert_eq!(facts.not_after, 67_090_118_400);
        assert_eq!(facts.serial, [0x12, 0x34]);
        assert_eq!(facts.authority_key.map(<[u8]>::len), Some(20));
        assert!(!facts.is_authority);
        let der = certificate((1960, 1, 1), (2049, 12, 31));
        let facts = super::facts(&der).expect("a certificate");
        assert_eq!(facts.not_before, 0);
        assert_eq!(facts.not_after, 2_524_521_600);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = facts(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0usize..2000, to in any::<u8>(), cut in 0usize..2000) {
            let mut der = certificate((2020, 1, 1), (2030, 1, 1));
            let at = at % der.len();
            der[at] = to;
            let _ = facts(&der);
            der.truncate(cut);
            let _ = facts(&der);
        }
    }
}
