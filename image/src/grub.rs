//! GRUB, which starts the kernel of an EFI program on a machine with a BIOS.
//!
//! The firmware loads the first sector of the disk, and that sector loads the core image from the gap
//! before the first file system. On a disk the core image reads a configuration that lies behind it,
//! which chooses a boot slot; on a medium there is one program. Then GRUB reads a script out of the
//! EFI program. The script has the places of kernel and initramfs in the same file, so an update that
//! replaces the file replaces everything that GRUB reads, and both firmwares start the same bytes.

use std::ops::Range;

use alknet_boot_state::{
    GRUB_CONFIG_BYTES, GRUB_CONFIG_LBA, GRUB_CORE_BYTES_MAX, GRUB_CORE_LBA, GRUB_SCRIPT,
};

use crate::disk::LBA_BYTES;
use crate::virtual_disk::to_usize;

/// Byte of the EFI program at which the script begins. The core image stays on a disk when the EFI
/// program is replaced, so this number never changes.
pub(crate) const SCRIPT_AT: usize = 256 << 10;
/// Bytes of the script, with the line feeds that fill it up. This number never changes either.
pub(crate) const SCRIPT_BYTES: usize = 8 << 10;

/// The modules of GRUB in its core image: disks of the BIOS, the file systems on the way to the
/// EFI program, the commands of the scripts and of the core images' configurations, and both
/// consoles.
pub const GRUB_MODULES: [&str; 19] = [
    "biosdisk",
    "boot",
    "chain",
    "configfile",
    "echo",
    "fat",
    "file",
    "linux",
    "loadenv",
    "loopback",
    "normal",
    "part_gpt",
    "reboot",
    "regexp",
    "serial",
    "sleep",
    "tar",
    "terminal",
    "test",
];

/// The folder of GRUB's files. Without a drive before the comma GRUB takes the drive that the
/// firmware started it from, so on a machine with two of our disks each starts its own programs.
/// The partition is the EFI system partition, the second one of every form. The folder has no file
/// of GRUB's: its modules are in its core image.
pub const GRUB_PREFIX: &str = "(,gpt2)/EFI";

/// A kind of core image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrubFormat {
    /// GRUB's name of the kind.
    pub name: &'static str,
    /// The commands in the core image. There is no menu and no prompt: the kernel starts, or the
    /// machine starts again after half a minute. GRUB parses these commands without `if`; it can do
    /// more in files that `source` reads.
    pub config: &'static str,
}

/// The core images: for a drive, and for a CD.
pub const GRUB_FORMATS: [GrubFormat; 2] = [
    GrubFormat {
        name: "i386-pc",
        config: DISK_CONFIG,
    },
    GrubFormat {
        name: "i386-pc-eltorito",
        config: MEDIUM_CONFIG,
    },
];

/// GRUB names the drive it was started from only in `root`, with the partition of [`GRUB_PREFIX`].
const DISK_CONFIG: &str = "\
serial --unit=0 --speed=115200
terminal_output console serial
regexp --set=1:alknet_disk '^([^,]*),' \"${root}\"
source (${alknet_disk},gpt1)/grub.cfg
echo 'alknet: GRUB cannot start \\EFI\\ALKNET\\A.EFI or B.EFI. Next try in 30 s'
sleep 30
reboot
";

/// The numbers behind `(uki)` are those of the script, in sectors.
const MEDIUM_CONFIG: &str = "\
serial --unit=0 --speed=115200
terminal_output console serial
loopback uki /EFI/BOOT/BOOTX64.EFI
source (uki)512+16
echo 'alknet: GRUB cannot start \\EFI\\BOOT\\BOOTX64.EFI. Next try in 30 s'
sleep 30
reboot
";

/// The rest of a disk's configuration, behind the function that chooses a boot slot.
const START: &str = include_str!("start.cfg");

/// What the code in the first sector of a disk begins with, as GRUB's `boot.img` has it: a jump, and zeros in the place
/// where a volume of FAT has its fields.
pub const BOOT_CODE_BEGIN: [u8; 90] = {
    let mut begin = [0; 90];
    begin[0] = 0xeb;
    begin[1] = 0x63;
    begin[2] = 0x90;
    begin
};
/// Bytes of the first sector that are code. A number of the disk and the partition table follow.
const BOOT_CODE_BYTES: usize = 440;
/// The position of the core image's first sector in the first sector of the disk, as 64 bits.
const CORE_LBA_AT: usize = 0x5c;
/// The position of a jump that skips a check of the drive's number, which BIOSes that pass a wrong
/// number need.
const DRIVE_CHECK_AT: usize = 0x66;
const NO_OPERATION: u8 = 0x90;
/// The position, in the first sector of the core image, of the list of its other sectors: their
/// first one as 64 bits, their number as 16 bits, and the segment to load them at as 16 bits.
const BLOCK_LIST_AT: usize = 0x1f4;
/// The segment behind the first sector of the core image, which is loaded at 0x8000.
const REST_SEGMENT: u16 = 0x820;
/// Most sectors of the core image: its configuration and the state of the boot follow it in the gap.
const CORE_SECTORS_MAX: u64 = GRUB_CORE_BYTES_MAX / LBA_BYTES;
/// Fewest bytes of a core image for a CD: xorriso writes the image's place behind these.
const CD_CORE_BYTES_MIN: usize = 2560;

/// GRUB's text about itself, with places for version, commands and licence.
const OFFER: &str = include_str!("../notices/GRUB-offer.txt");
const LICENCE: &str = include_str!("../notices/GPL-3.txt");

/// The file with the licence of GRUB and the offer of its source code.
pub(crate) const NOTICE_FILE: &str = "GRUB.txt";

/// GRUB on the disk: the code of the first sector, the core image, and its configuration.
#[derive(Debug)]
pub(crate) struct GrubLoader {
    boot_code: [u8; BOOT_CODE_BYTES],
    core: Vec<u8>,
    config: Vec<u8>,
}

impl GrubLoader {
    /// Writes the places of the parts into them. The error says which part is unusable, and why.
    pub(crate) fn new(boot_sector: &[u8], core: &[u8]) -> Result<Self, (GrubPart, String)> {
        check_boot_sector(boot_sector)
            .and_then(|()| check_boot_code(boot_sector))
            .map_err(|why| (GrubPart::BootSector, why))?;
        let core = located(core).map_err(|why| (GrubPart::Core, why))?;
        let mut boot_code = [0; BOOT_CODE_BYTES];
        boot_code.copy_from_slice(&boot_sector[..BOOT_CODE_BYTES]);
        put(&mut boot_code, CORE_LBA_AT, &GRUB_CORE_LBA.to_le_bytes());
        put(&mut boot_code, DRIVE_CHECK_AT, &[NO_OPERATION; 2]);
        Ok(Self {
            boot_code,
            core,
            config: config(),
        })
    }

    /// The code for the beginning of the first sector.
    pub(crate) const fn boot_code(&self) -> &[u8] {
        &self.boot_code
    }

    /// The core image and its configuration, each with its first sector on the disk.
    pub(crate) fn sectors(&self) -> [(u64, &[u8]); 2] {
        [(GRUB_CORE_LBA, &self.core), (GRUB_CONFIG_LBA, &self.config)]
    }
}

/// The configuration of a disk: it chooses a boot slot, and starts it.
fn config() -> Vec<u8> {
    let mut config = [GRUB_SCRIPT, START].concat().into_bytes();
    debug_assert!(
        config.len() <= to_usize(GRUB_CONFIG_BYTES),
        "a test has its length"
    );
    // GRUB skips empty lines.
    config.resize(to_usize(GRUB_CONFIG_BYTES), b'\n');
    config
}

/// A part of GRUB that can be unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GrubPart {
    BootSector,
    Core,
}

/// Refuses another file than a boot sector of GRUB.
pub(crate) fn check_boot_sector(boot_sector: &[u8]) -> Result<(), String> {
    if boot_sector.len() as u64 != LBA_BYTES {
        return Err(format!(
            "it is {} bytes and not {LBA_BYTES}; take boot.img and boot_hybrid.img of grub-pc-bin",
            boot_sector.len()
        ));
    }
    if !boot_sector.ends_with(&[0x55, 0xaa]) {
        return Err("it does not end in 55 AA, as boot sectors do".into());
    }
    Ok(())
}

/// Refuses code for a disk that is not of GRUB's `boot.img`: `image verify` refuses a signed disk that begins with other
/// code.
fn check_boot_code(boot_sector: &[u8]) -> Result<(), String> {
    match boot_sector.starts_with(&BOOT_CODE_BEGIN) {
        true => Ok(()),
        false => Err(
            "it does not begin with EB 63 90 and zeros up to byte 90; take boot.img of grub-pc-bin"
                .into(),
        ),
    }
}

/// Refuses what is too short for the core image of a CD.
pub(crate) fn check_cd_core(core: &[u8]) -> Result<(), String> {
    if core.len() < CD_CORE_BYTES_MIN {
        return Err(format!(
            "it is {} bytes, and at least {CD_CORE_BYTES_MIN} make a core image; make it by \
             grub-mkimage -O {}",
            core.len(),
            GRUB_FORMATS[1].name
        ));
    }
    Ok(())
}

/// The core image with its place on the disk, in whole sectors.
fn located(core: &[u8]) -> Result<Vec<u8>, String> {
    let sectors = (core.len() as u64).div_ceil(LBA_BYTES);
    // The first sector loads the others.
    if sectors < 2 {
        return Err(format!(
            "it is {} bytes, and one sector is not all of a core image",
            core.len()
        ));
    }
    if sectors > CORE_SECTORS_MAX {
        return Err(format!(
            "it has {sectors} sectors, and {CORE_SECTORS_MAX} fit before its configuration; \
             leave modules out"
        ));
    }
    let mut core = core.to_vec();
    core.resize(to_usize(sectors * LBA_BYTES), 0);
    let rest = u16::try_from(sectors - 1).map_err(|error| error.to_string())?;
    put(&mut core, BLOCK_LIST_AT, &(GRUB_CORE_LBA + 1).to_le_bytes());
    put(&mut core, BLOCK_LIST_AT + 8, &rest.to_le_bytes());
    put(&mut core, BLOCK_LIST_AT + 10, &REST_SEGMENT.to_le_bytes());
    Ok(core)
}

/// The script for an EFI program whose file has kernel and initramfs in these ranges of bytes.
///
/// A disk's configuration runs the script with the words for the kernel in `alknet_arguments`.
/// Earlier disks first run it with `alknet_probe`, to learn that the program has one. Disks in use
/// keep their configuration, so both names and `alknet_found` never change. Without `if`, a kernel
/// whose initramfs cannot be read would start without it, and the other slot would not get its turn.
///
/// # Errors
/// A range does not begin at a sector, or the command line has a character that GRUB changes.
pub(crate) fn script(
    kernel: Range<usize>,
    initrd: Range<usize>,
    cmdline: &str,
) -> Result<String, String> {
    let [kernel, initrd] = [kernel, initrd].map(|range| block_list(&range));
    // Within these marks the words have no character with a meaning. GRUB joins them by spaces.
    let words = cmdline.split_ascii_whitespace();
    let words: String = words.map(|word| format!(" '{word}'")).collect();
    let (kernel, initrd) = (kernel?, initrd?);
    // An empty variable outside of quotation marks is no word.
    let script = format!(
        "set alknet_found=1\n\
         if [ \"${{alknet_probe}}\" != \"1\" ]; then\n\
         if linux {kernel} ${{alknet_arguments}}{words}; then\n\
         if initrd {initrd}; then\n\
         boot\nfi\nfi\nfi\n"
    );
    if let Some(letter) = altered(cmdline) {
        return Err(format!(
            "GRUB passes {letter} to the kernel in another form"
        ));
    }
    if script.len() > SCRIPT_BYTES {
        return Err(format!(
            "GRUB's script of {} bytes is too long",
            script.len()
        ));
    }
    Ok(script)
}

/// A range of a file in GRUB's notation. Zeros behind kernel and initramfs, up to the end of a
/// sector, are harmless: the kernel knows its own length from its header, and skips zeros between
/// and behind the archives of an initramfs.
fn block_list(range: &Range<usize>) -> Result<String, String> {
    let sector = to_usize(LBA_BYTES);
    if !range.start.is_multiple_of(sector) {
        return Err(format!(
            "its file alignment puts a section at byte {}, and GRUB reads whole sectors",
            range.start
        ));
    }
    let sectors = range.len().div_ceil(sector);
    Ok(format!("(uki){}+{sectors}", range.start / sector))
}

/// A character of a command line that does not reach the kernel as it is: GRUB writes a backslash
/// before each of these.
pub(crate) fn altered(cmdline: &str) -> Option<char> {
    cmdline.chars().find(|letter| "\"'\\".contains(*letter))
}

/// The licence of GRUB, the offer of its source code, and how its parts were made.
pub(crate) fn notice(version: &str) -> String {
    let modules = GRUB_MODULES.join(" ");
    let command = |GrubFormat { name, config }| {
        let lines = config.lines().map(|line| format!("\n    {line}"));
        let lines: String = lines.collect();
        format!(
            "    grub-mkimage -O {name} -p '{GRUB_PREFIX}' -c {name}.cfg \\\n        {modules}\n\n    \
             {name}.cfg:\n{lines}"
        )
    };
    OFFER
        .replace("@COMMANDS@", &GRUB_FORMATS.map(command).join("\n\n"))
        .replace("@VERSION@", version)
        .replace("@LICENCE@", LICENCE)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
pub(crate) mod tests {
    use alknet_boot_state::{BootSlot, GRUB_CONFIG_FILE, GRUB_STATE_FILE};

    use super::*;
    use crate::CMDLINE_BYTES_MAX;

    const SECTOR: usize = 512;

    fn boot_sector() -> Vec<u8> {
        let mut sector = vec![0xcc; SECTOR];
        put(&mut sector, 0, &BOOT_CODE_BEGIN);
        put(&mut sector, 510, &[0x55, 0xaa]);
        sector
    }

    /// A loader for a disk whose code no test starts.
    pub(crate) fn loader() -> GrubLoader {
        GrubLoader::new(&boot_sector(), &[0xee; 3 * SECTOR]).expect("usable")
    }

    #[test]
    fn the_parts_know_their_places_and_keep_everything_else() {
        let core = vec![0xee; 3 * SECTOR + 1];
        let loader = GrubLoader::new(&boot_sector(), &core).expect("usable");
        let code = loader.boot_code();
        assert_eq!(code[CORE_LBA_AT..][..8], [35, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(code[DRIVE_CHECK_AT..][..2], [0x90, 0x90]);
        let before = boot_sector();
        let changed = |at: &usize| code[*at] != before[*at];
        let changed: Vec<_> = (0..BOOT_CODE_BYTES).filter(changed).collect();
        assert_eq!(changed.len(), 10, "{changed:?}");

        let [(first, located), _] = loader.sectors();
        assert_eq!((first, located.len()), (35, 4 * SECTOR));
        let list = &located[BLOCK_LIST_AT..SECTOR];
        assert_eq!(list, [36, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0x20, 8]);
        assert_eq!(located[SECTOR..3 * SECTOR + 1], core[SECTOR..]);
        assert!(located[..BLOCK_LIST_AT] == core[..BLOCK_LIST_AT]);
    }

    /// The headers of the archive lie before the configuration, and before the boot note at 2037.
    #[test]
    fn the_largest_core_image_and_the_configuration_end_before_the_next_header() {
        let largest = vec![1; to_usize(CORE_SECTORS_MAX) * SECTOR];
        let loader = GrubLoader::new(&boot_sector(), &largest).expect("exactly fits");
        let ends = loader.sectors().map(|(first, content)| {
            assert!(content.len().is_multiple_of(SECTOR));
            first + (content.len() / SECTOR) as u64
        });
        assert_eq!(ends, [GRUB_CONFIG_LBA - 1, 2036]);
        let larger = [&largest[..], &[1]].concat();
        let (part, why) = GrubLoader::new(&boot_sector(), &larger).expect_err("too large");
        assert_eq!(part, GrubPart::Core);
        assert!(why.contains("1970 sectors"), "{why}");
    }

    #[test]
    fn the_configuration_is_whole_and_ends_in_a_line_feed() {
        let whole = [GRUB_SCRIPT, START].concat();
        assert!(config().starts_with(whole.as_bytes()), "it was cut");
        assert!(GRUB_SCRIPT.ends_with('\n') && config().ends_with(b"\n"));
    }

    /// The names that the parts of the configuration share.
    #[test]
    fn the_configuration_finds_the_record_the_slots_and_the_script() {
        let state = format!("set alknet_state=\"{GRUB_STATE_FILE}\"\n");
        for (config, wanted) in [
            (DISK_CONFIG, format!("\nsource {GRUB_CONFIG_FILE}\n")),
            (START, state),
            (
                START,
                "\nalknet_choose\n".replace('\n', "\n  ").trim_end().into(),
            ),
        ] {
            assert!(config.contains(&wanted), "{wanted}");
        }
        for slot in BootSlot::ALL {
            let file = slot.file_name();
            assert_eq!(START.matches(&format!(" /EFI/ALKNET/{file}\n")).count(), 2);
            assert!(START.contains(&format!("set alknet_{slot}=\"${{alknet_found}}\"")));
        }
        let script = script(0..512, 512..1024, "quiet").expect("usable");
        for name in ["alknet_found", "alknet_probe", "alknet_arguments"] {
            assert!(script.contains(name), "{name}");
        }
        assert!(START.contains("alknet_arguments"));
        // A damaged script could start its program wherever it runs, so it runs where a try was counted, and only there.
        assert_eq!(START.matches("source (uki)").count(), 1);
        assert!(!START.contains("alknet_probe"));
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |sector: &[u8], core: &[u8]| {
            GrubLoader::new(sector, core).expect_err("must be refused")
        };
        let core = vec![1; 2 * SECTOR];
        let (part, why) = refused(&[0; 100], &core);
        assert!(part == GrubPart::BootSector && why.contains("100"), "{why}");
        let (part, why) = refused(&[0; SECTOR], &core);
        assert!(
            part == GrubPart::BootSector && why.contains("55 AA"),
            "{why}"
        );
        for at in [0, BOOT_CODE_BEGIN.len() - 1] {
            let mut other = boot_sector();
            other[at] ^= 1;
            let (part, why) = refused(&other, &core);
            assert!(
                part == GrubPart::BootSector && why.contains("EB 63 90"),
                "{why}"
            );
        }
        let (part, why) = refused(&boot_sector(), &core[..SECTOR]);
        assert!(part == GrubPart::Core && why.contains("512"), "{why}");
        check_cd_core(&[0; CD_CORE_BYTES_MIN]).expect("long enough");
        check_cd_core(&core).expect_err("too short");
    }

    #[test]
    fn grub_reads_the_script_where_it_is() {
        let place = block_list(&(SCRIPT_AT..SCRIPT_AT + SCRIPT_BYTES)).expect("whole sectors");
        let reads = format!("source {place}\n");
        assert_eq!(MEDIUM_CONFIG.matches(&reads).count(), 1, "{reads}");
        assert_eq!(START.matches(&reads).count(), 1, "{reads}");
    }

    #[test]
    fn the_script_names_whole_sectors_and_every_word() {
        let cmdline = "console=ttyS0 a=$b;c  x={1..2}";
        let script = script(1024..2000, 4096..9216, cmdline).expect("usable");
        let expected = "set alknet_found=1\n\
                        if [ \"${alknet_probe}\" != \"1\" ]; then\n\
                        if linux (uki)2+2 ${alknet_arguments} 'console=ttyS0' 'a=$b;c' 'x={1..2}'; then\n\
                        if initrd (uki)8+10; then\n\
                        boot\nfi\nfi\nfi\n";
        assert_eq!(script, expected);
        script_error(1025..2000, "quiet", "byte 1025");
        for letter in ['"', '\'', '\\'] {
            script_error(1024..2000, &format!("a={letter}b"), &letter.to_string());
        }
    }

    fn script_error(kernel: Range<usize>, cmdline: &str, said: &str) {
        let why = script(kernel, 0..512, cmdline).expect_err("must be refused");
        assert!(why.contains(said), "{why}");
    }

    #[test]
    fn the_longest_command_line_fits_however_many_words_it_has() {
        let words = "a ".repeat(CMDLINE_BYTES_MAX / 2);
        script(1 << 29..1 << 30, 1 << 30..1 << 31, &words).expect("fits");
        // GRUB puts the name of the kernel first, and what the kernel cannot hold is cut off.
        let name = "BOOT_IMAGE=(uki)1048576+1048576 ";
        let slot = "alknet.slot=a ";
        let sealable = "lockdown=confidentiality init_on_free=1 console=tty0 ";
        assert!(name.len() + slot.len() + sealable.len() + CMDLINE_BYTES_MAX < 2048);
    }

    #[test]
    fn the_notice_has_version_commands_and_licence() {
        let notice = notice("2.06-1");
        for part in [
            "grub2=2.06-1",
            "grub-mkimage -O i386-pc -p",
            "grub-mkimage -O i386-pc-eltorito -p",
            "    source (uki)512+16\n",
            "    source (${alknet_disk},gpt1)/grub.cfg\n",
            "GNU GENERAL PUBLIC LICENSE",
            "END OF TERMS AND CONDITIONS",
        ] {
            assert!(notice.contains(part), "{part}");
        }
        assert!(!notice.contains('@'), "a place was not filled");
    }
}
