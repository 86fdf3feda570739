//! A TPM that answers too late while the machine starts, as that of a virtual machine on a busy
//! host may, or as an attacker on the wires can arrange.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use alknet_qemu::Interposer;
use alknet_tests::TestBench;
use serde_json::{Value, json};

use crate::tpm::measured;

/// `TPM2_GetCapability`, and the one that queries the banks of PCRs. In a TPM's messages the
/// command's code is at byte 6, and its first parameter at byte 10.
const GET_CAPABILITY: [u8; 4] = [0, 0, 1, 0x7a];
const CAP_PCRS: [u8; 4] = [0, 0, 0, 5];

/// The kernel waits 0.75 s for that.
const LATE: Duration = Duration::from_secs(3);

/// The kernel's message about a command without an answer in time.
const GAVE_UP: &str = "tpm tpm0: Operation Timed out";

/// Delays one response: the first about the banks of PCRs, without which the kernel has no TPM, or
/// the first about anything else, after which it has one that it shares with no program.
#[derive(Debug)]
struct DelayedTpm {
    about_banks: bool,
    was_late: AtomicBool,
}

impl Interposer for DelayedTpm {
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let response = chip(command)?;
        let is_meant = command[6..].starts_with(&GET_CAPABILITY)
            && (command.get(10..14) == Some(&CAP_PCRS[..])) == self.about_banks;
        if is_meant && !self.was_late.swap(true, Ordering::Relaxed) {
            thread::sleep(LATE);
        }
        Ok(response)
    }
}

/// At the first start, when the vault gets its slots. Without the TPM a thief could open it.
#[test]
fn a_tpm_that_answers_too_late_gets_the_vault_all_the_same() {
    for about_banks in [false, true] {
        let bench = TestBench::new();
        let late = Arc::new(DelayedTpm {
            about_banks,
            was_late: AtomicBool::new(false),
        });
        let between = Arc::clone(&late);
        let machine = measured(&bench, "own").after_firmware();
        let node = machine.with(|vm| vm.interposer(between)).boot();
        assert!(
            node.vm().console().text().contains(GAVE_UP),
            "{about_banks}"
        );
        let status = node.call("vault/status", &Value::Null);
        assert_eq!(status["slots"], json!(["tpm2"]), "{status:#}");
        assert_eq!(status["sealed"], true, "{status:#}");
        node.end();
    }
}
