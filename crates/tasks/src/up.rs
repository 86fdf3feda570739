//! `up`: boots the appliance, makes one call, and stays with its console.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{VirtioDisk, Vm};
use xtask::memory::MemoryWatch;
use xtask::progress::TimedCommand;

use crate::cache::CacheSizeMonitor;
use crate::context::XtaskContext;
use crate::driver;
use crate::failure::{Result, TaskError};
use crate::image::{self, ImageFiles};
use crate::node::{self, MachineType, NodeCli, ReachableNode};
use crate::parts::ImageParts;
use crate::terminal::RawTerminal;
use crate::test;

/// Size of the data disk in bytes. It is sparse.
const DATA_BYTES: u64 = 1 << 30;

/// How often console and keyboard are polled: fast enough for a typing hand.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Power off after the call, and exit with 0
    #[arg(long)]
    smoke: bool,
    /// Form of the image: direct, erofs or raw
    #[arg(long, default_value = "direct")]
    form: ImageForm,
    /// Machine to start it on [default: q35; microvm for erofs, uefi for raw]
    #[arg(long)]
    machine: Option<MachineType>,
    /// Memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Begin with a blank data disk, and so with a new identity
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    drivers: driver::DriverArgs,
}

impl UpArgs {
    fn machine(&self) -> MachineType {
        self.machine
            .unwrap_or_else(|| MachineType::usual(self.form))
    }
}

/// Boots, calls, and stays.
pub(crate) fn run(cx: &mut XtaskContext, arguments: &UpArgs) -> Result<()> {
    // The watch ends before the console is the user's: other programs that the user starts
    // meanwhile are not this command's.
    let memory = MemoryWatch::go_on();
    let mut cache = CacheSizeMonitor::begin(cx);
    let started = StartedMachine::new(cx, arguments, &mut cache);
    eprint!("{}", memory.report());
    drop(memory);
    eprint!("{}", cache.report());
    let mut started = started?;
    cx.board().remember_rest(TimedCommand::Up);
    let machine = arguments.machine();
    if arguments.smoke {
        let StartedMachine { vm, cli, node, .. } = &mut started;
        cx.step("power off", |_| node::power_off(vm, machine, cli, node))
    } else {
        stay(&mut started.vm, machine, &started.cli, &started.node)
    }
}

/// A machine that has answered its first call.
struct StartedMachine {
    vm: Vm,
    cli: NodeCli,
    node: ReachableNode,
    _disk: DataDisk,
}

impl StartedMachine {
    fn new(
        cx: &mut XtaskContext,
        arguments: &UpArgs,
        cache: &mut CacheSizeMonitor,
    ) -> Result<Self> {
        cx.board().announce(&["image", "boot"]);
        let ImageParts { kernel, binary } = ImageParts::ensure(cx, &arguments.drivers.vulkan)?;
        let image = cx.step("image", |cx| {
            image::ensure(cx, &kernel, &binary, &[arguments.form])
        })?;
        cache.built();
        let cli = NodeCli::new(&binary, None);
        let admin = cli.identity()?;
        let disk = DataDisk::open(cx, &image, arguments)?;
        let builder = node::builder(&image, &kernel, arguments.form, arguments.machine(), &admin)?
            .name("up")
            .memory_mib(arguments.memory)
            .disk(disk.disk(arguments.form));
        let (vm, node) = cx.step("boot", |_| {
            test::lengthen_deadlines()?;
            let vm = builder.start()?;
            let node = node::wait_ready(&vm)?;
            Ok((vm, node))
        })?;
        let answer = cx.step("call", |_| cli.call(&node, "node/info"))?;
        show(&binary, &vm, &node, &answer);
        Ok(Self {
            vm,
            cli,
            node,
            _disk: disk,
        })
    }
}

fn show(program: &Path, vm: &Vm, node: &ReachableNode, answer: &str) {
    eprintln!("node/info answered:");
    println!("{}", answer.trim_end());
    eprintln!(
        "\nServed under {} on UDP and TCP. From another terminal:",
        vm.accel().name()
    );
    eprintln!("  {} call {} node/info\n", program.display(), node.target());
}

/// Connects console and keyboard until the machine ends, or the user ends it.
fn stay(vm: &mut Vm, machine: MachineType, cli: &NodeCli, node: &ReachableNode) -> Result<()> {
    eprintln!("This is the machine's console. Ctrl-C powers it off; twice cuts the power.\n");
    let terminal = RawTerminal::open()?;
    let mut shown = 0;
    loop {
        shown = show_console(vm, shown).map_err(TaskError::io("write to the terminal"))?;
        match RawTerminal::ends_asked() {
            0 => {}
            1 => return leave(vm, machine, cli, node, shown),
            _ => return Ok(vm.cut_power().map(drop)?),
        }
        // The machine may have switched itself off.
        if vm.qmp().wait_closed(Duration::ZERO) {
            show_console(vm, shown).map_err(TaskError::io("write to the terminal"))?;
            return Ok(());
        }
        let keys = terminal.keys();
        if !keys.is_empty() {
            let text = String::from_utf8_lossy(&keys);
            vm.console()
                .send(&text)
                .map_err(TaskError::io("type on the console"))?;
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn leave(
    vm: &mut Vm,
    machine: MachineType,
    cli: &NodeCli,
    node: &ReachableNode,
    shown: usize,
) -> Result<()> {
    eprintln!("\r\npowering off ...\r");
    let polite = node::power_off(vm, machine, cli, node);
    show_console(vm, shown).map_err(TaskError::io("write to the terminal"))?;
    if let Err(error) = polite {
        // A machine that does not switch itself off must not stay behind.
        vm.cut_power()?;
        return Err(error);
    }
    Ok(())
}

/// Copies the console's output since byte `shown`. Returns how much is shown now.
fn show_console(vm: &Vm, shown: usize) -> io::Result<usize> {
    let raw = vm.console().raw();
    if let Some(new) = raw.get(shown..).filter(|new| !new.is_empty()) {
        let mut out = io::stdout().lock();
        out.write_all(new)?;
        out.flush()?;
    }
    Ok(raw.len())
}

/// The disk that keeps the machine's state from one `up` to the next.
#[derive(Debug)]
struct DataDisk {
    path: PathBuf,
    /// Held so that no other machine writes there.
    _lock: Option<File>,
    _scratch: Option<tempfile::TempDir>,
}

impl DataDisk {
    /// The kept disk of this form. A smoke run, or a second machine, gets a disk of its own.
    fn open(cx: &XtaskContext, image: &ImageFiles, arguments: &UpArgs) -> Result<Self> {
        let disks = cx.cache().join("up");
        fs::create_dir_all(&disks).map_err(TaskError::io(format!("make {}", disks.display())))?;
        let lock = if arguments.smoke { None } else { lock(&disks)? };
        if lock.is_none() {
            let scratch =
                tempfile::tempdir_in(&disks).map_err(TaskError::io("make a folder for a disk"))?;
            let path = scratch.path().join("disk.raw");
            make(&path, image, arguments.form)?;
            return Ok(Self {
                path,
                _lock: None,
                _scratch: Some(scratch),
            });
        }
        let path = disks.join(format!("{}.raw", arguments.form));
        if arguments.fresh || !path.exists() {
            make(&path, image, arguments.form)?;
        }
        Ok(Self {
            path,
            _lock: lock,
            _scratch: None,
        })
    }

    fn disk(&self, form: ImageForm) -> VirtioDisk {
        let disk = VirtioDisk::file(&self.path);
        if form == ImageForm::Raw {
            disk
        } else {
            disk.data()
        }
    }
}

/// Takes the lock of the kept disks, if no other `up` has it.
fn lock(folder: &Path) -> Result<Option<File>> {
    let file = File::create(folder.join("lock")).map_err(TaskError::io("lock the data disk"))?;
    if file.try_lock().is_ok() {
        return Ok(Some(file));
    }
    eprintln!("another `up` runs: this one begins with a blank disk");
    Ok(None)
}

/// Makes a blank disk, or for the raw form a copy of the image, larger by as much.
fn make(path: &Path, image: &ImageFiles, form: ImageForm) -> Result<()> {
    if form != ImageForm::Raw {
        return Ok(alknet_qemu::blank(path, DATA_BYTES)?);
    }
    let disk = image
        .manifest
        .path(&image.folder, form, OutputRole::Disk)
        .ok_or_else(|| {
            TaskError::Arguments("the raw image has no disk: build it again".to_owned())
        })?;
    alknet_qemu::copy(&disk, path)?;
    let grow = || {
        let file = File::options().write(true).open(path)?;
        // The partition for the data takes the room behind the image.
        file.set_len(file.metadata()?.len() + DATA_BYTES)
    };
    grow().map_err(TaskError::io(format!("grow {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_machine_gets_the_kept_disk() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = lock(folder.path())
            .expect("writable")
            .expect("no other `up` holds it");
        assert!(lock(folder.path()).expect("writable").is_none());
        drop(first);
    }
}
