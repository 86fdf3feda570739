//! Prints what a delta between two binaries takes: `measure OLD NEW`.
//!
//! Both are files as the initial file system has them at `/init`.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Instant;

use alknet_delta::{DeltaBase, FrameRecipe, NewProgram, OldProgram, apply_delta, make_delta};
use tempfile::NamedTempFile;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [old, new] => measure(old, new),
        [old, delta, bytes] => apply(old, delta, bytes.parse()?),
        _ => Err("measure OLD NEW".into()),
    }
}

fn measure(old: &str, new: &str) -> Result<(), Box<dyn Error>> {
    let (init, archive) = (fs::read(old)?, fs::read(new)?);
    let recipe = FrameRecipe::INITRAMFS;
    let begun = Instant::now();
    let mut program = Vec::new();
    recipe.compress(&archive, &mut program)?;
    let bytes = program.len();
    println!(
        "compressed by {recipe}: {bytes} bytes, {:.1?}",
        begun.elapsed()
    );
    let base = OldProgram {
        program: b"",
        before: 0,
        init: &init,
    };
    let made = NewProgram {
        program: &program,
        frame: 0..bytes,
        archive: &archive,
        recipe,
    };
    let begun = Instant::now();
    let delta = make_delta(&base, &made)?;
    println!("delta: {} bytes, {:.1?}", delta.len(), begun.elapsed());
    // What a machine needs is seen in a process that has made nothing.
    let mut file = NamedTempFile::new()?;
    file.write_all(&delta)?;
    let mut machine = Command::new(env::current_exe()?);
    let machine = machine.arg(old).arg(file.path()).arg(bytes.to_string());
    match machine.status()?.success() {
        true => Ok(()),
        false => Err("the delta does not apply".into()),
    }
}

/// The file `/init` of a machine.
struct InitFile(File);

impl DeltaBase for InitFile {
    fn program_bytes(&self) -> u64 {
        0
    }

    fn init_bytes(&self) -> u64 {
        self.0.metadata().map_or(0, |about| about.len())
    }

    fn read_program(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn read_init(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }
}

/// Applies a delta as a machine does.
fn apply(old: &str, delta: &str, bytes: u64) -> Result<(), Box<dyn Error>> {
    let base = InitFile(File::open(old)?);
    let (before, begun) = (resident_kib("VmRSS:")?, Instant::now());
    apply_delta(File::open(delta)?, &base, bytes, &mut io::sink())?;
    let memory = resident_kib("VmHWM:")?.saturating_sub(before);
    println!("applied: {:.1?}, {memory} KiB of memory", begun.elapsed());
    Ok(())
}

/// A line of the process's status, in KiB.
fn resident_kib(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let digits = line.and_then(|line| line.split_whitespace().next());
    Ok(digits.ok_or("no such line")?.parse()?)
}
