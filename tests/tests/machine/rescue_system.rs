//! Debian's network installer as the rescue system of a rented machine. A person at the installer's shell types the
//! commands of the page, which fetch the program and write an image from a server to a drive. The machine then starts
//! from this drive by its own BIOS.
//!
//! The installer's initial file system has drivers for USB drives and for no others, so the drives are on USB.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{
    Accel, ConsoleMark, DiskController, MachineKind, Nic, VirtioDisk, Vm, VmBuilder, content,
};
use alknet_test_support::skipped;
use alknet_tests::tools::{RAW_DATA_AT, tool, tool_says, variable};
use alknet_tests::{BuiltImageFolder, FileServer, MachineNode, TestBench, binary, eventually};
use serde_json::json;

use super::forms::{built, has_data, run_commands, serving, shell_blocks};

const PAGE: &str = include_str!("../../../docs/deploy-rescue.md");
/// The sections of the page whose commands are typed in the rescue system.
const INSTALLER: &str = "## Debian's installer as the rescue system\n";
const WITH_PROGRAM: &str = "### With the program\n";
/// The server and the hashes of the page: of the unpacked image, of the program and of the document.
const SERVER: &str = "https://example.org/";
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const PROGRAM_HASH: &str = "SHA256_OF_ALKNET";
const DOCUMENT_HASH: &str = "SHA256_OF_NODE_TOML";
/// The packed image and the document, as the page calls them.
const SERVED: [&str; 2] = ["alknet.raw.zst", "node.toml"];

/// The drive that is written, and its serial number.
const DRIVE_BYTES: u64 = 2 << 30;
const SERIAL: &str = "S4EVNX0N";
/// A drive that is too small for the image, and its serial number.
const SMALL_BYTES: u64 = 64 << 20;
const SMALL_SERIAL: &str = "S0SMALL0";
/// The beginning of a written disk that has the partition table, in bytes.
const HEAD_BYTES: u64 = 1 << 20;

/// The installer keeps its own files of 131 MB, and the program, in half of the memory.
const MEMORY_MIB: u32 = 768;
/// In the place of the installer's own list of programs: its shell at the serial line, as the installer starts one at
/// the second console, without the menu.
const INITTAB: &str = "ttyS0::respawn:-/bin/sh\n::shutdown:/bin/umount -a -r\n";
/// What the shell says when it starts.
const SHELL: &str = "built-in shell (ash)";
/// Prints the status of the command before it. The shell shows what is typed, which must not look like the result.
const REPORT: &str = "echo \"en\"\"ded=$?.\"";

/// Exit codes of docs/command-line.md.
const DENIED: i32 = 4;
const ABORTED: i32 = 130;

/// Time from power-on until the installer's shell reads.
const SHELL_WITHIN: Duration = Duration::from_secs(60);
/// Time for a command, and for one that writes the drive and reads it back.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);
const WRITTEN_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn an_image_is_written_in_debians_installer_and_starts() {
    let bench = TestBench::new();
    let served = prepare(&bench);
    let server = FileServer::start(&served);
    let [drive, small] = [("drive", DRIVE_BYTES), ("small", SMALL_BYTES)]
        .map(|(name, bytes)| bench.disk(name, bytes));
    let mut rescue = RescueShell::start(&bench, &drive, &small);
    let names = rescue.names();
    let hashes = [&binary(), &served.join(SERVED[1])].map(|path| sha256(path));
    let page = |text: &str| {
        let url = format!("http://10.0.2.2:{}/", server.port());
        text.replace(SERVER, &url)
            .replace(HASH, &raw_sha256())
            .replace(PROGRAM_HASH, &hashes[0])
            .replace(DOCUMENT_HASH, &hashes[1])
            .replace("/dev/sdX", &format!("/dev/{}", names.drive))
    };
    for line in commands(INSTALLER) {
        rescue.succeed(&line);
    }
    let lines = commands(WITH_PROGRAM);
    let (write, fetch) = lines.split_last().expect("the page has commands");
    for line in fetch {
        rescue.succeed(&page(line));
    }
    let write = page(write);
    compares(&rescue, &write, &drive);
    declines(&rescue, &write, &drive);
    writes(&rescue, &write, &names.drive);
    refuses(&rescue, &write, &names, &small);
    rescue.power_off();

    is_the_image(&bench, &drive, &served);
    starts(&bench, &drive);
}

/// The page's commands on the owner's computer. Returns the folder that a server gives to the rescue system.
fn prepare(bench: &TestBench) -> PathBuf {
    let image = built(ImageForm::Raw, OutputRole::Disk);
    let admin = format!("--admin {} --form esp", bench.admin().identity());
    let first = shell_blocks(PAGE)[0];
    let first = first
        .replace("out/alknet_VERSION.raw", &image.display().to_string())
        // The key of the command line that calls the machine below.
        .replace("--form esp", &admin);
    run_commands(bench.path(), &first);
    let folder = bench.path().join("served");
    fs::create_dir(&folder).expect("the folder is ours");
    for name in SERVED {
        fs::rename(bench.path().join(name), folder.join(name)).expect("the page made it");
    }
    symlink(binary(), folder.join("alknet")).expect("the folder is ours");
    folder
}

/// The lines of the first block for a shell in a section of the page.
fn commands(section: &str) -> Vec<String> {
    let (_, rest) = PAGE.split_once(section).expect("the section is there");
    let block = rest
        .split("```bash\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let block = block.expect("the section has commands");
    let lines = block.replace("\\\n", "");
    lines.lines().map(str::to_owned).collect()
}

/// The SHA-256 of the raw disk, in the manifest.
fn raw_sha256() -> String {
    let outputs = &BuiltImageFolder::get().manifest().outputs;
    let mut outputs = outputs.iter();
    let raw = outputs.find(|it| it.form == ImageForm::Raw && it.role == OutputRole::Disk);
    raw.expect("the disk was built").sha256.clone()
}

/// The SHA-256 of a file, as the owner's computer prints it.
fn sha256(path: &Path) -> String {
    let said = tool_says("sha256sum", &[path]);
    said.split(' ').next().unwrap_or_default().to_owned()
}

/// A document that was changed on its way ends the command before the image is asked for.
fn compares(rescue: &RescueShell, write: &str, drive: &Path) {
    rescue.succeed("cp node.toml own.toml && echo '# x' >>node.toml");
    let (status, said) = rescue.run(write, COMMAND_WITHIN);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("node.toml: FAILED"), "{said}");
    assert!(!said.contains("will be lost"), "{said}");
    assert!(is_blank(drive), "{said}");
    rescue.succeed("mv own.toml node.toml");
}

/// Another text than the serial number is no confirmation.
fn declines(rescue: &RescueShell, write: &str, drive: &Path) {
    let mark = rescue.question(write);
    let (status, said) = rescue.answer(mark, "yes");
    assert_eq!(status, ABORTED, "{said}");
    assert!(
        said.contains("not confirmed: nothing was written"),
        "{said}"
    );
    assert!(is_blank(drive), "{said}");
}

/// The command shows the drive, asks for its serial number, writes, shows progress, and reads back.
fn writes(rescue: &RescueShell, write: &str, name: &str) {
    let mark = rescue.question(write);
    let asked = rescue.vm.console().since(mark);
    for words in [
        format!("Everything on {name} (QEMU "),
        format!(", {DRIVE_BYTES} bytes) will be lost."),
        format!("The serial number is: {SERIAL}"),
    ] {
        assert!(asked.contains(&words), "{words}: {asked}");
    }
    let (status, said) = rescue.answer(mark, SERIAL);
    assert_eq!(status, 0, "{said}");
    let bytes = raw_bytes();
    for words in [
        format!("{name}: {bytes} bytes are written, and are the same when they are read back"),
        format!("SHA-256 {}", raw_sha256()),
        "placed: alknet.toml".to_owned(),
    ] {
        assert!(said.contains(&words), "{words}: {said}");
    }
    // The kernel read the new table, and the installer's udev made the devices.
    assert!(!said.contains("the kernel does not know"), "{said}");
    if rescue.vm.accel() == Accel::Kvm {
        let why = "progress is shown after two seconds, which a real processor may not need";
        return skipped("emulated processor", why);
    }
    // Most of the image is zeros, which are read back in less than two seconds.
    for words in ["write: ", " %"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// A mounted drive and a drive that is too small are refused by their names, also with the confirmation.
fn refuses(rescue: &RescueShell, write: &str, names: &DriveNames, small: &Path) {
    let DriveNames { drive, small: name } = names;
    rescue.succeed(&format!("mount -t vfat /dev/{drive}2 /mnt"));
    let (status, said) = rescue.run(&format!("{write} --serial {SERIAL} --yes"), COMMAND_WITHIN);
    assert_eq!(status, DENIED, "{said}");
    let refusal = format!("{drive} is mounted at /mnt; unmount it first");
    assert!(said.contains(&refusal), "{said}");
    rescue.succeed("umount /mnt");

    let write = write.replace(&format!("/dev/{drive}"), &format!("/dev/{name}"));
    let confirmed = format!("{write} --serial {SMALL_SERIAL} --yes");
    let (status, said) = rescue.run(&confirmed, COMMAND_WITHIN);
    assert_eq!(status, DENIED, "{said}");
    let needed = raw_bytes();
    let refusal =
        format!("{name} is too small: the image needs {needed} bytes, and it has {SMALL_BYTES}");
    assert!(said.contains(&refusal), "{said}");
    assert!(is_blank(small), "{said}");
}

fn is_blank(drive: &Path) -> bool {
    content(drive)
        .unwrap_or_else(|error| panic!("{error}"))
        .is_empty()
}

fn raw_bytes() -> u64 {
    let raw = fs::metadata(built(ImageForm::Raw, OutputRole::Disk));
    raw.expect("it was built").len()
}

/// Programs of other authors compare the drive with the image: all bytes but those of the EFI system partition, and
/// there the files.
fn is_the_image(bench: &TestBench, drive: &Path, served: &Path) {
    let raw = built(ImageForm::Raw, OutputRole::Disk);
    let [raw, drive] = [&raw, drive].map(|path| path.display().to_string());
    let behind = raw_bytes() - RAW_DATA_AT;
    for (from, bytes) in [(0, HEAD_BYTES), (RAW_DATA_AT, behind)] {
        let [from, bytes] = [from, bytes].map(|it| it.to_string());
        tool_says("cmp", &["-i", &from, "-n", &bytes, &raw, &drive]);
    }
    let listed = |disk: &str| {
        let partition = format!("{disk}@@1M");
        let said = tool_says("mdir", &["-/", "-b", "-i", &partition, "::"]);
        let mut names: Vec<String> = said.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    let (files, shipped) = (listed(&drive), listed(&raw));
    let added = files.iter().filter(|name| !shipped.contains(*name));
    assert_eq!(added.collect::<Vec<_>>(), ["::/alknet.toml"], "{files:?}");
    assert_eq!(files.len(), shipped.len() + 1, "{files:?}");
    for name in shipped.iter().filter(|name| !name.ends_with('/')) {
        let file = |disk: &str| tool("mtype", &["-i", &format!("{disk}@@1M"), name]).stdout;
        assert!(file(&drive) == file(&raw), "{name}");
    }
    let document = fs::read_to_string(served.join(SERVED[1])).expect("the page made it");
    let partition = format!("{drive}@@1M");
    assert_eq!(
        tool_says("mtype", &["-i", &partition, "::alknet.toml"]),
        document
    );
    is_clean_fat(bench, Path::new(&drive));
}

/// fsck.vfat reads the EFI system partition of the drive.
fn is_clean_fat(bench: &TestBench, drive: &Path) {
    let partition = bench.path().join("esp");
    let [from, to] = [drive, &partition].map(|path| path.display().to_string());
    let mib = (RAW_DATA_AT >> 20) - 1;
    let copy = format!("if={from} of={to} bs=1M skip=1 count={mib} conv=sparse");
    let copy: Vec<&str> = copy.split(' ').collect();
    tool_says("dd", &copy);
    tool_says("fsck.vfat", &["-n", &to]);
    fs::remove_file(partition).expect("ours");
}

/// The machine starts from the drive by a BIOS and GRUB, has the configuration of the document, and makes its data
/// partition. The partition table is right for another author's program afterwards.
fn starts(bench: &TestBench, drive: &Path) {
    let disk = VirtioDisk::file(drive).on(DiskController::UsbStorage);
    let vm = Vm::builder(MachineKind::Q35)
        .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
        .disk(disk.serial(SERIAL))
        .nic(Nic::user());
    let node: MachineNode = serving(bench, vm);
    let info = node.info();
    assert_eq!(info["name"], "edge-1", "{info:#}");
    assert_eq!(info["config"]["source"], "alknet.toml (sda2)", "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    has_data(&info, "/dev/sda3", DRIVE_BYTES);
    node.end();
    let verdict = tool_says("sgdisk", &["-v".as_ref(), drive.as_os_str()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
}

/// The kernel's names of the drives.
struct DriveNames {
    drive: String,
    small: String,
}

/// The installer on a machine with both drives, and its shell at the serial line.
struct RescueShell {
    vm: Vm,
}

impl RescueShell {
    fn start(bench: &TestBench, drive: &Path, small: &Path) -> Self {
        let usb = |path: &Path, serial: &str| {
            let disk = VirtioDisk::file(path).on(DiskController::UsbStorage);
            disk.serial(serial)
        };
        // The probe of the accelerator knows how long the kernel of the image takes, and not how long this one does.
        let kernel = built(ImageForm::Direct, OutputRole::Kernel);
        let accel = Accel::detect(Some(&kernel)).unwrap_or_else(|error| panic!("{error}"));
        let installer = PathBuf::from(variable("ALKNET_TEST_INSTALLER"));
        let vm: VmBuilder = Vm::builder(MachineKind::Q35)
            .accel(accel)
            .kernel(installer.join("linux"))
            .initrd(initial_file_system(bench, &installer))
            .memory_mib(MEMORY_MIB)
            .append("console=ttyS0 quiet")
            .disk(usb(drive, SERIAL))
            .disk(usb(small, SMALL_SERIAL))
            .nic(Nic::user());
        let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
        let rescue = Self { vm };
        rescue.wait(ConsoleMark::default(), SHELL, SHELL_WITHIN);
        rescue
    }

    fn wait(&self, mark: ConsoleMark, text: &str, limit: Duration) -> ConsoleMark {
        let waited = self.vm.wait_for_after(mark, text, limit);
        waited.unwrap_or_else(|error| panic!("{error}"))
    }

    fn type_line(&self, line: &str) {
        let sent = self.vm.console().send(&format!("{line}\r"));
        sent.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Types a command. Returns its exit status, and what the console showed.
    fn run(&self, command: &str, limit: Duration) -> (i32, String) {
        let mark = self.vm.console().mark();
        self.type_line(&format!("{command}; {REPORT}"));
        self.ended(mark, limit)
    }

    fn ended(&self, mark: ConsoleMark, limit: Duration) -> (i32, String) {
        let status = self.wait(mark, "ended=", limit);
        self.wait(status, ".", COMMAND_WITHIN);
        let console = self.vm.console();
        let text = console.since(status);
        let number = text.split('.').next().and_then(|it| it.parse().ok());
        let number = number.unwrap_or_else(|| panic!("no status: {text}"));
        (number, console.since(mark))
    }

    /// The same for a command that must succeed.
    fn succeed(&self, command: &str) -> String {
        let (status, said) = self.run(command, COMMAND_WITHIN);
        assert_eq!(status, 0, "{command}: {said}");
        said
    }

    /// Types a command, and waits for its question.
    fn question(&self, command: &str) -> ConsoleMark {
        let mark = self.vm.console().mark();
        self.type_line(&format!("{command}; {REPORT}"));
        self.wait(mark, "Type it to go on: ", COMMAND_WITHIN);
        mark
    }

    fn answer(&self, mark: ConsoleMark, text: &str) -> (i32, String) {
        self.type_line(text);
        self.ended(mark, WRITTEN_WITHIN)
    }

    /// Both drives, once the kernel has found them. It finds them at the same time, so their names may be either way
    /// round.
    fn names(&self) -> DriveNames {
        let list = "for it in /sys/block/sd?; do echo \"${it##*/} has $(cat $it/size)\"; done";
        let name = |said: &str, bytes: u64| {
            let sectors = bytes / 512;
            let mut names = ["sda", "sdb"].into_iter();
            let found = names.find(|name| said.contains(&format!("{name} has {sectors}\n")));
            found.map(str::to_owned)
        };
        eventually("both drives are found", || {
            let said = self.succeed(list);
            let (drive, small) = (name(&said, DRIVE_BYTES)?, name(&said, SMALL_BYTES)?);
            Some(DriveNames { drive, small })
        })
    }

    /// Switches the machine off in the way of a person at the shell.
    fn power_off(&mut self) {
        self.type_line("poweroff");
        let exit = self.vm.wait_exit(COMMAND_WITHIN);
        let exit = exit.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(exit.reason(), Some("guest-shutdown"), "{exit}");
    }
}

/// The installer's initial file system, with one file of ours. The kernel unpacks one archive after the other
/// (Documentation/driver-api/early-userspace/buffer-format.rst in its source).
fn initial_file_system(bench: &TestBench, installer: &Path) -> PathBuf {
    let own = bench.path().join("own");
    fs::create_dir_all(own.join("etc")).expect("the folder is ours");
    fs::write(own.join("etc/inittab"), INITTAB).expect("the folder is ours");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(&own)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the set-up installs cpio");
    let mut names = cpio.stdin.take().expect("it was asked for above");
    names.write_all(b"etc/inittab\n").expect("it reads");
    drop(names);
    let archive = cpio.wait_with_output().expect("our child");
    assert!(archive.status.success(), "{archive:?}");

    let path = bench.path().join("initrd");
    fs::copy(installer.join("initrd.gz"), &path).expect("the folder is ours");
    let file = File::options().write(true).open(&path).expect("ours");
    let end = file.metadata().expect("ours").len();
    // The kernel looks for an archive at multiples of four bytes.
    let written = file.write_all_at(&archive.stdout, end.next_multiple_of(4));
    written.expect("the folder is ours");
    path
}
