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

use serde_json::json;

use crate::accel::Accel;
use crate::disk;
use crate::error::{Error, Result};
use crate::machine::Memory;
use crate::qmp::Qmp;
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
    /// # Errors
    /// The kernel does not run in time, or ran on for too long to be stopped there.
    pub fn wait_kernel(&self, limit: Duration) -> Result<()> {
        let limit = self.scale(limit);
        let until = Instant::now() + limit;
        while !self.in_kernel()? {
            if Instant::now() > until {
                return Err(self.timeout("the kernel".to_owned(), limit));
            }
            thread::sleep(LOOK_EVERY);
        }
        self.pause()?;
        let devices = self.qmp.execute("x-query-virtio", json!({}))?;
        for device in devices.as_array().into_iter().flatten() {
            let status = json!({ "path": device["path"] });
            let status = self.qmp.execute("x-query-virtio-status", status)?;
            let statuses = &status["status"]["statuses"];
            if statuses.as_array().is_none_or(|all| !all.is_empty()) {
                let why = format!("the kernel ran on and found its devices: {status}");
                return Err(Error::BadMachine(why));
            }
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

/// The file of the memory of the machine saved in `folder`.
pub(crate) fn memory_of(folder: &Path) -> PathBuf {
    folder.join(MEMORY)
}

/// What a machine had said before it was saved; one that boots has said nothing.
pub(crate) fn console_of(memory: &Memory) -> Result<Vec<u8>> {
    let Memory::Restored(folder) = memory else {
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
