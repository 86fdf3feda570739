//! Prints what a delta between two binaries takes: `measure OLD NEW`.
//!
//! Both are files as the initial file system has them at `/init`.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::time::Instant;

use alknet_delta::{FrameRecipe, NewProgram, OldProgram, apply_delta, make_delta};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<_> = env::args().skip(1).collect();
    let [old, new] = paths.as_slice() else {
        return Err("measure OLD NEW".into());
    };
    let (old, new) = (fs::read(old)?, fs::read(new)?);
    let recipe = FrameRecipe::INITRAMFS;
    let begun = Instant::now();
    let mut program = Vec::new();
    recipe.compress(&new, &mut program)?;
    println!(
        "compressed by {recipe}: {} bytes, {:.1?}",
        program.len(),
        begun.elapsed()
    );
    let base = OldProgram {
        program: b"",
        before: 0,
        init: &old,
    };
    let made = NewProgram {
        program: &program,
        frame: 0..program.len(),
        archive: &new,
        recipe,
    };
    let begun = Instant::now();
    let delta = make_delta(&base, &made)?;
    println!("delta: {} bytes, {:.1?}", delta.len(), begun.elapsed());
    let (before, begun) = (resident_kib("VmRSS:")?, Instant::now());
    // Linux forgets the largest size that the process had.
    fs::write("/proc/self/clear_refs", "5")?;
    apply_delta(&*delta, &base, program.len() as u64, &mut io::sink())?;
    let memory = resident_kib("VmHWM:")?.saturating_sub(before);
    println!("applied: {:.1?}, {memory} KiB", begun.elapsed());
    Ok(())
}

/// A line of the process's status, in KiB.
fn resident_kib(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let digits = line.and_then(|line| line.split_whitespace().next());
    Ok(digits.ok_or("no such line")?.parse()?)
}
