//! One start of the machine: which slot, what is written first, and what happens if it does not start.

use core::fmt;
use core::time::Duration;

use alknet_boot_state::{BootChoice, BootRecord, BootSlot, BootSlots, loader_choice};

use crate::store::{RecordDisk, load, store};

/// What each line on the console begins with.
pub const PREFIX: &str = "alknet-loader: ";

/// How long the firmware's watchdog waits for a slot's program, which ends it when the kernel takes the machine over.
/// It is the time that UEFI gives a boot option (specification 2.10, section 3.1.2). A second slot gets the whole time
/// again.
pub const SLOT_WATCHDOG: Duration = Duration::from_secs(300);

/// How long the loader waits before it restarts a machine on which no slot could be started. Long enough to read the
/// line.
pub const RESTART_AFTER: Duration = Duration::from_secs(30);

/// The watchdog during that time: it resets a machine whose timer does not work.
pub const RESTART_WATCHDOG: Duration = Duration::from_secs(60);

/// The machine below the loader: firmware, and models of it in tests.
pub trait LoaderMachine {
    /// The disk that the loader was started from.
    type Disk<'a>: RecordDisk
    where
        Self: 'a;
    /// What the firmware answers.
    type Status: fmt::Display;

    /// Opens the disk that the loader was started from. It is closed before a slot is started.
    ///
    /// # Errors
    /// Why there is no such disk, in a few words: the loader came from a network or a CD.
    fn disk(&mut self) -> Result<Self::Disk<'_>, &'static str>;

    /// The slots that have a program, on the partition that the loader was started from.
    fn present(&mut self) -> BootSlots;

    /// Loads and starts a slot's program. Returns only if it did not take the machine over.
    fn start(&mut self, slot: BootSlot) -> SlotStartError<Self::Status>;

    /// Prints a line.
    fn say(&mut self, line: fmt::Arguments<'_>);
}

/// Why a slot did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotStartError<S> {
    /// The program ended and returned to the loader, with this status.
    Ended(S),
    /// The firmware did not load the program, for this reason.
    NotLoaded(S),
    /// The firmware, by its Secure Boot keys, did not permit the program.
    NotPermitted,
}

impl<S: fmt::Display> fmt::Display for SlotStartError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(f, "its program ended: {status}"),
            Self::NotLoaded(status) => write!(f, "firmware did not load it: {status}"),
            Self::NotPermitted => f.write_str("Secure Boot does not permit it"),
        }
    }
}

/// Starts a slot. Returns if none could be started. The caller then waits [`RESTART_AFTER`] and restarts the machine.
pub fn run<M: LoaderMachine>(machine: &mut M) {
    let mut record = read(machine);
    let mut left = machine.present();
    // Each round takes a slot out of the set, so this ends.
    loop {
        let choice = loader_choice(record.as_ref(), left);
        let Some(slot) = settle(machine, &mut record, &choice) else {
            break;
        };
        announce(machine, record.as_ref(), slot);
        let error = machine.start(slot);
        machine.say(format_args!("slot {slot} did not start: {error}"));
        left = left.without(slot);
    }
    let seconds = RESTART_AFTER.as_secs();
    machine.say(format_args!(
        "no slot starts: copy \\EFI\\ALKNET\\A.EFI of an image to the boot partition; restart in {seconds} s"
    ));
}

fn read<M: LoaderMachine>(machine: &mut M) -> Option<BootRecord> {
    // The disk borrows the machine, so the reason is printed when it is closed.
    let why = match machine.disk() {
        Ok(mut disk) => match load(&mut disk) {
            Ok(record) => return Some(record),
            Err(error) => Said::new(format_args!("{error}")),
        },
        Err(why) => Said::new(format_args!("{why}")),
    };
    machine.say(format_args!(
        "boot state record unreadable, slot a counts as good: {why}"
    ));
    None
}

/// Writes what the decision says to write, and returns the slot to start.
fn settle<M: LoaderMachine>(
    machine: &mut M,
    record: &mut Option<BootRecord>,
    choice: &BootChoice,
) -> Option<BootSlot> {
    let Some(next) = choice.write else {
        return choice.start;
    };
    let why = match machine.disk() {
        Ok(mut disk) => match store(&mut disk, &next) {
            Ok(()) => {
                *record = Some(next);
                return choice.start;
            }
            Err(error) => Said::new(format_args!("{error}")),
        },
        Err(why) => Said::new(format_args!("{why}")),
    };
    machine.say(format_args!("boot state record not written: {why}"));
    choice.start_unwritten
}

fn announce<M: LoaderMachine>(machine: &mut M, record: Option<&BootRecord>, slot: BootSlot) {
    match record.filter(|record| record.trial() == Some(slot)) {
        Some(trial) => machine.say(format_args!(
            "starting slot {slot} on trial, tries left after this one: {}",
            trial.tries()
        )),
        None => machine.say(format_args!("starting slot {slot}")),
    }
}

/// Most bytes of a reason. It is cut behind that.
const SAID_BYTES_MAX: usize = 160;

/// A short text without an allocator.
struct Said {
    bytes: [u8; SAID_BYTES_MAX],
    length: usize,
}

impl Said {
    fn new(text: fmt::Arguments<'_>) -> Self {
        let mut said = Self {
            bytes: [0; SAID_BYTES_MAX],
            length: 0,
        };
        // An error means that the text was cut, and its beginning is there.
        let _ = fmt::write(&mut said, text);
        said
    }
}

impl fmt::Write for Said {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let end = self.length + character.len_utf8();
            let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
            character.encode_utf8(room);
            self.length = end;
        }
        Ok(())
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.bytes.get(..self.length).unwrap_or_default();
        f.write_str(core::str::from_utf8(text).unwrap_or_default())
    }
}
