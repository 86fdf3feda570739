//! The keys that sign releases, and the dates of their documents.

use std::path::PathBuf;
use std::str::FromStr;

use alknet_update::{MetadataSigner, SeedSigner, UnixSeconds};
use alknet_vault::KeyPurpose;
use alknet_vault_cli::{TerminalPrompt, VaultOpenArgs, WordsArgs, with_signer};
use clap::Args;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use zeroize::Zeroizing;

use super::read_own_text;
use crate::cli::CommandError;
use crate::cli::vault::of_local;

/// Longest file with a private key in bytes. One of Ed25519 has 120.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// What signs the documents of updates.
#[derive(Debug, Args)]
pub(super) struct ReleaseKeyArgs {
    /// A private Ed25519 key in PEM, from 'openssl genpkey -algorithm ed25519' or 'alknet vault key export image-signing';
    /// may be repeated. Without this option the image key of a vault signs.
    #[arg(
        long = "key",
        value_name = "FILE",
        conflicts_with_all = ["dir", "mnemonic", "mnemonic_stdin"]
    )]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    words: WordsArgs,
    #[command(flatten)]
    open: VaultOpenArgs,
}

impl ReleaseKeyArgs {
    /// Opens the keys, and lets `act` sign with them.
    pub(super) fn with_signers<T>(
        &self,
        act: impl FnOnce(&[&dyn MetadataSigner]) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        if self.keys.is_empty() {
            let purpose = KeyPurpose::ImageSigning;
            let mut ask = TerminalPrompt::new();
            let (words, open) = (&self.words, &self.open);
            let done = with_signer(purpose, words, open, &mut ask, |signer| act(&[signer]));
            return done.map_err(|error| of_local(&error))?;
        }
        let keys = self.keys.iter().map(|path| {
            let text = Zeroizing::new(read_own_text(path, KEY_BYTES_MAX)?);
            SeedSigner::from_pem(&text)
                .map_err(|error| CommandError::usage(format!("{}: {error}", path.display())))
        });
        let keys: Vec<SeedSigner> = keys.collect::<Result<_, _>>()?;
        let signers: Vec<_> = keys.iter().map(|key| key as &dyn MetadataSigner).collect();
        act(&signers)
    }
}

/// When a document expires: the beginning of a day, or a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExpiryTime(pub(super) UnixSeconds);

impl FromStr for ExpiryTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = match text.parse::<Date>() {
            // A time has a day, too.
            Ok(day) if !text.contains(['T', 't', ' ']) => {
                day.to_zoned(TimeZone::UTC).map(|day| day.timestamp())
            }
            _ => text.parse::<Timestamp>(),
        };
        let time = time.map_err(|_| {
            "write a day such as 2028-01-31, or a time such as 2028-01-31T12:00:00Z".to_owned()
        })?;
        Ok(Self(UnixSeconds(time.as_second())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_expires_at_the_beginning_of_a_day_or_at_a_time() {
        let parsed = |text: &str| text.parse::<ExpiryTime>().map(|time| time.0.0);
        assert_eq!(parsed("1970-01-02"), Ok(86_400));
        assert_eq!(parsed("1970-01-01T00:01:00Z"), Ok(60));
        for wrong in ["", "tomorrow", "2028-13-01", "1970-01-01T00:01:00"] {
            parsed(wrong).expect_err(wrong);
        }
    }
}
