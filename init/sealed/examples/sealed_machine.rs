//! PID 1 of a machine that has only this program and stock cryptsetup. It shows that both map the
//! same data on the kernel of the appliance. The disks are `/dev/vda` to `/dev/vdc`, 96 MiB each.
//!
//! It prints each step. The last line is `sealed machine: all is well`, or the error.

use std::{
    error::Error,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use alknet_sealed::dm::DeviceMapper;
use alknet_sealed::limits::DATA_AT;
use alknet_sealed::{
    DmError, DmRemoval, NewHeader, OpenVolume, PartitionContent, SealedError, SealedPartition,
    SectorCipher, VolumeOptions, close,
};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use uuid::Uuid;

type SealedMachineResult<T = ()> = Result<T, Box<dyn Error>>;

const ONE: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
const TWO: &str = "EjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJCrze8";
const THREE: &str = "VniQq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjQ";
const NAME: &str = "alknet-data";
/// Bytes of the test data.
const FILLED: usize = 1 << 20;

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a machine of the tests and does nothing else");
        std::process::exit(2);
    }
    match everything() {
        Ok(()) => println!("sealed machine: all is well"),
        Err(error) => println!("sealed machine: {error}"),
    }
    loop {
        // The reader of the console gets the last lines before the machine stops.
        thread::sleep(Duration::from_secs(2));
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
}

fn everything() -> SealedMachineResult {
    prepare()?;
    both_ways()?;
    in_use()?;
    grown()?;
    phrase_changed_while_open()?;
    nodes_without_devtmpfs()?;
    theirs()?;
    adiantum()?;
    nothing_is_left()?;
    erased()
}

fn prepare() -> SealedMachineResult {
    let none = MsFlags::empty();
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ];
    for (kind, at) in mounts {
        match mount(Some(kind), at, Some(kind), none, None::<&str>) {
            // The kernel has mounted it already.
            Err(nix::errno::Errno::EBUSY) => {}
            other => other.map_err(|error| format!("mount {at}: {error}"))?,
        }
    }
    for (name, phrase) in [("one", ONE), ("two", TWO), ("three", THREE)] {
        fs::write(Path::new("/run").join(name), phrase)?;
    }
    let control = DeviceMapper::open()?;
    say(&format!("device mapper {:?}", control.version()));
    fail_if(!control.list()?.is_empty(), "there are mappings already")
}

fn say(what: &str) {
    println!("step: {what}");
}

fn fail_if(is: bool, what: &str) -> SealedMachineResult {
    if is { Err(what.into()) } else { Ok(()) }
}

fn cryptsetup(arguments: &[&str]) -> SealedMachineResult<Output> {
    let output = Command::new("/usr/sbin/cryptsetup")
        .arg("--batch-mode")
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .output()?;
    Ok(output)
}

fn content(arguments: &[&str]) -> SealedMachineResult<String> {
    let output = cryptsetup(arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let error = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!("cryptsetup {arguments:?}: {said}{error}").into())
}

fn device(path: &str) -> SealedMachineResult<(File, u64)> {
    let file = File::options().read(true).write(true).open(path)?;
    let name = path.trim_start_matches("/dev/");
    let sectors = fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    Ok((file, sectors.trim().parse::<u64>()? * 512))
}

fn format(path: &str, cipher: SectorCipher) -> SealedMachineResult<SealedPartition> {
    let (file, bytes) = device(path)?;
    let new = NewHeader {
        uuid: Uuid::from_bytes([0x42; 16]),
        vault: "0b9e8a4e-5e6c-4a1f-9d55-7f3f6f0d9f11",
        cipher,
        phrases: &[ONE.as_bytes(), TWO.as_bytes()],
    };
    Ok(SealedPartition::format(file, bytes, &new)?)
}

fn load(path: &str) -> SealedMachineResult<SealedPartition> {
    let (file, bytes) = device(path)?;
    Ok(SealedPartition::load(file, bytes)?)
}

fn pattern(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) | 0x9e37_0000;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..FILLED).map(step).collect()
}

fn fill(path: &Path, seed: u8) -> SealedMachineResult {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&pattern(seed), 0)?;
    // The second part lies where the number of a sector no longer fits into 16 bits.
    file.write_all_at(&pattern(seed ^ 0xff)[..4096], 64 << 20)?;
    Ok(file.sync_all()?)
}

fn expect(path: &Path, seed: u8) -> SealedMachineResult {
    let file = File::open(path)?;
    let mut found = vec![0; FILLED];
    file.read_exact_at(&mut found, 0)?;
    fail_if(
        found != pattern(seed),
        &format!("{} differs", path.display()),
    )?;
    file.read_exact_at(&mut found[..4096], 64 << 20)?;
    let same = found[..4096] == pattern(seed ^ 0xff)[..4096];
    fail_if(!same, &format!("{} differs far behind", path.display()))
}

fn both_ways() -> SealedMachineResult {
    say("format, open, fill");
    let sealed = format("/dev/vda", SectorCipher::AesXts)?;
    let volume = sealed.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
    fill(volume.path(), 1)?;
    let mut raw = vec![0; FILLED];
    device("/dev/vda")?.0.read_exact_at(&mut raw, DATA_AT)?;
    fail_if(raw == pattern(1), "the disk has the data as they are")?;
    table_without_key(&volume)?;
    say("cryptsetup shows and closes our mapping");
    let shown = content(&["status", NAME])?;
    for expected in [
        "LUKS2",
        "aes-xts-plain64",
        "/dev/vda",
        "512 bits",
        "keyring",
    ] {
        fail_if(
            !shown.contains(expected),
            &format!("{expected} is not in {shown}"),
        )?;
    }
    content(&["close", NAME])?;
    say("cryptsetup reads what we wrote, and we what it wrote");
    content(&["open", "--key-file", "/run/two", "/dev/vda", "stock"])?;
    expect(Path::new("/dev/mapper/stock"), 1)?;
    fill(Path::new("/dev/mapper/stock"), 2)?;
    content(&["close", "stock"])?;
    let volume = load("/dev/vda")?.open(1, TWO.as_bytes(), &VolumeOptions::default())?;
    expect(volume.path(), 2)?;
    fail_if(!volume.close(DmRemoval::Now)?, "it is not gone")
}

fn table_without_key(volume: &OpenVolume) -> SealedMachineResult {
    let control = DeviceMapper::open()?;
    let table = control.table(volume.name())?;
    let [target] = &table[..] else {
        return Err("not one target".into());
    };
    say(&format!("table: {} {}", target.kind, target.parameters));
    let whole = target.kind == "crypt" && target.sectors * 512 == volume.bytes();
    fail_if(!whole, "the table is not what was loaded")?;
    let parameters = "aes-xts-plain64 :64:logon:alknet:data 0 ";
    fail_if(
        !target.parameters.starts_with(parameters),
        "the table has something else",
    )?;
    fail_if(
        !target.parameters.ends_with(" 32768 1 sector_size:4096"),
        "the table ends in something else",
    )?;
    let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
    fail_if(
        keys.contains("alknet:data"),
        "the key is still in a keyring",
    )?;
    let status = volume.status()?;
    fail_if(
        !status.active || status.suspended,
        "the mapping does not run",
    )?;
    let listed = control.list()?;
    let there = listed
        .iter()
        .any(|one| one.name == NAME && one.device == volume.device());
    fail_if(!there, "the mapping is not listed")?;
    control.suspend(NAME)?;
    fail_if(!control.status(NAME)?.suspended, "it does not stand still")?;
    control.resume(NAME)?;
    Ok(())
}

fn in_use() -> SealedMachineResult {
    say("a mapping in use stays, or goes later");
    let sealed = load("/dev/vda")?;
    let options = VolumeOptions::default();
    let volume = sealed.open(0, ONE.as_bytes(), &options)?;
    let again = sealed.open(0, ONE.as_bytes(), &options);
    let exists = matches!(again, Err(SealedError::Dm(DmError::Exists(_))));
    fail_if(!exists, &format!("a second one of that name: {again:?}"))?;
    let held = File::open(volume.path())?;
    let busy = matches!(
        close(NAME, DmRemoval::Now),
        Err(SealedError::Dm(DmError::Busy(_)))
    );
    fail_if(!busy, "it could be closed")?;
    fail_if(volume.close(DmRemoval::Deferred)?, "it went at once")?;
    fail_if(
        !DeviceMapper::open()?.status(NAME)?.leaving,
        "it does not leave",
    )?;
    drop(held);
    gone(NAME)?;
    let refused = sealed.open(0, TWO.as_bytes(), &options);
    let refused = matches!(refused, Err(SealedError::WrongPhrase(0)));
    fail_if(!refused, "another phrase opens it")?;
    // Another name is refused as well: two mappings of one partition do not see each other's
    // writes.
    let other = VolumeOptions {
        name: "other".to_owned(),
        ..VolumeOptions::default()
    };
    let volume = sealed.open(0, ONE.as_bytes(), &options)?;
    let second = sealed.open(0, ONE.as_bytes(), &other);
    let exists = matches!(second, Err(SealedError::Dm(DmError::Exists(_))));
    fail_if(
        !exists,
        &format!("a second one of that partition: {second:?}"),
    )?;
    // A refused mapping leaves nothing behind.
    let (file, bytes) = device("/dev/vda")?;
    volume.close(DmRemoval::Now)?;
    let long = SealedPartition::load(file, bytes + (1 << 30))?;
    let refused = long.open(0, ONE.as_bytes(), &options);
    say(&format!("beyond the disk: {refused:?}"));
    let is_refused = matches!(refused, Err(SealedError::Dm(DmError::Refused { .. })));
    fail_if(!is_refused, "it was mapped beyond the disk")?;
    fail_if(
        !DeviceMapper::open()?.list()?.is_empty(),
        "it left a mapping",
    )?;
    let volume = sealed.open(0, ONE.as_bytes(), &options)?;
    volume.close(DmRemoval::Now).map(drop).map_err(Into::into)
}

/// Waits for a deferred removal, which a kernel thread performs.
fn gone(name: &str) -> SealedMachineResult {
    for _ in 0..200 {
        match DeviceMapper::open()?.status(name) {
            Err(DmError::NotFound(_)) => return Ok(()),
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
    Err(format!("{name} stays").into())
}

fn grown() -> SealedMachineResult {
    say("grow while open");
    let (file, bytes) = device("/dev/vda")?;
    let mut sealed = SealedPartition::load(file, 32 << 20)?;
    let mut volume = sealed.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
    let size = |volume: &OpenVolume| -> SealedMachineResult<u64> {
        let size = format!("/sys/class/block/dm-{}/size", volume.device().1);
        Ok(fs::read_to_string(size)?.trim().parse::<u64>()? * 512)
    };
    fail_if(size(&volume)? != 16 << 20, "it has another size")?;
    let held = File::open(volume.path())?;
    let grown = sealed.grow(&mut volume, bytes, 0, ONE.as_bytes())?;
    fail_if(
        !grown || size(&volume)? != bytes - DATA_AT,
        "it did not grow",
    )?;
    expect(volume.path(), 2)?;
    let again = sealed.grow(&mut volume, bytes, 0, ONE.as_bytes())?;
    fail_if(again, "it grew again")?;
    let late = sealed.grow(&mut volume, bytes + (1 << 30), 0, ONE.as_bytes());
    let refused = matches!(late, Err(SealedError::Dm(DmError::Refused { .. })));
    say(&format!("beyond the disk: {late:?}"));
    fail_if(!refused, "it grew beyond the disk")?;
    expect(volume.path(), 2)?;
    drop(held);
    volume.close(DmRemoval::Now).map(drop).map_err(Into::into)
}

fn phrase_changed_while_open() -> SealedMachineResult {
    say("change a phrase while open");
    let mut sealed = load("/dev/vda")?;
    let volume = sealed.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
    let key = sealed.unlock(1, TWO.as_bytes())?;
    sealed.set_phrase(0, THREE.as_bytes(), &key)?;
    expect(volume.path(), 2)?;
    volume.close(DmRemoval::Now)?;
    fail_if(
        load("/dev/vda")?.unlock(0, ONE.as_bytes()).is_ok(),
        "the old phrase opens it",
    )?;
    content(&[
        "open",
        "--test-passphrase",
        "--key-file",
        "/run/three",
        "/dev/vda",
    ])?;
    let key = sealed.unlock(0, THREE.as_bytes())?;
    Ok(sealed.set_phrase(0, ONE.as_bytes(), &key)?)
}

fn nodes_without_devtmpfs() -> SealedMachineResult {
    say("a node in a folder of ours");
    fs::create_dir("/run/nodes")?;
    let options = VolumeOptions {
        nodes: Some(PathBuf::from("/run/nodes")),
        discards: true,
        no_read_workqueue: true,
        no_write_workqueue: true,
        ..VolumeOptions::default()
    };
    let volume = load("/dev/vda")?.open(0, ONE.as_bytes(), &options)?;
    let path = volume.path().to_owned();
    fail_if(
        path != Path::new("/run/nodes/alknet-data"),
        "it is elsewhere",
    )?;
    expect(&path, 2)?;
    let table = DeviceMapper::open()?.table(NAME)?;
    let options = " 4 allow_discards sector_size:4096 no_read_workqueue no_write_workqueue";
    let words = |text: &str| {
        let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        words.sort();
        words
    };
    let found = table.first().map(|target| target.parameters.clone());
    let found = found.unwrap_or_default();
    let given = found.split_once(" 32768").map_or("", |(_, rest)| rest);
    fail_if(
        words(given) != words(options),
        &format!("the options are {given}"),
    )?;
    volume.close(DmRemoval::Now)?;
    fail_if(path.exists(), "the node is still there")?;
    let read_only = VolumeOptions {
        read_only: true,
        ..VolumeOptions::default()
    };
    let volume = load("/dev/vda")?.open(0, ONE.as_bytes(), &read_only)?;
    expect(volume.path(), 2)?;
    fail_if(fill(volume.path(), 3).is_ok(), "it can be written")?;
    volume.close(DmRemoval::Now).map(drop).map_err(Into::into)
}

fn theirs() -> SealedMachineResult {
    say("what cryptsetup formats");
    let ways: [&[&str]; 3] = [
        &["--sector-size", "4096"],
        &["--sector-size", "512", "--key-size", "256"],
        &[
            "--sector-size",
            "4096",
            "--key-size",
            "256",
            "-c",
            "xchacha12,aes-adiantum-plain64",
            // Otherwise cryptsetup would need the kernel's crypto API for sockets, which this
            // kernel lacks.
            "--keyslot-cipher",
            "aes-xts-plain64",
            "--keyslot-key-size",
            "512",
        ],
    ];
    for way in ways {
        let format = [
            "luksFormat",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "/run/one",
            "/dev/vdb",
        ];
        content(&[&format[..], way].concat())?;
        let volume = load("/dev/vdb")?.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
        fill(volume.path(), 4)?;
        volume.close(DmRemoval::Now)?;
        content(&["open", "--key-file", "/run/one", "/dev/vdb", "stock"])?;
        expect(Path::new("/dev/mapper/stock"), 4)?;
        fill(Path::new("/dev/mapper/stock"), 5)?;
        content(&["close", "stock"])?;
        let volume = load("/dev/vdb")?.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
        expect(volume.path(), 5)?;
        volume.close(DmRemoval::Now)?;
    }
    Ok(())
}

fn adiantum() -> SealedMachineResult {
    say("Adiantum");
    let sealed = format("/dev/vdc", SectorCipher::Adiantum)?;
    let volume = sealed.open(1, TWO.as_bytes(), &VolumeOptions::default())?;
    fill(volume.path(), 6)?;
    volume.close(DmRemoval::Now)?;
    content(&["open", "--key-file", "/run/two", "/dev/vdc", "stock"])?;
    expect(Path::new("/dev/mapper/stock"), 6)?;
    fill(Path::new("/dev/mapper/stock"), 7)?;
    content(&["close", "stock"])?;
    let volume = load("/dev/vdc")?.open(0, ONE.as_bytes(), &VolumeOptions::default())?;
    expect(volume.path(), 7)?;
    volume.close(DmRemoval::Now).map(drop).map_err(Into::into)
}

fn nothing_is_left() -> SealedMachineResult {
    say("nothing is left in the kernel");
    fail_if(
        !DeviceMapper::open()?.list()?.is_empty(),
        "there are mappings",
    )?;
    let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
    fail_if(keys.contains("logon"), &format!("keys are left: {keys}"))
}

fn erased() -> SealedMachineResult {
    say("erase");
    let (file, bytes) = device("/dev/vda")?;
    let erased = SealedPartition::erase(&file, bytes)?;
    say(&format!("{erased:?}"));
    erased.discarded?;
    let found = SealedPartition::probe(&file, bytes)?;
    fail_if(
        !matches!(found, PartitionContent::Unsealed),
        &format!("{found:?}"),
    )?;
    let mut head = vec![0; DATA_AT as usize];
    file.read_exact_at(&mut head, 0)?;
    fail_if(head.iter().any(|byte| *byte != 0), "it is not blank")?;
    fail_if(
        cryptsetup(&["isLuks", "/dev/vda"])?.status.success(),
        "it is still LUKS",
    )
}
