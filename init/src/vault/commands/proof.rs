//! Decides who may see the words, or add what opens the vault.
//!
//! Being at the machine suffices if it suffices to read its disk, and for new words until the owner
//! confirmed them or was reminded before a restart. Otherwise a TPM or a drive would open the vault
//! for a thief of the machine, so the console asks for what only the owner has.
//!
//! The console asks for three words, always the same three of a vault, and PID 1 judges them
//! together. A word that is judged alone is found in 2048 tries, and a thief who knows some of the
//! words would ask until the console asks for those.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use alknet_vault::SecretStr;
use alknet_vault::slots::VaultId;

use super::{
    Attempt, CommandContext, CommandPrompt, CommandSession, NeedInput, has_typed, on_disk,
};
use crate::vault::positions;

/// File of the configuration's folder with the number of wrong tries in a row, in decimal. The
/// folder is encrypted, and root's.
const WRONG: &str = "words-wrong";

impl CommandSession {
    /// Asks for the passphrase, or else for three of the words, unless both would be a formality.
    /// The slots of the vault that opened decide which: an attacker who writes to the disk can list
    /// others there.
    pub(super) fn authorised(&mut self, place: &CommandContext<'_>) -> Attempt<()> {
        let listed = on_disk(place)?;
        let open = if listed.is_sealed() && has_typed(&listed) {
            self.opened_by_typing(place)?
        } else {
            self.opened(place)?
        };
        let (is_sealed, is_typed) = (open.alkv().is_sealed(), has_typed(open.alkv()));
        if !is_sealed {
            return Ok(());
        }
        if is_typed {
            return self.opened_by_typing(place).map(drop);
        }
        if place.vault.shows_words() || self.typed.proved_words {
            return Ok(());
        }
        self.has_words(place)
    }

    fn has_words(&mut self, place: &CommandContext<'_>) -> Attempt<()> {
        let open = self.opened(place)?;
        let (phrase, vault) = (open.entropy().phrase(), open.alkv().uuid());
        let positions = positions_of_vault(&phrase, vault);
        self.typed.words.extend(self.typed.word.take());
        if let Some(at) = positions.get(self.typed.words.len()) {
            return Err(NeedInput::wants(CommandPrompt::Word(*at)));
        }
        let typed = std::mem::take(&mut self.typed.words);
        if are_right(place, &phrase, &positions, &typed)? {
            self.typed.proved_words = true;
            return Ok(());
        }
        let first = positions.first().copied().unwrap_or(1);
        Err(NeedInput::Wants(
            CommandPrompt::Word(first),
            "these are not the words".to_owned(),
        ))
    }
}

/// Whether all typed words are those at `positions`. The disk has the try as a wrong one before the
/// result is known, so cutting the power saves a thief no wait.
fn are_right(
    place: &CommandContext<'_>,
    phrase: &SecretStr,
    positions: &[usize],
    typed: &[SecretStr],
) -> Attempt<bool> {
    let failed = |error: io::Error| {
        NeedInput::refused(format!(
            "tries of the words cannot be counted on the disk: {error}"
        ))
    };
    let folder = place.state_dir.join("config");
    let wrong = noted(&folder).map_err(failed)?;
    place.vault.recall_wrong(wrong);
    place.vault.wait_for_turn();
    note(&folder, wrong.saturating_add(1)).map_err(failed)?;
    let words: Vec<&str> = phrase.expose().split(' ').collect();
    let is_right = positions.len() == typed.len()
        && positions.iter().zip(typed).fold(true, |all, (at, word)| {
            // Each word is compared, whatever the result of the one before, so the time does not
            // tell which one is wrong.
            (words.get(at.saturating_sub(1)) == Some(&word.expose())) & all
        });
    if is_right {
        place.vault.was_right();
        note(&folder, 0).map_err(failed)?;
    } else {
        place.vault.guessed_wrong();
    }
    Ok(is_right)
}

/// Three positions among the words. The vault's identifier draws them, which is no secret.
fn positions_of_vault(phrase: &SecretStr, vault: VaultId) -> Vec<usize> {
    let text = vault.to_string();
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325, mixed);
    positions(phrase.expose().split(' ').count(), || {
        state = mixed(state, 0);
        state >> 32
    })
}

/// FNV-1a with one more byte.
fn mixed(state: u64, byte: u8) -> u64 {
    (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

fn noted(folder: &Path) -> io::Result<u32> {
    match fs::read(folder.join(WRONG)) {
        // Text that is no number counts as many tries.
        Ok(text) => Ok(String::from_utf8_lossy(&text)
            .trim()
            .parse()
            .unwrap_or(u32::MAX)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn note(folder: &Path, wrong: u32) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    alknet_durable::replace(&folder.join(WRONG), wrong.to_string().as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_vault_always_asks_for_the_same_three_words() {
        let phrase = SecretStr::from(&*["word"; 24].join(" "));
        let id = "27209049-2f6c-46bf-a462-c718ee429cc0";
        let other = "b6a1f3d0-97c4-4a3e-8d55-0f2e6c7b9a18";
        let [first, second, others] = [id, id, other].map(|vault| {
            let vault: VaultId = vault.parse().expect("an identifier");
            positions_of_vault(&phrase, vault)
        });
        assert_eq!(first, second);
        assert_ne!(first, others, "positions of every vault would be known");
        for positions in [first, others] {
            let different: BTreeSet<_> = positions.iter().collect();
            assert_eq!((positions.len(), different.len()), (3, 3), "{positions:?}");
            assert!(
                positions.iter().all(|at| (1..=24).contains(at)),
                "{positions:?}"
            );
        }
    }
}
