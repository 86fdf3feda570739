//! `alknet image write`: an image onto a disk of this computer.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, stderr, stdin};
use std::path::{Path, PathBuf};

use alknet_core::config::{CONFIG_BYTES_MAX, NodeConfig};
use alknet_image::{RegularFileError, open_regular_or_disk};
use alknet_image_write::{
    DiskFacts, DiskTarget, FlashOptions, FlashReport, FlashStep, ImageSource, PlacedFile,
    SystemFolders, flash,
};
use alknet_init::DRIVE_BYTES_MIN;
use alknet_provision_cli::{ControllingTerminal, WordsTerminal};
use alknet_provisioning::{configuration_part, has_install};
use alknet_tensor_cli::ByteProgress;
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::download::{ImageDownload, is_url};
use super::interrupt::InterruptNotice;
use super::named_stream::open_stream;
use super::{DISK_REFUSED, of_flash, read_own};
use crate::cli::confirmation::is_yes;
use crate::cli::{CommandError, CommandExit, output};

/// The source that is standard input.
const STDIN: &str = "-";
/// Where a machine looks for its configuration on the EFI system partition, and for what belongs to it.
const SEED_FILES: [&str; 3] = ["alknet.toml", "alknet/vault.words", "alknet/seed.key"];

/// Arguments of `alknet image write`.
#[derive(Debug, Args)]
pub(crate) struct ImageWriteArgs {
    /// The image: a file, a URL that begins with https:// or http://, or - for standard input; raw, or packed with
    /// Zstandard.
    source: String,
    /// The disk, for example /dev/sdb.
    disk: PathBuf,
    /// The configuration for the first boot: a file, or a folder that 'alknet provision --form esp' made.
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// The serial number of the disk. Without this option a person types it.
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// With --serial or --to-file: do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    /// The SHA-256 that the unpacked image must have. A disk with another one gets no partition table.
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<String>,
    /// Write to a regular file instead of a disk.
    #[arg(long)]
    to_file: bool,
}

/// Runs it.
pub(super) fn run(args: &ImageWriteArgs, json: bool) -> Result<CommandExit, CommandError> {
    let files = match &args.seed {
        Some(path) => seed(path)?,
        None => Vec::new(),
    };
    check_exists(&args.source)?;
    // A refusal of the disk should not cost a download.
    let target = target(args, json)?;
    let mut source = open(&args.source)?;
    target
        .check_fits(&source)
        .map_err(|error| of_flash(&error))?;
    if !files.is_empty() {
        source
            .check_takes_files()
            .map_err(|error| of_flash(&error))?;
    }
    if !args.to_file {
        confirm(args, target.facts(), json)?;
        // A person may take minutes.
        target.check_unchanged().map_err(|error| of_flash(&error))?;
    }
    let name = target.facts().name.clone();
    let text = format!(
        "interrupted: {name} has no partition table now, and boots nothing; write it again"
    );
    let notice = InterruptNotice::watch(text, json)?;
    let options = FlashOptions {
        sha256: args.sha256.clone(),
        files: &files,
    };
    let shown = !json && stderr().is_terminal();
    let mut progress = StepProgress::new(|what| ByteProgress::new(what, None, shown));
    let written = flash(&mut source, &target, &options, &mut |step| {
        if step == FlashStep::Finishing {
            notice.finishing();
        }
        progress.show(step);
    });
    drop(progress);
    let report = written.map_err(|error| of_flash(&error))?;
    show(&report, target.facts(), &files, args, json)?;
    Ok(CommandExit::Ok)
}

fn sha256(text: &str) -> Result<String, String> {
    let is_hash = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_hash {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a SHA-256 has 64 hexadecimal digits".to_owned()),
    }
}

fn target(args: &ImageWriteArgs, json: bool) -> Result<DiskTarget, CommandError> {
    let path = &args.disk;
    if !args.to_file {
        let opened = DiskTarget::disk(path, &SystemFolders::default());
        return opened.map_err(|error| of_flash(&error));
    }
    let has_content = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0);
    if has_content && !args.yes {
        let question = format!("Overwrite {}? [y/N] ", path.display());
        ask_yes(&question, args, json)?;
    }
    let opened = match args.seed {
        // A seed may have the words of a vault, so only the owner may read the file.
        Some(_) => DiskTarget::private_file(path),
        None => DiskTarget::file(path),
    };
    opened.map_err(|error| of_flash(&error))
}

/// Names an image that is not on this computer, before an error about the disk.
fn check_exists(source: &str) -> Result<(), CommandError> {
    if source == STDIN || is_url(source) {
        return Ok(());
    }
    // Opening a pipe and closing it again would end the program that writes to it.
    let found = fs::metadata(source);
    found.map(drop).map_err(|error| unreadable(source, &error))
}

fn unreadable(source: &str, error: &io::Error) -> CommandError {
    CommandError::usage(format!("cannot read {source}: {error}"))
}

fn open(source: &str) -> Result<ImageSource, CommandError> {
    let (from, bytes): (Box<dyn Read>, _) = if source == STDIN {
        (Box::new(stdin()), None)
    } else if is_url(source) {
        let (download, bytes) = ImageDownload::open(source)?;
        (Box::new(download), bytes)
    } else {
        let failed = |error| unreadable(source, &error);
        let file = open_named(source.as_ref()).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let bytes = found.is_file().then_some(found.len());
        (Box::new(file), bytes)
    };
    ImageSource::new(from, bytes).map_err(|error| of_flash(&error))
}

/// Opens a file or a disk. Another person may have put a link to a watchdog or a pipe at its path, so a pipe or a
/// character device is opened only where no other user can have put it.
fn open_named(path: &Path) -> io::Result<File> {
    match open_regular_or_disk(path) {
        Err(error @ RegularFileError::NotRegular) => {
            let stream = open_stream(path, File::options().read(true))?;
            stream.ok_or_else(|| error.into())
        }
        opened => opened.map_err(io::Error::from),
    }
}

/// The files of a seed: a document, or a folder with the names of the EFI system partition.
fn seed(path: &Path) -> Result<Vec<PlacedFile>, CommandError> {
    let found = fs::metadata(path);
    let is_folder = found.is_ok_and(|found| found.is_dir());
    let mut files = Vec::new();
    for name in SEED_FILES {
        let from = match is_folder {
            true => path.join(name),
            false => path.to_owned(),
        };
        let is_document = name == SEED_FILES[0];
        // A folder may lack the secrets, and a file is the document alone. A secret that cannot be reached is an error:
        // without it the machine would make other words.
        let is_missing = || {
            let found = fs::symlink_metadata(&from);
            found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        if !is_document && (!is_folder || is_missing()) {
            continue;
        }
        let content = Zeroizing::new(read_own(&from, CONFIG_BYTES_MAX as u64)?);
        if is_document {
            // The order would stay on this disk, and a later start from a medium could erase the disk by it.
            if has_install(&content) {
                return Err(CommandError::usage(format!(
                    "{} has the table [install], an order to write a disk: put the document on the medium that \
                     installs, or take the table out",
                    from.display()
                )));
            }
            // The machine would refuse it, on a console that this person may not see. It takes the secrets out first.
            let (configuration, mut mistakes) = configuration_part(&content);
            if let Err(errors) = NodeConfig::parse(&configuration) {
                mistakes.extend(errors.iter().map(ToString::to_string));
            }
            if !mistakes.is_empty() {
                let lines = mistakes.into_iter();
                return Err(CommandError::of_lines(CommandExit::Usage, "USAGE", lines));
            }
        }
        files.push(PlacedFile {
            path: name.to_owned(),
            content,
        });
    }
    Ok(files)
}

/// Makes sure that this is the disk that the person means.
fn confirm(args: &ImageWriteArgs, facts: &DiskFacts, json: bool) -> Result<(), CommandError> {
    let proof = facts.proof();
    let disk = facts.description();
    if let Some(serial) = &args.serial {
        if serial.trim() != proof {
            let text = format!("the serial number of {disk} is '{proof}', and not '{serial}'");
            return Err(CommandError::new(CommandExit::Denied, DISK_REFUSED, text));
        }
        let question = format!("Overwrite everything on {disk}? [y/N] ");
        return match args.yes {
            true => Ok(()),
            false => ask_yes(&question, args, json),
        };
    }
    let mut terminal = terminal(args, json).ok_or_else(|| {
        CommandError::usage(format!(
            "with --json or without a terminal the command cannot ask: give --serial with the serial number of {}, and --yes",
            facts.name
        ))
    })?;
    let what = match facts.serial.is_some() {
        true => "serial number",
        false => "model and size",
    };
    let shown = output::one_line(&disk).into_owned();
    let question = format!(
        "Everything on {shown} will be lost.\nThe {what} is: {}\nType it to go on: ",
        output::one_line(&proof)
    );
    let failed = |error| CommandError::usage(format!("cannot read the answer: {error}"));
    terminal.show(&question).map_err(failed)?;
    let typed = terminal.line().map_err(failed)?;
    match typed.is_some_and(|typed| typed.trim() == proof) {
        true => Ok(()),
        false => Err(not_confirmed()),
    }
}

/// The terminal at which a person sits. Standard input may be the image.
fn terminal(args: &ImageWriteArgs, json: bool) -> Option<ControllingTerminal> {
    let is_there =
        !json && stderr().is_terminal() && (args.source == STDIN || stdin().is_terminal());
    ControllingTerminal::open().filter(|_| is_there)
}

fn ask_yes(question: &str, args: &ImageWriteArgs, json: bool) -> Result<(), CommandError> {
    let Some(mut terminal) = terminal(args, json) else {
        return Err(CommandError::usage(
            "with --json or without a terminal the command cannot ask: give --yes",
        ));
    };
    let failed = |error| CommandError::usage(format!("cannot read the answer: {error}"));
    terminal.show(&output::one_line(question)).map_err(failed)?;
    let typed = terminal.line().map_err(failed)?.unwrap_or_default();
    match is_yes(&mut typed.as_bytes())? {
        true => Ok(()),
        false => Err(not_confirmed()),
    }
}

fn not_confirmed() -> CommandError {
    CommandError::new(
        CommandExit::Aborted,
        "ABORTED",
        "not confirmed: nothing was written",
    )
}

/// A line for each part of the work.
struct StepProgress<F> {
    /// Begins the line of a part with this name.
    begin: F,
    line: Option<(&'static str, ByteProgress)>,
}

impl<F: Fn(&'static str) -> ByteProgress> StepProgress<F> {
    const fn new(begin: F) -> Self {
        Self { begin, line: None }
    }

    fn show(&mut self, step: FlashStep) {
        let (what, bytes, total) = match step {
            FlashStep::Writing { bytes, total } => ("write", bytes, total.unwrap_or(0)),
            FlashStep::Reading { bytes, total } => ("read back", bytes, total),
            // Short, and the last: the line ends.
            _ => {
                self.line = None;
                return;
            }
        };
        // The line of the part before ends first.
        self.line = self.line.take().filter(|(part, _)| *part == what);
        let (_, line) = self.line.get_or_insert_with(|| (what, (self.begin)(what)));
        line.set(bytes, total);
    }
}

fn show(
    report: &FlashReport,
    facts: &DiskFacts,
    files: &[PlacedFile],
    args: &ImageWriteArgs,
    json: bool,
) -> Result<(), CommandError> {
    let placed: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let is_small = !args.to_file && facts.bytes < DRIVE_BYTES_MIN;
    if json {
        return output::json_line(&json!({
            "disk": facts.name,
            "serial": facts.serial,
            "bytes": report.bytes,
            "skipped": report.skipped,
            "sha256": report.sha256,
            "placed": placed,
            "partitions_known": report.partitions_known,
            "large_enough": !is_small,
        }));
    }
    output::line(&format!(
        "{}: {} bytes are written, and are the same when they are read back",
        facts.name, report.bytes
    ))?;
    output::line(&format!("SHA-256 {}", report.sha256))?;
    if !placed.is_empty() {
        output::line(&format!("placed: {}", placed.join(", ")))?;
    }
    if !report.partitions_known {
        output::note("alknet: the kernel does not know the new partitions; connect the disk again");
    }
    if is_small {
        output::note(&format!(
            "alknet: the disk has less than {DRIVE_BYTES_MIN} bytes, so a machine does not serve from it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::{Duration, Instant};

    use alknet_image::{ESP_BYTES, ESP_FIRST_LBA, LBA_BYTES};
    use alknet_init::SEALED_BYTES_MIN;
    use alknet_test_support::deadline;
    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_hash_is_read_in_either_case_and_nothing_else_is_one() {
        let digits = "0123456789abcdefABCDEF0123456789abcdefABCDEF0123456789abcdef0123";
        assert_eq!(sha256(digits), Ok(digits.to_ascii_lowercase()));
        for text in [
            "",
            "0123",
            &format!("{}g", &digits[1..]),
            &format!("{digits}0"),
        ] {
            assert!(sha256(text).is_err(), "{text}");
        }
    }

    /// What a person would see, while a progress line still writes it.
    #[derive(Clone, Default)]
    struct SharedOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl SharedOutput {
        fn text(&self) -> String {
            let bytes = self.0.lock().expect("no panic").clone();
            String::from_utf8(bytes).expect("text")
        }

        /// Waits until a line shows this.
        fn require(&self, shown: &str) {
            let limit = Instant::now() + deadline(Duration::from_secs(10));
            while !self.text().contains(shown) {
                assert!(Instant::now() < limit, "{shown} is not in {}", self.text());
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn writing_and_reading_back_have_a_line_each() {
        let out = SharedOutput::default();
        let mut progress = StepProgress::new(|what| {
            ByteProgress::with_output(what, None, Duration::ZERO, out.clone())
        });
        for (bytes, shown) in [
            (1_000_000, "write: 1 MB,  25 %"),
            (2_000_000, "write: 2 MB,  50 %"),
        ] {
            let total = Some(4_000_000);
            progress.show(FlashStep::Writing { bytes, total });
            out.require(shown);
        }
        let (bytes, total) = (3_000_000, 4_000_000);
        progress.show(FlashStep::Reading { bytes, total });
        out.require("read back: 3 MB,  75 %");
        progress.show(FlashStep::Placed);
        let text = out.text();
        let lines: Vec<_> = text.split('\n').collect();
        let [write, read, ""] = lines[..] else {
            panic!("each part has a line that ends: {text:?}");
        };
        assert!(write.starts_with("\rwrite: ") && read.starts_with("\rread back: "));
    }

    #[test]
    fn an_image_that_is_not_there_is_named() {
        for there in [STDIN, "https://example.org/alknet.raw", "."] {
            assert_eq!(check_exists(there), Ok(()), "{there}");
        }
        let absent = check_exists("gone.raw").expect_err("no such file").message;
        assert!(absent.starts_with("cannot read gone.raw: "), "{absent}");
    }

    /// The attack: another person has put a pipe, or a link to a watchdog, at the path of the image. The kernel reports
    /// each open of the pipe, so the test does not depend on what an open of it causes.
    #[test]
    fn what_another_user_may_have_put_at_the_path_of_an_image_is_not_opened() {
        let [shared, own] = [0o777, 0o700].map(|mode| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(folder.path(), mode).expect("it is ours");
            folder
        });
        let [pipe, link] = ["pipe", "link"].map(|name| shared.path().join(name));
        let own_link = own.path().join("link");
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        for link in [&link, &own_link] {
            symlink(&pipe, link).expect("the folder is ours");
        }
        let opened = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opened
            .add_watch(&pipe, AddWatchFlags::IN_OPEN)
            .expect("it is there");
        for path in [&pipe, &link, &own_link] {
            let source = path.to_str().expect("temporary paths are UTF-8");
            let refused = open(source).expect_err("another user may have put it there");
            assert!(
                refused.message.contains("another user may have put it"),
                "{refused}"
            );
            let events = opened.read_events().map(|events| events.len());
            assert_eq!(events, Err(Errno::EAGAIN), "{source}");
        }
        let refused = open_named(own.path()).expect_err("a folder").to_string();
        assert!(refused.contains("it is a folder"), "{refused}");
    }

    #[test]
    fn an_image_can_come_from_a_pipe_of_the_user_and_through_a_link() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(folder.path(), mode).expect("it is ours");
        let [pipe, file, link] = ["pipe", "file", "link"].map(|name| folder.path().join(name));
        mkfifo(&pipe, Mode::S_IRWXU).expect("the folder is ours");
        fs::write(&file, "12345").expect("the folder is ours");
        // With this writer no open waits.
        let mut options = File::options();
        let mut writer = options.read(true).write(true).open(&pipe).expect("a pipe");
        writer.write_all(b"12345").expect("it has room");
        for target in [&pipe, &file] {
            symlink(target, &link).expect("the folder is ours");
            let mut read = [0; 5];
            let mut opened = open_named(&link).expect("it is ours");
            opened.read_exact(&mut read).expect("readable");
            assert_eq!(&read, b"12345", "{}", target.display());
            fs::remove_file(&link).expect("it is there");
        }
    }

    /// What is before the data partition, the smallest partition with a vault, and the copy of the partition table.
    #[test]
    fn the_smallest_drive_has_room_for_a_vault() {
        const MIB: u64 = 1 << 20;
        let before = ESP_FIRST_LBA * LBA_BYTES + ESP_BYTES;
        let behind = 33 * LBA_BYTES;
        let needed = before + SEALED_BYTES_MIN + behind;
        assert_eq!(DRIVE_BYTES_MIN, needed.next_multiple_of(MIB));
    }

    #[test]
    fn a_seed_is_a_correct_document_with_the_secrets_of_its_folder() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let document = dir.path().join("alknet.toml");
        let text = "[node]\nname = \"edge-1\"\n[secrets]\nwords_passphrase = \"x\"\n";
        fs::write(&document, text).expect("writable");
        fs::create_dir(dir.path().join("alknet")).expect("creatable");
        fs::write(dir.path().join("alknet/seed.key"), "key").expect("writable");
        let names = |path: &Path| {
            let files = seed(path).expect("a seed");
            files.into_iter().map(|file| file.path).collect::<Vec<_>>()
        };
        assert_eq!(names(&document), ["alknet.toml"]);
        assert_eq!(names(dir.path()), ["alknet.toml", "alknet/seed.key"]);
        let words = dir.path().join("alknet/vault.words");
        symlink("gone", &words).expect("creatable");
        let refused = seed(dir.path()).expect_err("words that cannot be read");
        assert!(refused.message.contains("vault.words"), "{refused}");
        fs::remove_file(&words).expect("the link");
        fs::write(&document, "[node]\nnmae = \"edge-1\"\n").expect("writable");
        let refused = seed(&document).expect_err("a mistake");
        assert!(refused.message.contains("nmae"), "{refused}");
        assert!(seed(&dir.path().join("missing")).is_err());
    }

    /// The order would stay on the disk, and erase it at a later start from a medium.
    #[test]
    fn an_order_to_install_is_no_seed_of_a_disk() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let document = dir.path().join("alknet.toml");
        let node = "[node]\nname = \"edge-1\"\n";
        let order = "[install]\ndisk = \"S4EVNX0N\"\nerase = true\n";
        for text in [
            format!("{node}{order}"),
            format!("{node}[secrets]\nwords_passphrase = \"x\"\n{order}"),
            format!("install.disk = \"S4EVNX0N\"\n{node}"),
            format!("\u{feff}{node}{order}"),
        ] {
            fs::write(&document, &text).expect("writable");
            for from in [&document, dir.path()] {
                let refused = seed(from).expect_err(&text);
                assert!(
                    refused.message.contains("[install]") && refused.message.contains("medium"),
                    "{text}: {refused}"
                );
            }
        }
    }
}
