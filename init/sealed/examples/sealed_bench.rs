//! PID 1 of a machine that has only this program and stock cryptsetup. It reads and writes the same
//! part of a disk directly, through this crate's mapping and through cryptsetup's, in turns. The
//! disk is `/dev/vda`. The number of rounds is the argument `rounds=` of the kernel's command line.
//!
//! OpenSSL measures the cipher alone in memory, because the kernel has no interface for that.
//!
//! A measurement prints `bench: begin WAY WHAT`, and `bench: end WAY WHAT BYTES NANOSECONDS TICKS`,
//! where a tick is a hundredth of a second that a processor was busy. The last line is `sealed
//! bench: done`, or the error.

use std::{
    error::Error,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use alknet_sealed::limits::DATA_AT;
use alknet_sealed::{DmRemoval, NewHeader, SealedPartition, SectorCipher, VolumeOptions};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use uuid::Uuid;

type SealedBenchResult<T = ()> = Result<T, Box<dyn Error>>;

const PHRASE: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA";
const DISK: &str = "/dev/vda";
/// Bytes of each sequential measurement, and of one piece.
const RUN_BYTES: usize = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// Number of positions of each random measurement, and bytes of each.
const PLACES: usize = 2048;
const PLACE_BYTES: usize = 4096;
/// Alignment of memory that a disk reads and writes directly.
const ALIGNED: usize = 4096;

/// The three ways to the same sectors.
const WAYS: [&str; 3] = ["unsealed", "ours", "cryptsetup"];

/// A measurement: its name, and its operation on a device.
type Case = (&'static str, fn(&File, u64, &mut [u8]) -> io::Result<usize>);

const CASES: [Case; 4] = [
    ("write", |file, base, piece| {
        let steps = (0..RUN_BYTES).step_by(PIECE_BYTES);
        for at in steps {
            file.write_all_at(piece, base + at as u64)?;
        }
        file.sync_data()?;
        Ok(RUN_BYTES)
    }),
    ("read", |file, base, piece| {
        let steps = (0..RUN_BYTES).step_by(PIECE_BYTES);
        for at in steps {
            file.read_exact_at(piece, base + at as u64)?;
        }
        Ok(RUN_BYTES)
    }),
    ("random-read", |file, base, piece| {
        for at in places() {
            file.read_exact_at(&mut piece[..PLACE_BYTES], base + at)?;
        }
        Ok(PLACES * PLACE_BYTES)
    }),
    ("random-write", |file, base, piece| {
        for at in places() {
            file.write_all_at(&piece[..PLACE_BYTES], base + at)?;
        }
        file.sync_data()?;
        Ok(PLACES * PLACE_BYTES)
    }),
];

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a machine of the benchmarks and does nothing else");
        std::process::exit(2);
    }
    match everything() {
        Ok(()) => println!("sealed bench: done"),
        Err(error) => println!("sealed bench: {error}"),
    }
    loop {
        // The reader of the console gets the last lines before the machine stops.
        thread::sleep(Duration::from_secs(2));
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
}

fn everything() -> SealedBenchResult {
    prepare()?;
    println!(
        "bench: kernel {}",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    let (file, bytes) = device()?;
    let new = NewHeader {
        uuid: Uuid::from_bytes([0x42; 16]),
        vault: "0b9e8a4e-5e6c-4a1f-9d55-7f3f6f0d9f11",
        cipher: SectorCipher::AesXts,
        phrases: &[PHRASE.as_bytes()],
    };
    let sealed = SealedPartition::format(file, bytes, &new)?;
    // The first round does not count: the first write to a sparse file costs its host more.
    round(&sealed, false)?;
    for _ in 0..rounds() {
        round(&sealed, true)?;
        cipher()?;
    }
    Ok(())
}

/// Prints `bench: cipher` and its bytes per second.
fn cipher() -> SealedBenchResult {
    let output = Command::new("/usr/bin/openssl")
        .args(["speed", "-mr", "-seconds", "1", "-bytes", "4096"])
        .args(["-evp", "aes-256-xts"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().rfind(|line| line.starts_with("+F:"));
    let rate = last.and_then(|line| line.rsplit(':').next());
    let rate = rate.ok_or_else(|| format!("openssl speed: {said}"))?;
    println!("bench: cipher {rate}");
    Ok(())
}

fn prepare() -> SealedBenchResult {
    let none = MsFlags::empty();
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
    ] {
        match mount(Some(kind), at, Some(kind), none, None::<&str>) {
            // The kernel has mounted it already.
            Err(nix::errno::Errno::EBUSY) => {}
            other => other.map_err(|error| format!("mount {at}: {error}"))?,
        }
    }
    Ok(fs::write("/run/phrase", PHRASE)?)
}

fn device() -> SealedBenchResult<(File, u64)> {
    let file = File::options().read(true).write(true).open(DISK)?;
    let name = DISK.trim_start_matches("/dev/");
    let sectors = fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    Ok((file, sectors.trim().parse::<u64>()? * 512))
}

fn rounds() -> usize {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut words = line.split_whitespace();
    let found = words.find_map(|word| word.strip_prefix("rounds=")?.parse().ok());
    found.unwrap_or(1)
}

fn round(sealed: &SealedPartition, told: bool) -> SealedBenchResult {
    for way in WAYS {
        match way {
            "ours" => {
                let volume = sealed.open(0, PHRASE.as_bytes(), &VolumeOptions::default())?;
                measure(volume.path(), 0, way, told)?;
                volume.close(DmRemoval::Now)?;
            }
            "cryptsetup" => {
                cryptsetup(&["open", "--key-file", "/run/phrase", DISK, "stock"])?;
                measure(Path::new("/dev/mapper/stock"), 0, way, told)?;
                cryptsetup(&["close", "stock"])?;
            }
            _ => measure(Path::new(DISK), DATA_AT, way, told)?,
        }
    }
    Ok(())
}

fn cryptsetup(arguments: &[&str]) -> SealedBenchResult {
    let output = Command::new("/usr/sbin/cryptsetup")
        .arg("--batch-mode")
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!("cryptsetup {arguments:?}: {error}").into())
}

fn measure(path: &Path, base: u64, way: &str, told: bool) -> SealedBenchResult {
    let file = File::options()
        .read(true)
        .write(true)
        // The flag bypasses the kernel's page cache.
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut memory = vec![0x5a; PIECE_BYTES + ALIGNED];
    let start = memory.as_ptr().align_offset(ALIGNED);
    let piece = &mut memory[start..start + PIECE_BYTES];
    for (what, run) in CASES {
        if told {
            println!("bench: begin {way} {what}");
        }
        let (busy, begun) = (ticks()?, Instant::now());
        let bytes = run(&file, base, piece)?;
        let (took, busy) = (begun.elapsed().as_nanos(), ticks()? - busy);
        if told {
            println!("bench: end {way} {what} {bytes} {took} {busy}");
        }
    }
    Ok(())
}

/// Positions of a random measurement: always the same ones, in the same order.
fn places() -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_u32;
    (0..PLACES).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let place = (state >> 8) as usize % (RUN_BYTES / PLACE_BYTES);
        (place * PLACE_BYTES) as u64
    })
}

/// Hundredths of a second that processors were busy, including the kernel's threads.
fn ticks() -> SealedBenchResult<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let numbers: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|number| number.parse().ok())
        .collect();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    Ok(numbers.iter().sum::<u64>() - idle)
}
