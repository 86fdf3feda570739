//! Who may see the words, or add what opens the vault.
//!
//! Being at the machine is enough where that is enough to read its disk, and for new words until the owner
//! confirmed them or was reminded before a restart. Else a TPM or a drive would open the vault for a thief of the
//! machine: the console then asks for what only its owner has.

use alknet_vault::SecretStr;

use super::{Attempt, Halt, Place, Session, Want, has_passphrase, has_pin, on_disk};
use crate::vault::places;

impl Session {
    /// Asks for the passphrase, else for three of the words, where neither would be a formality.
    pub(super) fn authorised(&mut self, place: &Place<'_>) -> Attempt<()> {
        let alkv = on_disk(place)?;
        if !alkv.is_sealed() {
            return Ok(());
        }
        if has_passphrase(&alkv) || has_pin(&alkv) {
            return self.opened_by_typing(place).map(drop);
        }
        if place.keeper.shows_words() {
            return Ok(());
        }
        self.has_words(place)
    }

    fn has_words(&mut self, place: &Place<'_>) -> Attempt<()> {
        let phrase = self.opened(place)?.entropy().phrase();
        let mut left = match self.typed.places.take() {
            Some(left) => left,
            None => drawn(&phrase),
        };
        if let (Some(at), Some(word)) = (left.first(), self.typed.word.take()) {
            place.keeper.wait_for_turn();
            let wanted = phrase.expose().split(' ').nth(at.saturating_sub(1));
            if wanted != Some(word.expose()) {
                place.keeper.guessed_wrong();
                let again = drawn(&phrase);
                let want = Want::Word(again.first().copied().unwrap_or(1));
                self.typed.places = Some(again);
                return Err(Halt::Wants(want, "it is another word".to_owned()));
            }
            left.remove(0);
        }
        let next = left.first().copied();
        if next.is_none() {
            place.keeper.was_right();
        }
        self.typed.places = Some(left);
        next.map_or(Ok(()), |at| Err(Halt::wants(Want::Word(at))))
    }
}

/// Three places among the words.
fn drawn(phrase: &SecretStr) -> Vec<usize> {
    let mut bytes = [0; 8];
    places(phrase.expose().split(' ').count(), || {
        // Without randomness they are the same ones: whoever has the words has those as well.
        let _ = getrandom::fill(&mut bytes);
        u64::from_le_bytes(bytes)
    })
}
