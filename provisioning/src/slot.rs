//! The boot slot whose program runs.

use alknet_boot_state::BootSlot;

use crate::{SourcePaths, file};

/// The word on the kernel's command line by which GRUB names the slot.
const SLOT_WORD: &str = "alknet.slot=";
/// Most bytes of the command line that are read. x86 allows 2048.
const COMMAND_LINE_BYTES_MAX: usize = 16 << 10;
/// Variables in which systemd-stub names the program that firmware started, with the vendor of systemd's loader
/// interface. A loader that sets the second one itself may name itself there.
const IMAGE_VARIABLES: [&str; 2] = [
    "efivars/StubImageIdentifier-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
    "efivars/LoaderImageIdentifier-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
];
/// The attributes of a variable of this start, before the value in Linux' file system of variables: access for boot
/// services and at run time. One that outlives a start (`NON_VOLATILE`) may be of a stick that started the machine once.
const ATTRIBUTES: [u8; 4] = [6, 0, 0, 0];
/// Most bytes of such a variable that are read.
const VARIABLE_BYTES_MAX: usize = 4 << 10;
/// The folder of the slots, as firmware writes it.
const FOLDER: &str = r"\EFI\ALKNET\";

/// The boot slot whose program runs. `None` if the machine was not started from one: by a hypervisor, from a CD, over
/// the network, or by a loader of another project.
///
/// Firmware says it if there is any, and GRUB on a BIOS. Under UEFI the command line may come from a boot entry, which an
/// attacker with the machine in hand can write.
#[must_use]
pub fn running_slot(paths: &SourcePaths) -> Option<BootSlot> {
    if paths.efi.exists() {
        let mut variables = IMAGE_VARIABLES.iter();
        let path = variables.find_map(|name| variable(paths, name))?;
        return BootSlot::ALL.into_iter().find(|slot| {
            let program = format!("{FOLDER}{}", slot.file_name());
            // Names are those of the folder, or as the loader asked for them.
            path.eq_ignore_ascii_case(&program)
        });
    }
    let line = file::read_bounded(&paths.command_line, COMMAND_LINE_BYTES_MAX).ok()??;
    let mut words = std::str::from_utf8(&line).ok()?.split_ascii_whitespace();
    let letter = words.find_map(|word| word.strip_prefix(SLOT_WORD))?;
    BootSlot::ALL
        .into_iter()
        .find(|slot| slot.letter() == letter)
}

/// The text of a variable, in UTF-16.
fn variable(paths: &SourcePaths, name: &str) -> Option<String> {
    let bytes = file::read_bounded(&paths.efi.join(name), VARIABLE_BYTES_MAX).ok()??;
    let units = bytes.strip_prefix(&ATTRIBUTES)?.chunks_exact(2);
    let units = units.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}
