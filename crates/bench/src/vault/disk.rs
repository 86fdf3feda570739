//! Reading and writing a sealed partition on a machine: beside the same place of the same disk as it is,
//! and beside cryptsetup's own mapping of the same partition, with the same key, in the same minutes.
//! Under emulation the figures are the emulator's, and only their ratios say something; the instructions
//! of the guest say it without noise.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_qemu::{Accel, ConsoleLine, MachineKind, VirtioDisk, Vm, blank};

use super::{BENCH, MEGA};
use crate::rows::{BenchRow, Goal, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::kernel;

/// The guest's program, which says what it measures.
const PROGRAM: &str = "sealed_bench";
/// Path of Debian's OpenSSL.
const OPENSSL: &str = "/usr/bin/openssl";
/// What its last line begins with.
const ENDS: &str = "sealed bench: ";
/// Bytes of the disk: header and what is measured, and no more.
const DISK_BYTES: u64 = 96 << 20;
/// Longest run, for each round.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// What the unsealed way is called in rows.
const UNSEALED: &str = "the same, not sealed";
const PEER: &str = "cryptsetup's mapping";
const CIPHER: &str = "AES-XTS in memory (OpenSSL)";
/// Of the cipher in memory, for what goes from one end to the other.
const OF_CIPHER: f64 = 0.8;
/// Two that do the same differ by so much from run to run.
const NO_SLOWER: f64 = 0.97;
const NO_DEARER: f64 = 1.03;

/// A measurement: as the guest calls it, and for people.
const CASES: [(&str, &str); 4] = [
    ("write", "machine: write 64 MiB by 1 MiB"),
    ("read", "machine: read 64 MiB by 1 MiB"),
    ("random-write", "machine: write 4 KiB, 2048 places"),
    ("random-read", "machine: read 4 KiB, 2048 places"),
];

/// One measurement of one way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct DiskFigure {
    mb_s: f64,
    /// Hundredths of a second that the processor was busy, of those that passed.
    busy: f64,
    /// For each megabyte.
    minsn: Option<f64>,
}

type Figures = BTreeMap<(String, String), Vec<DiskFigure>>;

/// Measures in two machines: by the clock, then counted.
pub(super) fn rows(cx: &XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let scratch = tempfile::tempdir().map_err(TaskError::io("make a folder for the benchmark"))?;
    let kernel = kernel::ensure(cx)?;
    let initrd = initramfs(&program(cx)?, scratch.path())?;
    let boot = |counted: bool| -> Result<Figures> {
        let disk = scratch
            .path()
            .join(if counted { "counted" } else { "timed" });
        blank(&disk, DISK_BYTES)?;
        let builder = Vm::builder(MachineKind::Microvm)
            .kernel(&kernel.vmlinux)
            .initrd(&initrd)
            .append(format!("console=ttyS0 quiet panic=10 rounds={rounds}"))
            .disk(VirtioDisk::file(disk));
        let builder = match counted {
            true => builder.accel(Accel::Tcg).count_instructions(),
            false => builder,
        };
        let vm = builder.start()?;
        // One more for the boot.
        let within = ROUND_WITHIN * u32::try_from(rounds + 1).unwrap_or(u32::MAX);
        let end = vm.wait_line(ENDS, within)?;
        // Else the line says what failed.
        if !end.text.ends_with("done") {
            return Err(said(&end.text));
        }
        Ok(figures(&vm.console().lines()))
    };
    let (timed, counted) = (boot(false)?, boot(true)?);
    Ok(rows_of(&timed, &counted))
}

fn rows_of(timed: &Figures, counted: &Figures) -> Vec<BenchRow> {
    let middle = |figures: &Figures, way: &str, what: &str, of: fn(&DiskFigure) -> Option<f64>| {
        let found = figures.get(&(way.to_owned(), what.to_owned()));
        median(found.into_iter().flatten().filter_map(of).collect())
    };
    let mut rows = Vec::new();
    for (what, case) in CASES {
        let rate = |way| middle(timed, way, what, |figure| Some(figure.mb_s));
        let cost = |way| middle(counted, way, what, |figure| figure.minsn);
        let busy = |way| middle(timed, way, what, |figure| Some(figure.busy));
        let speed = |name, peer| {
            BenchRow::higher(BENCH, case, "MB/s", rate("ours")).beside(name, rate(peer))
        };
        let work = |name, peer| {
            BenchRow::lower(BENCH, case, "M instr/MB", cost("ours")).beside(name, cost(peer))
        };
        // At random places it is requests that cost, and little the cipher.
        if !what.starts_with("random") {
            let alone = middle(timed, "cipher", "", |figure| Some(figure.mb_s));
            let row = BenchRow::higher(BENCH, case, "MB/s", rate("ours")).beside(CIPHER, alone);
            rows.push(row.goal(Goal::Ratio(OF_CIPHER)));
        }
        rows.extend([
            speed(PEER, "cryptsetup").goal(Goal::Ratio(NO_SLOWER)),
            speed(UNSEALED, "unsealed"),
            work(PEER, "cryptsetup").goal(Goal::Ratio(NO_DEARER)),
            work(UNSEALED, "unsealed"),
            BenchRow::lower(BENCH, case, "busy", busy("ours")).beside(PEER, busy("cryptsetup")),
        ]);
    }
    rows
}

/// What the guest's lines say.
fn figures(lines: &[ConsoleLine]) -> Figures {
    let mut figures = Figures::new();
    let mut begun = None;
    for line in lines {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        match words[..] {
            ["bench:", "begin", ..] => begun = line.instructions,
            ["bench:", "end", way, what, bytes, nanoseconds, ticks] => {
                let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
                let megabytes = number(bytes) / MEGA;
                let seconds = number(nanoseconds) / 1e9;
                // Each count is for one end: where a line was lost, the one before it says nothing.
                let since = line.instructions.zip(begun.take());
                let key = (way.to_owned(), what.to_owned());
                figures.entry(key).or_default().push(DiskFigure {
                    mb_s: megabytes / seconds,
                    busy: number(ticks) / 100.0 / seconds,
                    minsn: since.map(|(end, begin)| (end - begin) as f64 / MEGA / megabytes),
                });
            }
            ["bench:", "cipher", rate] => {
                let rate: f64 = rate.parse().unwrap_or(f64::NAN);
                let key = ("cipher".to_owned(), String::new());
                figures.entry(key).or_default().push(DiskFigure {
                    mb_s: rate / MEGA,
                    busy: 1.0,
                    minsn: None,
                });
            }
            _ => {}
        }
    }
    figures
}

/// The guest's program, built now.
fn program(cx: &XtaskContext) -> Result<PathBuf> {
    let mut cargo = cx.cargo("build");
    cargo.args([
        "--release",
        "--locked",
        "-p",
        "alknet-sealed",
        "--example",
        PROGRAM,
    ]);
    cx.run(
        &mut cargo,
        "build the guest of the benchmark",
        "bench-vault",
    )?;
    Ok(cx.executable(&format!("examples/{PROGRAM}")))
}

/// The program as PID 1, and stock cryptsetup and OpenSSL with every library that they need.
fn initramfs(program: &Path, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    for name in ["dev", "proc", "run", "sys", "usr/sbin"] {
        fs::create_dir_all(root.join(name)).map_err(TaskError::io("make the guest's folders"))?;
    }
    let cryptsetup = ["/usr/sbin/cryptsetup", "/sbin/cryptsetup"];
    let cryptsetup = cryptsetup.into_iter().find(|path| Path::new(path).exists());
    let cryptsetup = cryptsetup.ok_or_else(|| {
        TaskError::Arguments("cryptsetup is missing: install the package cryptsetup-bin".into())
    })?;
    take(Path::new(cryptsetup), &root.join("usr/sbin/cryptsetup"))?;
    let openssl = Path::new(OPENSSL);
    take(openssl, &root.join("usr/bin/openssl"))?;
    take(program, &root.join("init"))?;
    let output = Command::new("ldd").arg(cryptsetup).arg(openssl).output();
    let output = output.map_err(TaskError::io("run ldd (install libc-bin)"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for library in text
        .split_whitespace()
        // Of several programs each is named first.
        .filter(|word| !word.ends_with(':'))
        .filter_map(|word| word.strip_prefix('/'))
    {
        take(&Path::new("/").join(library), &root.join(library))?;
    }
    let archive = folder.join("initrd");
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""])
        .arg(&archive)
        .current_dir(&root)
        .stdin(Stdio::null())
        .status()
        .map_err(TaskError::io("run cpio (install the package cpio)"))?;
    match status.success() {
        true => Ok(archive),
        false => Err(said(&format!("cpio: {status}"))),
    }
}

fn take(from: &Path, to: &Path) -> Result<()> {
    let made = to.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::copy(from, to).map(drop))
        .map_err(TaskError::io(format!("copy {}", from.display())))
}

fn said(how: &str) -> TaskError {
    TaskError::Step {
        what: "the machine of the benchmark".into(),
        how: how.to_owned(),
        log: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, instructions: Option<u64>) -> ConsoleLine {
        ConsoleLine {
            at: Duration::ZERO,
            cpu: Duration::ZERO,
            instructions,
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_guest_s_lines_are_read() {
        let lines = [
            line("bench: kernel 6.18", None),
            line("bench: begin ours read", Some(1_000_000)),
            line(
                "bench: end ours read 2000000 1000000000 50",
                Some(5_000_000),
            ),
            line("bench: cipher 3000000", None),
        ];
        let figures = figures(&lines);
        let found = &figures[&("ours".to_owned(), "read".to_owned())];
        let expected = DiskFigure {
            mb_s: 2.0,
            busy: 0.5,
            minsn: Some(2.0),
        };
        assert_eq!(found, &[expected]);
        let cipher = &figures[&("cipher".to_owned(), String::new())];
        assert_eq!(cipher[0].mb_s, 3.0);
    }

    #[test]
    fn every_case_has_its_rows() {
        let figure = DiskFigure {
            mb_s: 1.0,
            busy: 1.0,
            minsn: Some(1.0),
        };
        let mut all = Figures::new();
        for way in ["ours", "unsealed", "cryptsetup"] {
            for (what, _) in CASES {
                all.insert((way.to_owned(), what.to_owned()), vec![figure]);
            }
        }
        all.insert(("cipher".to_owned(), String::new()), vec![figure]);
        let rows = rows_of(&all, &all);
        assert_eq!(rows.len(), CASES.len() * 5 + 2);
        assert!(rows.iter().all(|row| row.ratio == Some(1.0)));
    }
}
