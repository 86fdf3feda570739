//! `alknet tensor`: commands over containers on the user's own computer.
//!
//! A [`LocalTensorVerb`] is the command as clap reads it; [`run`] carries it out with the functions of
//! [`alknet_tensor::tools`]. Files are read by offset and never mapped.

mod error;
mod glob;
mod progress;
mod values;
mod verbs;

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;

use alknet_tensor::tools::{
    self, ArrayFormat, ChangeKind, ContainerListing, DiffChange, KindRow, TensorRow,
};
use alknet_tensor::{
    AtomicFile, ContainerLimits, ContainerReader, SchemaLayouts, TensorError, TensorErrorCode,
    VerifyDepth, VerifyReport, WriteSummary, verify,
};
use serde_json::json;

pub use error::TensorCliError;
pub use glob::fits;
pub use progress::ByteProgress;
pub use verbs::{CatArgs, ConvertArgs, FormatArg, LayoutArgs, LocalTensorVerb, VerifyArgs};

use progress::CountedIo;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorCliOutcome {
    /// The command found nothing to report.
    Good,
    /// The command found problems or differences. Exit code 1.
    Found,
}

/// Runs the command and prints its result to `out`, as JSON if `json` is set.
///
/// # Errors
/// See [`TensorCliError`].
pub fn run(
    verb: LocalTensorVerb,
    json: bool,
    out: &mut dyn Write,
) -> Result<TensorCliOutcome, TensorCliError> {
    // A program reads JSON output; progress lines are for a person at a terminal.
    let shows_progress = !json && std::io::stderr().is_terminal();
    let cli = TensorCli {
        json,
        shows_progress,
    };
    match verb {
        LocalTensorVerb::Cat(args) => cli.cat(args, out),
        LocalTensorVerb::Convert(args) => cli.convert(&args, out),
        LocalTensorVerb::Diff { first, second } => cli.diff(&first, &second, out),
        LocalTensorVerb::Hash { file } => cli.hash(&file, out),
        LocalTensorVerb::List { file } => cli.ls(&file, out),
        LocalTensorVerb::Pack {
            folder,
            output,
            layout,
        } => cli.pack(&folder, &output, layout, out),
        LocalTensorVerb::Strip { input, output } => cli.strip(&input, &output, out),
        LocalTensorVerb::Verify(args) => cli.verify(&args, out),
    }
}

struct TensorCli {
    json: bool,
    shows_progress: bool,
}

impl TensorCli {
    fn open(
        &self,
        what: &'static str,
        file: &Path,
    ) -> Result<(ByteProgress, ContainerReader<CountedIo<File>>), TensorCliError> {
        let (progress, watched) = self.watched(what, file)?;
        let reader = ContainerReader::open(watched, &ContainerLimits::safetensors());
        let reader = reader.map_err(|error| match error.code() {
            TensorErrorCode::Io => error,
            // The parser's error alone does not say that the file may be no container at all.
            code => {
                let what = format!("{} is no tensor file: {}", file.display(), error.what());
                TensorError::new(code, what)
            }
        })?;
        Ok((progress, reader))
    }

    fn watched(
        &self,
        what: &'static str,
        path: &Path,
    ) -> Result<(ByteProgress, CountedIo<File>), TensorCliError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let what = format!(
                    "there is no file {} on this computer; 'alknet tensor pull' fetches one from a node",
                    path.display()
                );
                TensorError::new(TensorErrorCode::Io, what)
            }
            _ => TensorError::io(format_args!("open {}", path.display()), error),
        })?;
        let metadata = file.metadata().ok();
        if metadata.as_ref().is_some_and(fs::Metadata::is_dir) {
            let what = format!("{} is a folder: name a file in it", path.display());
            return Err(TensorCliError::Usage(what));
        }
        // Without a size the command still works, and its progress line has no percentage.
        let total = metadata.map(|metadata| metadata.len());
        let progress = ByteProgress::new(what, total, self.shows_progress);
        let watched = progress.watch(file);
        Ok((progress, watched))
    }

    fn cat(&self, args: CatArgs, out: &mut dyn Write) -> Result<TensorCliOutcome, TensorCliError> {
        let (_progress, reader) = self.open("cat", &args.file)?;
        if self.json {
            if args.npy {
                let what = "--npy is bytes and --json is text: take one of them";
                return Err(TensorCliError::Usage(what.to_owned()));
            }
            let values = values::values(&reader, &args.name, args.rows);
            let values = values.map_err(|error| error.about(&args.file))?;
            writeln!(out, "{values}")?;
        } else {
            // `sink` remembers an error of standard output, which ends the command otherwise than an error of the
            // file.
            let mut sink = OutputSink {
                inner: &mut *out,
                failed: None,
            };
            let written = tools::cat(&reader, &args.name, args.rows, args.npy, &mut sink);
            if let Some(error) = sink.failed {
                return Err(error.into());
            }
            written.map_err(|error| TensorCliError::from(error).about(&args.file))?;
        }
        // A full pipe or disk may fail here first, and the exit code must say so.
        out.flush()?;
        Ok(TensorCliOutcome::Good)
    }

    fn convert(
        &self,
        args: &ConvertArgs,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        let format = |given: Option<FormatArg>, path: &Path| match given {
            Some(given) => Ok(ArrayFormat::from(given)),
            None => ArrayFormat::from_path(path)
                .map_err(|error| TensorCliError::Usage(error.what().to_owned())),
        };
        let from = format(args.from, &args.input)?;
        let to = format(args.to, &args.output)?;
        let (progress, source) = self.watched("convert", &args.input)?;
        // A file without names gives its tensor the name of the file.
        let name = args.input.file_stem().and_then(|stem| stem.to_str());
        let limits = ContainerLimits::safetensors();
        let output = args.output.as_path();
        let converted = tools::convert_source(
            (source, name, from),
            (output, to),
            args.layout.into(),
            &limits,
        );
        converted.map_err(|error| TensorCliError::from(error).about(&args.input))?;
        drop(progress);
        self.made(output, None, out)
    }

    fn diff(
        &self,
        first: &Path,
        second: &Path,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        let (_progress, first) = self.open("diff", first)?;
        let (_progress, second) = self.open("diff", second)?;
        let changes = tools::diff(first.meta(), second.meta());
        if self.json {
            writeln!(out, "{}", json!({ "changes": changes }))?;
        } else {
            for change in &changes {
                writeln!(out, "{}", change_line(change))?;
            }
        }
        Ok(found(!changes.is_empty()))
    }

    fn hash(&self, file: &Path, out: &mut dyn Write) -> Result<TensorCliOutcome, TensorCliError> {
        let (progress, reader) = self.open("hash", file)?;
        let hashes = tools::hashes(&reader);
        let hashes = hashes.map_err(|error| TensorCliError::from(error).about(file))?;
        drop(progress);
        let hex = |hash: &alknet_tensor::Hash| hash.to_hex().to_string();
        if self.json {
            let tensors: serde_json::Map<_, _> = hashes
                .tensors
                .iter()
                .map(|(name, hash)| (name.clone(), hex(hash).into()))
                .collect();
            let all = json!({ "id": hashes.id.to_string(), "header": hex(&hashes.header),
                              "data": hex(&hashes.data), "tensors": tensors });
            writeln!(out, "{all}")?;
        } else {
            writeln!(out, "{}  (file)", hashes.id)?;
            writeln!(out, "{}  (header)", hashes.header)?;
            writeln!(out, "{}  (data)", hashes.data)?;
            for (name, hash) in &hashes.tensors {
                writeln!(out, "{hash}  {}", printable(name))?;
            }
        }
        Ok(TensorCliOutcome::Good)
    }

    fn ls(&self, file: &Path, out: &mut dyn Write) -> Result<TensorCliOutcome, TensorCliError> {
        let (_progress, reader) = self.open("ls", file)?;
        let listing = tools::list(&reader);
        if self.json {
            writeln!(out, "{}", json!(listing))?;
        } else {
            // A listing has one line for each tensor, so the lines are written in larger pieces.
            table(&listing, &mut BufWriter::new(&mut *out))?;
        }
        Ok(TensorCliOutcome::Good)
    }

    fn pack(
        &self,
        folder: &Path,
        output: &Path,
        layout: LayoutArgs,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        // The size of the output is not known before the folder was read.
        let progress = ByteProgress::new("pack", None, self.shows_progress);
        let sink = progress.watch(AtomicFile::create(output)?);
        let packed = tools::pack(folder, sink, layout.into());
        let (written, sink) = packed.map_err(|error| TensorCliError::from(error).about(folder))?;
        // The output gets its name only once it is complete.
        sink.into_inner().commit()?;
        drop(progress);
        self.made(output, Some(written), out)
    }

    fn strip(
        &self,
        input: &Path,
        output: &Path,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        let (progress, reader) = self.open("strip", input)?;
        let stripped = tools::strip(&reader, AtomicFile::create(output)?);
        let (written, file) = stripped.map_err(|error| TensorCliError::from(error).about(input))?;
        // The output gets its name only once it is complete.
        file.commit()?;
        drop(progress);
        self.made(output, Some(written), out)
    }

    fn verify(
        &self,
        args: &VerifyArgs,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        let level = match (args.full, args.meta) {
            (true, _) => VerifyDepth::Full,
            (false, true) => VerifyDepth::Meta,
            (false, false) => VerifyDepth::Hash,
        };
        let (progress, reader) = self.open("verify", &args.file)?;
        let report = verify(&reader, level, Some(&SchemaLayouts::default()));
        let report = report.map_err(|error| TensorCliError::from(error).about(&args.file))?;
        drop(progress);
        if self.json {
            writeln!(out, "{}", report_json(&report))?;
        } else {
            for problem in &report.problems {
                writeln!(out, "{problem}")?;
            }
            writeln!(out, "{}", report_line(&report))?;
        }
        Ok(found(!report.is_good()))
    }

    /// Prints what the command wrote: the id and the path, or the path alone for a format without an id.
    fn made(
        &self,
        path: &Path,
        written: Option<WriteSummary>,
        out: &mut dyn Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        if self.json {
            let file = path.to_string_lossy();
            let made = match written {
                Some(written) => json!({ "file": file, "id": written.id.to_string(),
                                         "bytes": written.file_len }),
                None => json!({ "file": file }),
            };
            writeln!(out, "{made}")?;
        } else {
            match written {
                Some(written) => writeln!(out, "{}  {}", written.id, path.display())?,
                None => writeln!(out, "wrote {}", path.display())?,
            }
        }
        Ok(TensorCliOutcome::Good)
    }
}

const fn found(something: bool) -> TensorCliOutcome {
    if something {
        TensorCliOutcome::Found
    } else {
        TensorCliOutcome::Good
    }
}

/// A name from a file as a terminal may show it: without characters that move the cursor, end a line or reverse the
/// direction of text (UAX #9).
fn printable(name: &str) -> String {
    let turns = |c: char| {
        matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
    };
    let shown = |c: char| -> String {
        if c.is_control() || turns(c) {
            c.escape_default().collect()
        } else {
            c.into()
        }
    };
    name.chars().map(shown).collect()
}

fn change_line(change: &DiffChange) -> String {
    let path = printable(&change.path);
    let op = match change.op {
        ChangeKind::Add => "add",
        ChangeKind::Remove => "remove",
        ChangeKind::Reshape => "reshape",
        ChangeKind::Retype => "retype",
    };
    let text = |side: &Option<String>| printable(side.as_deref().unwrap_or_default());
    match (&change.from, &change.to) {
        (Some(_), Some(_)) => {
            format!(
                "{op:8}{path}: {} -> {}",
                text(&change.from),
                text(&change.to)
            )
        }
        (from, None) => format!("{op:8}{path}: {}", text(from)),
        (None, to) => format!("{op:8}{path}: {}", text(to)),
    }
}

fn table(listing: &ContainerListing, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "level {}, {}, {} bytes, {} of them header",
        listing.level,
        tensor_count(listing.tensors.len() as u64),
        listing.file_len,
        listing.header_len
    )?;
    for (key, value) in &listing.metadata {
        writeln!(out, "{} = {}", printable(key), printable(value))?;
    }
    for tensor in &listing.tensors {
        writeln!(out, "{}", row(tensor))?;
    }
    out.flush()
}

fn row(tensor: &TensorRow) -> String {
    let what = match &tensor.kind {
        KindRow::Struct {
            stride,
            count,
            fields,
            ..
        } => format!(
            "struct [{count}] of {stride} bytes, {} fields",
            fields.len()
        ),
        KindRow::Blob { enc, count, .. } => format!("blob [{count}] of {}", printable(enc)),
        _ => format!("{} {:?}", printable(&tensor.dtype), tensor.shape),
    };
    let name = printable(&tensor.name);
    format!("{:>12}  {name}: {what}", tensor.bytes)
}

fn report_json(report: &VerifyReport) -> serde_json::Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|problem| json!({ "code": problem.code().as_str(), "message": problem.what() }))
        .collect();
    json!({ "good": report.is_good(), "hashes": report.hashes, "unhashed": report.unhashed,
            "bytes": report.bytes, "problems": problems })
}

fn report_line(report: &VerifyReport) -> String {
    let verdict = if report.is_good() { "good" } else { "not good" };
    format!(
        "{verdict}: {} hashes held against {} bytes, {} without a hash",
        report.hashes,
        report.bytes,
        tensor_count(report.unhashed)
    )
}

/// A number of tensors, in words.
fn tensor_count(n: u64) -> String {
    match n {
        1 => "1 tensor".to_owned(),
        n => format!("{n} tensors"),
    }
}

/// Standard output, whose errors are recorded apart from those of the file that is read.
struct OutputSink<'o> {
    inner: &'o mut dyn Write,
    failed: Option<std::io::Error>,
}

impl Write for OutputSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes);
        written.map_err(|error| {
            let kind = error.kind();
            // `write_all` repeats an interrupted write by itself.
            if kind != ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
