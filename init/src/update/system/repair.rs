//! The repair of the boot partition at a start.

use super::UpdateSystem;
use crate::update::partition_repair;

impl UpdateSystem {
    /// Repairs what a power cut left on the boot partition while a version was being staged: until the next one is
    /// staged, the disk would have less room than it says, and a check by another system would find errors.
    pub(crate) fn repair_partition(&self) {
        let Some(mut on) = self.open_to("the boot partition is not repaired") else {
            return;
        };
        let slot = on.running.other();
        let rules = Some(self.rules());
        if let Err(error) = partition_repair::repair(&mut on.disk, slot, rules, &self.log) {
            self.log
                .warn(format_args!("the boot partition is not repaired: {error}"));
        }
        self.foreign.forget();
    }
}
