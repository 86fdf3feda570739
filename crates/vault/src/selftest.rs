//! The official test vectors within the program, so that every build can check that it computes
//! what other implementations compute.

mod suites;

use thiserror::Error;

/// One set of vectors that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    /// The name of the set.
    pub name: &'static str,
    /// The number of cases.
    pub cases: usize,
}

/// The first case that failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("self-test {suite}: case {case} failed; this build computes wrong keys")]
pub struct SelfTestFailure {
    /// The set.
    pub suite: &'static str,
    /// The line in the set, counted from 1 without comments.
    pub case: usize,
}

/// Runs every vector; returns the sets, or the first case that failed.
pub fn selftest() -> Result<Vec<Suite>, SelfTestFailure> {
    suites::ALL
        .iter()
        .map(|(name, text, check)| run(name, text, *check))
        .collect()
}

/// Checks the fields of one line; `None` means a failure or a field that does not parse.
type Check = fn(&[&str]) -> Option<()>;

fn run(suite: &'static str, text: &str, check: Check) -> Result<Suite, SelfTestFailure> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut cases = 0;
    for line in lines {
        cases += 1;
        let fields: Vec<_> = line.split(' ').collect();
        check(&fields).ok_or(SelfTestFailure { suite, case: cases })?;
    }
    Ok(Suite { name: suite, cases })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_passes() {
        let suites = selftest().expect("every vector passes");
        let counted: Vec<_> = suites
            .iter()
            .map(|suite| (suite.name, suite.cases))
            .collect();
        let secp256k1 = cfg!(feature = "secp256k1");
        let mut expected = vec![
            ("bip39", 24),
            ("slip10", 28),
            ("paths", 10),
            ("blob", 1),
            ("ed25519-rfc8032", 5),
            ("ed25519-wycheproof", 151),
            ("aes-gcm-nist", 375),
            ("aes-gcm-wycheproof", 66),
            ("hkdf-rfc5869", 3),
            ("argon2id-rfc9106", 1),
        ];
        if secp256k1 {
            expected.extend([("slip10-secp256k1", 12), ("bip32", 17)]);
        }
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_vector_that_differs_in_one_digit_fails() {
        // The lines of these end with words.
        let words = ["bip39", "ed25519-wycheproof"];
        let suites = suites::ALL
            .iter()
            .filter(|(name, ..)| !words.contains(name));
        for (name, text, check) in suites {
            let mut lines = text.lines().filter(|line| !line.starts_with('#'));
            let line = lines.find(|line| line.ends_with(|c: char| c.is_ascii_hexdigit()));
            let line = line.expect(name);
            let (rest, digit) = line.split_at(line.len() - 1);
            let bad = format!("{rest}{}", if digit == "0" { "1" } else { "0" });
            let failed = run(name, &bad, *check).expect_err(name);
            assert_eq!(
                failed,
                SelfTestFailure {
                    suite: name,
                    case: 1
                }
            );
        }
    }
}
