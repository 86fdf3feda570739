//! PID 1 of a machine that firmware measured. It shows that a vault opens by its TPM after the
//! image that a slot was made for, and that a slot can be made for an image before that is started.
//!
//! The vault is on `/dev/vdb`, blank at first. `/dev/vdc` has the image that runs when the vault is
//! made, and `/dev/vdd` the one to be started next. Each follows its length, in 8 bytes, little
//! endian. It prints one line, `booted machine: ` and the result.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use alknet_tpm::predict::ProgramUpdate;
use alknet_tpm::{Tpm, TpmSource, choose};
use alknet_vault::slots::{
    FileCopyStorage, NewSlot, NewVault, OpenAlkv, SlotType, UnlockKey, VaultCopies,
};
use alknet_vault::{Entropy, WordCount};
use nix::mount::{MsFlags, mount};

const EFI_VARIABLES: &str = "/sys/firmware/efi/efivars";
const VAULT: &str = "/dev/vdb";
/// The position of the second copy.
const COPY_AT: u64 = 64 << 10;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a machine of the tests and does nothing else");
        std::process::exit(2);
    }
    match everything() {
        Ok(result) => println!("booted machine: {result}"),
        Err(error) => println!("booted machine: failed: {error}"),
    }
    loop {
        // The test that reads the console ends the machine.
        thread::sleep(Duration::from_secs(3600));
    }
}

fn everything() -> Result<String, Box<dyn Error>> {
    let none = MsFlags::empty();
    for (kind, at) in [
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("efivarfs", EFI_VARIABLES),
    ] {
        match mount(Some(kind), at, Some(kind), none, None::<&str>) {
            // The kernel has mounted it already.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => {}
            Err(error) => return Err(format!("mount {at}: {error}").into()),
        }
    }
    let mut copies = VaultCopies::new(
        FileCopyStorage::at(VAULT, 0),
        FileCopyStorage::at(VAULT, COPY_AT),
    );
    match copies.load()? {
        None => make(&mut copies),
        Some(found) => {
            let mut source = TpmSource::open(None)?;
            let opened = found.open(&mut UnlockKey::Source(SlotType::Tpm2, &mut source));
            let Ok(open) = opened else {
                let why = source.take_error().map(|error| error.to_string());
                return Ok(format!("locked: {}", why.unwrap_or_default()));
            };
            Ok(format!("opened by slot {}", open.opened_by()))
        }
    }
}

/// Makes a vault with a slot for the running image, and one for the next.
fn make(copies: &mut VaultCopies<FileCopyStorage>) -> Result<String, Box<dyn Error>> {
    let mut tpm = Tpm::open()?;
    let choice = choose(Path::new(EFI_VARIABLES));
    let kek = alknet_tpm::new_kek()?;
    let params = tpm.seal(&kek, &choice, alknet_tpm::ExpectedPcrs::Current, None)?;
    let vault = NewVault::new(Entropy::generate(WordCount::TwentyFour)?, 0);
    let mut open = OpenAlkv::create(vault, NewSlot::Tpm2(params, &kek))?;
    copies.create(&open)?;
    let (running, next) = (image("/dev/vdc")?, image("/dev/vdd")?);
    let update = ProgramUpdate {
        loaders: &[],
        running: &running,
        next: &next,
    };
    let id = tpm.add_slot_for(&mut open, &choice, &update, None)?;
    copies.save(&open)?;
    Ok(format!("{choice}; slot {id} is for the next image"))
}

fn image(disk: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut disk = File::open(disk)?;
    let mut length = [0; 8];
    disk.read_exact(&mut length)?;
    let mut image = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    disk.read_exact(&mut image)?;
    Ok(image)
}
