//! Tensor files: opening one and reading its first tensor, writing and verifying, beside the
//! safetensors crate on the same bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use alknet_tensor::{Content, Dtype, Limits, Reader, TensorError, Verify, Writer, verify};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StockDtype, TensorView};

use crate::context::Context;
use crate::failure::{Failure, Result};

use super::rows::{Goal, Row, median};

const BENCH: &str = "tensor";
const PEER: &str = "safetensors";

/// Entries of the file with many.
const MANY: u64 = 10_000;
/// Bytes of each of them.
const SMALL_BYTES: u64 = 64;
/// Bytes of each of the few entries of the large file.
const LARGE_BYTES: u64 = 64 << 20;
/// How many it has.
const LARGE: u64 = 8;
/// Opens of a small header that are timed together.
const OPENS: u32 = 100;

/// What opening 10,000 entries may take.
const OPEN_MS: f64 = 20.0;
/// What opening a large file with a small header may take.
const OPEN_LARGE_MS: f64 = 5.0;
/// What has to be written a second, sums included.
const WRITE_GB_S: f64 = 1.0;

/// Measures, each round one run of every case.
pub(super) fn run(_: &mut Context, rounds: usize) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir().map_err(Failure::io("make a folder"))?;
    let files = Files::make(folder.path())?;
    let mut figures = Figures::default();
    for _ in 0..rounds {
        for (name, file) in [("level 1", &files.many), ("level 0", &files.many_plain)] {
            let case = format!("open, 10,000 entries, {name}");
            figures.add(&case, "ours", timed(|| ours_first(file, 0))?.1);
            figures.add(&case, PEER, timed(|| theirs_first(file, 0))?.1);
        }
        let case = "open, 0.5 GB of 8 tensors, and a row";
        let (_, ours) = timed(|| (0..OPENS).try_for_each(|_| ours_first(&files.large, 1)))?;
        let (_, theirs) = timed(|| (0..OPENS).try_for_each(|_| theirs_first(&files.large, 1)))?;
        figures.add(case, "ours", ours / f64::from(OPENS));
        figures.add(case, PEER, theirs / f64::from(OPENS));
        let target = folder.path().join("written");
        let (bytes, seconds) = timed(|| ours_write(&target, &files.content))?;
        figures.add("write, hashed", "ours", gigabytes(bytes, seconds));
        let (bytes, seconds) = timed(|| ours_write_plain(&target, &files.content))?;
        figures.add("write, plain", "ours", gigabytes(bytes, seconds));
        let (bytes, seconds) = timed(|| theirs_write(&target, &files.content))?;
        figures.add("write, hashed", PEER, gigabytes(bytes, seconds));
        figures.add("write, plain", PEER, gigabytes(bytes, seconds));
        let (bytes, seconds) = timed(|| ours_verify(&files.large))?;
        figures.add("verify, every hash", "ours", gigabytes(bytes, seconds));
    }
    Ok(figures.rows())
}

/// What is measured on.
struct Files {
    many: std::path::PathBuf,
    many_plain: std::path::PathBuf,
    large: std::path::PathBuf,
    content: Vec<u8>,
}

impl Files {
    fn make(folder: &Path) -> Result<Self> {
        let content: Vec<u8> = (0..LARGE_BYTES).map(|at| (at * 31 % 251) as u8).collect();
        let [many, many_plain, large] =
            ["many.mt", "many.safetensors", "large.mt"].map(|name| folder.join(name));
        let small = &content[..SMALL_BYTES as usize];
        let all = |mut writer: Writer<'_, _>| {
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
        let written = Writer::create(&many).and_then(all);
        written.map_err(failed("write a file of many"))?;
        let file = alknet_tensor::AtomicFile::create(&many_plain);
        let written = file.map(Writer::plain).and_then(all);
        written.map_err(failed("write a plain file of many"))?;
        ours_write(&large, &content)?;
        Ok(Self {
            many,
            many_plain,
            large,
            content,
        })
    }
}

/// Opens, and reads so many rows of the first tensor.
fn ours_first(path: &Path, rows: u64) -> Result<()> {
    let file = File::open(path).map_err(Failure::io("open a tensor file"))?;
    let reader = Reader::open(file, &Limits::default()).map_err(failed("read a header"))?;
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
    let file = File::open(path).map_err(Failure::io("open a tensor file"))?;
    // SAFETY: nobody else knows the folder.
    let bytes = unsafe { Mmap::map(&file) }.map_err(Failure::io("map a tensor file"))?;
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
    writer: &mut Writer<'a, W>,
    content: &'a [u8],
) -> std::result::Result<(), TensorError> {
    for at in 0..LARGE {
        let content = Content::from(content);
        writer.flat(format!("{at}"), Dtype::F32, &shape(), content)?;
    }
    Ok(())
}

/// Writes without waiting for the disk.
fn ours_write(path: &Path, content: &[u8]) -> Result<u64> {
    let file = File::create(path).map_err(Failure::io("make a tensor file"))?;
    let mut writer = Writer::new(file);
    let written = add(&mut writer, content).and_then(|()| writer.finish());
    Ok(written.map_err(failed("write"))?.0.file_len)
}

fn ours_write_plain(path: &Path, content: &[u8]) -> Result<u64> {
    let file = File::create(path).map_err(Failure::io("make a tensor file"))?;
    let mut writer = Writer::plain(file);
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
    let written = fs::metadata(path).map_err(Failure::io("look at a file"))?;
    Ok(written.len())
}

fn ours_verify(path: &Path) -> Result<u64> {
    let file = File::open(path).map_err(Failure::io("open a tensor file"))?;
    let reader = Reader::open(file, &Limits::default()).map_err(failed("read a header"))?;
    let report = verify(&reader, Verify::Hash, None).map_err(failed("verify"))?;
    match report.is_good() {
        true => Ok(report.bytes),
        false => Err(step("verify", format!("{:?}", report.problems))),
    }
}

/// What `work` makes, and the seconds it took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let begun = Instant::now();
    let made = work()?;
    Ok((made, begun.elapsed().as_secs_f64()))
}

fn gigabytes(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / 1e9 / seconds
}

fn failed(what: &'static str) -> impl FnOnce(TensorError) -> Failure {
    move |error| step(what, error.to_string())
}

fn stock(error: safetensors::SafeTensorError) -> Failure {
    step("the safetensors crate", error.to_string())
}

fn step(what: &'static str, how: String) -> Failure {
    Failure::Step {
        what: what.into(),
        how,
        log: None,
    }
}

/// Runs by case and by whose they are.
#[derive(Default)]
struct Figures(HashMap<(String, &'static str), Vec<f64>>);

impl Figures {
    fn add(&mut self, case: &str, whose: &'static str, figure: f64) {
        let runs = self.0.entry((case.to_owned(), whose)).or_default();
        runs.push(figure);
    }

    fn of(&self, case: &str, whose: &'static str) -> f64 {
        let runs = self.0.get(&(case.to_owned(), whose));
        median(runs.cloned().unwrap_or_default())
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (case, goal) in [
            ("open, 10,000 entries, level 1", Goal::Ours(OPEN_MS)),
            ("open, 10,000 entries, level 0", Goal::Ratio(1.0)),
            (
                "open, 0.5 GB of 8 tensors, and a row",
                Goal::Ours(OPEN_LARGE_MS),
            ),
        ] {
            let [ours, theirs] = ["ours", PEER].map(|whose| self.of(case, whose) * 1000.0);
            let row = Row::lower(BENCH, case, "ms", ours).beside(PEER, theirs);
            rows.push(row.goal(goal));
        }
        for (case, goal) in [
            ("write, hashed", Some(Goal::Ours(WRITE_GB_S))),
            ("write, plain", None),
        ] {
            let [ours, theirs] = ["ours", PEER].map(|whose| self.of(case, whose));
            let row = Row::higher(BENCH, case, "GB/s", ours).beside(PEER, theirs);
            rows.push(match goal {
                Some(goal) => row.goal(goal),
                None => row,
            });
        }
        let case = "verify, every hash";
        rows.push(Row::higher(BENCH, case, "GB/s", self.of(case, "ours")));
        rows
    }
}
