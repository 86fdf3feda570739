//! The command about TPMs that have not counted and never will: gone with their board, or cleared.

use super::{Attempt, CommandContext, CommandSession, NeedInput};

impl CommandSession {
    /// Forgets those TPMs that the vault has no slot of. Only its owner knows that none of them
    /// returns with a copy of the disk.
    pub(super) fn tpm_forget(&mut self, place: &CommandContext<'_>) -> Attempt<Vec<String>> {
        self.authorised(place)?;
        let vault = self.opened(place)?.alkv().clone();
        let ledger = place.ledger();
        let owed = ledger.owed_without_slot(&vault);
        if owed.is_empty() {
            return Err(NeedInput::refused(
                "there is no TPM without a slot that has not counted; 'slot remove' removes a slot",
            ));
        }
        let mut lines = vec!["These TPMs, by their storage keys, have not counted:".to_owned()];
        lines.extend(owed);
        lines.push("Each of them still opens a copy of the disk from before.".to_owned());
        lines.push(
            "Forget them if they are destroyed or cleared, or if there is no such copy.".to_owned(),
        );
        self.confirmed(&lines, "FORGET")?;
        ledger.forget_owed(&vault).map_err(NeedInput::Refused)?;
        let text = "TPMs that have not counted, and of which the vault has no slot, are forgotten";
        place.log.warn(text);
        Ok(vec![text.to_owned()])
    }
}
