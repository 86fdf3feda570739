//! Tensor files: opening one and reading its first tensor, writing and verifying, beside the
//! safetensors crate on the same bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use alknet_tensor::{
    ContainerLimits, ContainerReader, ContainerWriter, Dtype, TensorContent, TensorError,
    VerifyDepth, verify,
};
use memmap2::Mmap;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StockDtype, TensorView};

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

use super::rows::{BenchRow, Goal, median};

const BENCH: &str = "tensor";
const OURS: &str = "alknet";
const PEER: &str = "safetensors";

const OPEN_INDEXED: &str = "open 10,000 entries, level 1";
const OPEN_PLAIN: &str = "open 10,000 entries, level 0";
const OPEN_LARGE: &str = "open 0.5 GB of 8 tensors, read a row";
const WRITE_HASHED: &str = "write with every hash";
const WRITE_PLAIN: &str = "write plain";
const VERIFY: &str = "verify every hash";
const HASH: &str = "the same bytes, hashed once in memory";
const COPY: &str = "the same bytes, copied in memory";

/// Entries of the file with many.
const MANY: u64 = 10_000;
/// Bytes of each of them.
const SMALL_BYTES: u64 = 64;
/// Bytes of each of the few entries of the large file.
const LARGE_BYTES: u64 = 64 << 20;
/// How many it has.
const LARGE: u64 = 8;
/// Opens of a small header that are timed together.
const OPENS: u64 = 100;

/// What opening 10,000 entries may take.
const OPEN_MS: f64 = 20.0;
/// What opening a large file with a small header may take.
const OPEN_LARGE_MS: f64 = 5.0;
/// What has to be written a second, sums included.
const WRITE_GB_S: f64 = 1.0;

/// Measures, each round one run of every case.
pub(super) fn run(_: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let folder = tempfile::tempdir().map_err(TaskError::io("make a folder"))?;
    let mut files = TensorBenchFiles::make(folder.path())?;
    let mut figures = TensorFigures::default();
    for _ in 0..rounds {
        for (case, file) in [(OPEN_INDEXED, &files.many), (OPEN_PLAIN, &files.many_plain)] {
            figures.run(case, OURS, || ours_first(file, 0).map(|()| 1))?;
            figures.run(case, PEER, || theirs_first(file, 0).map(|()| 1))?;
        }
        let often = |open: fn(&Path, u64) -> Result<()>| {
            let opened = (0..OPENS).try_for_each(|_| open(&files.large, 1));
            opened.map(|()| OPENS)
        };
        figures.run(OPEN_LARGE, OURS, || often(ours_first))?;
        figures.run(OPEN_LARGE, PEER, || often(theirs_first))?;
        let target = folder.path().join("written");
        let content = &files.content;
        figures.run(WRITE_HASHED, OURS, || {
            ours_write(ContainerWriter::new, &target, content)
        })?;
        figures.run(WRITE_PLAIN, OURS, || {
            ours_write(ContainerWriter::plain, &target, content)
        })?;
        figures.run(WRITE_PLAIN, PEER, || theirs_write(&target, content))?;
        figures.run(VERIFY, OURS, || ours_verify(&files.large))?;
        figures.run(HASH, OURS, || Ok(hash(content)))?;
        figures.run(COPY, OURS, || Ok(copy(content, &mut files.copied)))?;
    }
    Ok(figures.rows())
}

/// What is measured on.
struct TensorBenchFiles {
    many: std::path::PathBuf,
    many_plain: std::path::PathBuf,
    large: std::path::PathBuf,
    content: Vec<u8>,
    /// Where it is copied to.
    copied: Vec<u8>,
}

impl TensorBenchFiles {
    fn make(folder: &Path) -> Result<Self> {
        let content: Vec<u8> = (0..LARGE_BYTES).map(|at| (at * 31 % 251) as u8).collect();
        let [many, many_plain, large] =
            ["many.mt", "many.safetensors", "large.mt"].map(|name| folder.join(name));
        let small = &content[..SMALL_BYTES as usize];
        let all = |mut writer: ContainerWriter<'_, _>| {
            for at in 0..MANY {
                writer.flat(
                    format!("model.layers.{at}.weight"),
                    Dtype::F32,
                    &[SMALL_BYTES / 4],
                    small.to_vec().into(),
                )?;
            }
            writer.save()
        };
        let written = ContainerWriter::create(&many).and_then(all);
        written.map_err(failed("write a file of many"))?;
        let file = alknet_tensor::AtomicFile::create(&many_plain);
        let written = file.map(ContainerWriter::plain).and_then(all);
        written.map_err(failed("write a plain file of many"))?;
        ours_write(ContainerWriter::new, &large, &content)?;
        Ok(Self {
            many,
            many_plain,
            large,
            // Memory that was written before: else its page faults would be measured.
            copied: content.clone(),
            content,
        })
    }
}

/// Opens, and reads so many rows of the first tensor.
fn ours_first(path: &Path, rows: u64) -> Result<()> {
    let file = File::open(path).map_err(TaskError::io("open a tensor file"))?;
    let reader = ContainerReader::open(file, &ContainerLimits::default())
        .map_err(failed("read a header"))?;
    let first = reader.names().next().unwrap_or_default();
    let view = match rows {
        0 => reader.view(first),
        rows => reader.rows(first, 0..rows),
    };
    black_box(view.map_err(failed("read a tensor"))?.bytes());
    Ok(())
}

/// The same as the package's own example does it.
fn theirs_first(path: &Path, rows: u64) -> Result<()> {
    let file = File::open(path).map_err(TaskError::io("open a tensor file"))?;
    // SAFETY: no other process knows the folder.
    let bytes = unsafe { Mmap::map(&file) }.map_err(TaskError::io("map a tensor file"))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(stock)?;
    let names = tensors.names();
    let view = tensors.tensor(names.first().copied().unwrap_or_default());
    let view = view.map_err(stock)?;
    let bytes = match rows {
        0 => view.data(),
        rows => &view.data()[..view.data().len() / view.shape()[0] * rows as usize],
    };
    black_box(bytes.to_vec());
    Ok(())
}

fn shape() -> [u64; 2] {
    [LARGE_BYTES / 4096, 1024]
}

fn add<'a, W: std::io::Write + std::io::Seek>(
    writer: &mut ContainerWriter<'a, W>,
    content: &'a [u8],
) -> std::result::Result<(), TensorError> {
    for at in 0..LARGE {
        let content = TensorContent::from(content);
        writer.flat(format!("{at}"), Dtype::F32, &shape(), content)?;
    }
    Ok(())
}

/// Writes without waiting for the disk.
fn ours_write<'a>(
    begin: impl FnOnce(File) -> ContainerWriter<'a, File>,
    path: &Path,
    content: &'a [u8],
) -> Result<u64> {
    let file = File::create(path).map_err(TaskError::io("make a tensor file"))?;
    let mut writer = begin(file);
    let written = add(&mut writer, content).and_then(|()| writer.finish());
    Ok(written.map_err(failed("write"))?.0.file_len)
}

fn theirs_write(path: &Path, content: &[u8]) -> Result<u64> {
    let shape: Vec<usize> = shape().into_iter().map(|n| n as usize).collect();
    let tensors: std::result::Result<HashMap<_, _>, _> = (0..LARGE)
        .map(|at| {
            let view = TensorView::new(StockDtype::F32, shape.clone(), content)?;
            Ok((format!("{at}"), view))
        })
        .collect();
    let tensors = tensors.map_err(stock)?;
    safetensors::serialize_to_file(&tensors, None, path).map_err(stock)?;
    let written = fs::metadata(path).map_err(TaskError::io("look at a file"))?;
    Ok(written.len())
}

fn ours_verify(path: &Path) -> Result<u64> {
    let file = File::open(path).map_err(TaskError::io("open a tensor file"))?;
    let reader = ContainerReader::open(file, &ContainerLimits::default())
        .map_err(failed("read a header"))?;
    let report = verify(&reader, VerifyDepth::Hash, None).map_err(failed("verify"))?;
    match report.is_good() {
        true => Ok(report.bytes),
        false => Err(step("verify", format!("{:?}", report.problems))),
    }
}

/// What any program that hashes the file has to do, on one thread.
fn hash(content: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..LARGE {
        hasher.update(content);
    }
    black_box(hasher.finalize());
    LARGE * LARGE_BYTES
}

/// What any program that passes the bytes on has to do.
fn copy(content: &[u8], to: &mut [u8]) -> u64 {
    for _ in 0..LARGE {
        to.copy_from_slice(content);
        black_box(&mut *to);
    }
    LARGE * LARGE_BYTES
}

fn failed(what: &'static str) -> impl FnOnce(TensorError) -> TaskError {
    move |error| step(what, error.to_string())
}

fn stock(error: safetensors::SafeTensorError) -> TaskError {
    step("the safetensors crate", error.to_string())
}

fn step(what: &'static str, how: String) -> TaskError {
    TaskError::Step {
        what: what.into(),
        how,
        log: None,
    }
}

/// One run: seconds and seconds of processors, for each of what was done.
#[derive(Clone, Copy)]
struct TensorRun {
    wall: f64,
    cpu: f64,
}

/// Runs by case and by whose they are.
#[derive(Default)]
struct TensorFigures(HashMap<(&'static str, &'static str), Vec<TensorRun>>);

impl TensorFigures {
    /// Times `work`, which says how much it did.
    fn run(
        &mut self,
        case: &'static str,
        whose: &'static str,
        work: impl FnOnce() -> Result<u64>,
    ) -> Result<()> {
        let (begun, before) = (Instant::now(), cpu_seconds()?);
        let done = work()? as f64;
        let run = TensorRun {
            wall: begun.elapsed().as_secs_f64() / done,
            cpu: (cpu_seconds()? - before) / done,
        };
        self.0.entry((case, whose)).or_default().push(run);
        Ok(())
    }

    fn median(&self, case: &'static str, whose: &'static str, part: fn(&TensorRun) -> f64) -> f64 {
        let runs = self.0.get(&(case, whose)).into_iter().flatten();
        median(runs.map(part).collect())
    }

    fn rows(&self) -> Vec<BenchRow> {
        let mut rows = Vec::new();
        for (case, most_ms) in [
            (OPEN_INDEXED, Some(OPEN_MS)),
            (OPEN_PLAIN, None),
            (OPEN_LARGE, Some(OPEN_LARGE_MS)),
        ] {
            let both = |part| [OURS, PEER].map(|whose| self.median(case, whose, part) * 1e3);
            let [ours, theirs] = both(|run| run.wall);
            // Where no time is promised, it is to be no slower than the peer.
            let goal = most_ms.map_or(Goal::Ratio(1.0), Goal::Ours);
            rows.push(
                BenchRow::lower(BENCH, case, "ms", ours)
                    .beside(PEER, theirs)
                    .goal(goal),
            );
            let [ours, theirs] = both(|run| run.cpu);
            let row = BenchRow::lower(BENCH, case, "CPU ms", ours).beside(PEER, theirs);
            rows.push(row.goal(Goal::Ratio(1.0)));
        }
        for case in [WRITE_HASHED, WRITE_PLAIN, VERIFY, HASH, COPY] {
            let both = |part| [OURS, PEER].map(|whose| self.median(case, whose, part) * 1e9);
            let [ours, theirs] = both(|run| run.wall);
            let row = BenchRow::higher(BENCH, case, "GB/s", 1.0 / ours);
            let [cpu, their_cpu] = both(|run| run.cpu);
            let cpu = BenchRow::lower(BENCH, case, "CPU s/GB", cpu);
            match case {
                WRITE_HASHED => rows.extend([row.goal(Goal::Ours(WRITE_GB_S)), cpu]),
                WRITE_PLAIN => {
                    rows.extend([row.beside(PEER, 1.0 / theirs), cpu.beside(PEER, their_cpu)]);
                }
                _ => rows.extend([row, cpu]),
            }
        }
        rows
    }
}

/// Of this process, the kernel's part included.
pub(super) fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    let usage = usage.map_err(|errno| step("read the processor time", errno.to_string()))?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
