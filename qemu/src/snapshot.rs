//! A machine that is saved while it runs, and copies that go on where it stood.
//!
//! The guest's memory is a file. The machine that is saved shares it with the host, so that QEMU writes
//! nothing but its devices. A copy maps the file privately: the kernel reads a page when the guest first
//! touches it, keeps it once for all copies, and gives a copy one of its own when it writes. So a copy is
//! there after a tenth of a second, however much memory it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::accel::Accel;
use crate::disk;
use crate::error::{Error, Result};
use crate::machine::GuestMemory;
use crate::qmp::Qmp;
use crate::tpm::TpmChip;
use crate::vm::Vm;

/// The guest's memory, with holes where it is zero.
const MEMORY: &str = "memory";
/// What QEMU saved of everything else.
const DEVICES: &str = "devices";
/// What the machine had said, byte for byte.
const CONSOLE: &str = "console";

/// Where Linux has its own code on x86-64 (`Documentation/arch/x86/x86_64/mm.rst`).
const KERNEL_AT: u64 = 0xffff_ffff_8000_0000;
/// Pause between looks at where the processor is. The kernel takes a hundred times as long to come to its
/// devices.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long a guest surely waits for its TPM: Linux gives a self-test, which is what it asks first, two seconds
/// (`TPM2_DURATION_LONG`).
const ANSWERED_WITHIN: Duration = Duration::from_millis(1900);

/// How long reading a saved machine may take, on a processor that runs guests itself.
const READ_WITHIN: Duration = Duration::from_secs(10);

impl Vm {
    /// Stops the machine and saves it in `folder`, which exists: all but its disks, which are as the
    /// guest wrote them. [`VmBuilder::restore`](crate::VmBuilder::restore) makes copies of it. The
    /// machine itself does not go on.
    ///
    /// Between the copies nothing differs at first: identity, keys, what the kernel made random numbers
    /// of, open connections whose other end is gone. The guest's clock stands at the time of the save.
    ///
    /// A TPM is not saved: the commands that it received are replayed to that of a copy. They have to be those
    /// of firmware, and no more, see [`wait_kernel`](Self::wait_kernel).
    ///
    /// # Errors
    /// The machine was not built [`saveable`](crate::VmBuilder::saveable), QEMU cannot save it, its TPM
    /// was used by more than firmware, or `folder` cannot be written.
    pub fn save(&self, folder: &Path, limit: Duration) -> Result<()> {
        let Some(memory) = &self.memory else {
            let why = "a machine that is to be saved has to be built saveable";
            return Err(Error::BadMachine(why.to_owned()));
        };
        self.pause()?;
        if let Some(chip) = &self.tpm {
            chip.save(folder)?;
        }
        prepare(&self.qmp)?;
        // QEMU before version 8.2 migrates into a file by the help of a program only.
        let to = format!("exec:cat > {}", quoted(&folder.join(DEVICES)));
        self.qmp.execute("migrate", json!({ "uri": to }))?;
        let limit = self.scale(limit);
        match self.qmp.wait_migrated(limit).as_deref() {
            Some("completed") => {}
            Some(_) => return Err(Error::BadMachine("QEMU did not save it".to_owned())),
            None => return Err(self.timeout("the machine to be saved".to_owned(), limit)),
        }
        disk::copy(memory, &folder.join(MEMORY))?;
        let console = folder.join(CONSOLE);
        fs::write(&console, self.console().raw())
            .map_err(Error::io(format!("writing {}", console.display())))
    }
}

impl Vm {
    /// Waits until firmware has handed over to the kernel, and stops the machine there: the kernel has
    /// not looked for devices yet. What a copy of this machine has on its disks, in the firmware's
    /// configuration and in its TPM its kernel finds as if it had been booted with it.
    ///
    /// A machine with a TPM is stopped where the kernel first asks that: it has unpacked itself and set up its memory, and
    /// comes to disks, cards and the firmware's configuration later. For the time of `meanwhile` it gets no answer, and
    /// unpacks its initial file system.
    ///
    /// # Errors
    /// The kernel does not run in time, ran on for too long to be stopped there, or waited longer than it waits for a TPM.
    pub fn wait_kernel(&self, limit: Duration, meanwhile: Duration) -> Result<()> {
        self.wait_until("the kernel", limit, || self.in_kernel())?;
        if let Some(chip) = &self.tpm {
            chip.hold();
            self.stop_where_held(chip, "the kernel's question to the TPM", limit, meanwhile)?;
        }
        self.pause()?;
        let devices = self.qmp.execute("x-query-virtio", json!({}))?;
        for device in devices.as_array().into_iter().flatten() {
            let status = json!({ "path": device["path"] });
            let status = self.qmp.execute("x-query-virtio-status", status)?;
            let statuses = status["status"]["statuses"].as_array();
            let is_used = statuses.is_none_or(|all| all.iter().any(is_driven));
            if is_used {
                let why = format!("the kernel ran on and found its devices: {status}");
                return Err(Error::TooLate(why));
            }
        }
        Ok(())
    }

    /// Waits until firmware is about to boot, and stops the machine there: it has set up the machine and
    /// decided what it boots from, and has read nothing of that yet. What a copy of this machine has on its disk
    /// the firmware reads, judges and measures as if it had been started with it. The disk has to be divided as this
    /// one's, with the same file systems; what files they have is open. Firmware's variables, boot entries and keys among
    /// them, are those of this machine.
    ///
    /// # Errors
    /// The machine has no TPM, firmware is not as far in time, or further already.
    pub fn wait_ready_to_boot(&self, limit: Duration) -> Result<()> {
        let chip = self.tpm.as_ref();
        let chip = chip.ok_or_else(|| {
            Error::BadMachine("what firmware does is seen at a TPM, and it has none".to_owned())
        })?;
        chip.hold_ready_to_boot()?;
        self.stop_where_held(chip, "firmware to be ready to boot", limit, Duration::ZERO)
    }

    /// Stops the machine where its TPM keeps a response back, after `meanwhile`, and gives it that: what is saved has
    /// nothing under way.
    fn stop_where_held(
        &self,
        chip: &TpmChip,
        what: &str,
        limit: Duration,
        meanwhile: Duration,
    ) -> Result<()> {
        // The last look at which it ran on.
        let mut held_at = Instant::now();
        let stopped = self
            .wait_until(what, limit, || {
                let is_held = chip.is_held();
                if !is_held {
                    held_at = Instant::now();
                }
                Ok(is_held)
            })
            .and_then(|()| {
                thread::sleep(meanwhile);
                self.pause()
            });
        let waited = held_at.elapsed();
        chip.release();
        stopped?;
        if waited > ANSWERED_WITHIN {
            let why = format!("the guest waited {waited:?} for its TPM, and may have given up");
            return Err(Error::TooLate(why));
        }
        Ok(())
    }

    fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let limit = self.scale(limit);
        let until = Instant::now() + limit;
        while !is_so()? {
            if Instant::now() > until {
                return Err(self.timeout(what.to_owned(), limit));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Whether the processor is in the kernel's half of the address space.
    fn in_kernel(&self) -> Result<bool> {
        let registers = self.qmp.human("info registers")?;
        let mut words = registers.split_whitespace();
        let place = words.find_map(|word| word.strip_prefix("RIP="));
        let place = place.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Ok(place.is_some_and(|place| place >= KERNEL_AT))
    }
}

/// Whether that is more than the device being known: a driver of the guest has it.
fn is_driven(status: &Value) -> bool {
    let said = status.as_str().unwrap_or_default();
    !said.starts_with("VIRTIO_CONFIG_S_ACKNOWLEDGE")
}

/// The file of the memory of the machine saved in `folder`.
pub(crate) fn memory_of(folder: &Path) -> PathBuf {
    folder.join(MEMORY)
}

/// What a machine had said before it was saved; one that boots has said nothing.
pub(crate) fn console_of(memory: &GuestMemory) -> Result<Vec<u8>> {
    let GuestMemory::Restored(folder) = memory else {
        return Ok(vec![]);
    };
    let console = folder.join(CONSOLE);
    fs::read(&console).map_err(Error::io(format!("reading {}", console.display())))
}

/// Loads the saved device state from `folder` by an incoming migration. The guest stays paused.
pub(crate) fn read(qmp: &Qmp, folder: &Path, accel: Accel) -> Result<()> {
    prepare(qmp)?;
    let from = format!("exec:cat {}", quoted(&folder.join(DEVICES)));
    qmp.execute("migrate-incoming", json!({ "uri": from }))?;
    // QEMU ends where it cannot read it, and says why.
    match qmp.wait_migrated(accel.scale(READ_WITHIN)).as_deref() {
        Some("completed") => Ok(()),
        ended => Err(Error::QmpLost {
            command: "migrate-incoming".to_owned(),
            reason: ended.unwrap_or("no end").to_owned(),
        }),
    }
}

/// Leaves the memory out of what is saved and read, and has QEMU report the end of either.
fn prepare(qmp: &Qmp) -> Result<()> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!([on("x-ignore-shared"), on("events")]);
    let set = json!({ "capabilities": capabilities });
    qmp.execute("migrate-set-capabilities", set).map(drop)
}

/// One word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(quoted(Path::new("/a b/c")), "'/a b/c'");
        assert_eq!(quoted(Path::new("/it's")), r"'/it'\''s'");
    }
}
