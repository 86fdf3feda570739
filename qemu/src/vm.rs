//! A running machine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use alknet_test_support::{ReservedPort, deadline};
use serde_json::json;

use crate::accel::Accel;
use crate::builder::VmBuilder;
use crate::console::{ConsoleLine, ConsoleMark, VmConsole, WaitResult};
use crate::error::{Error, Result};
use crate::file_counter::FileCounter;
use crate::machine::{GuestMemory, MachineKind, MachineResources, MachineSpec};
use crate::nic::{NODE_PORT, Nic, NicBackend};
use crate::permits::MachinePermit;
use crate::process::{ChildProcess, FIRST_FD, describe};
use crate::qmp::{Qmp, QmpEvent};
use crate::scratch::{self, ScratchDir};
use crate::tpm::TpmChip;
use crate::{snapshot, tools};

/// The variable that names the directory for logs of failed machines.
pub const LOGS_VARIABLE: &str = "ALKNET_QEMU_LOGS";

/// How a machine ended.
#[derive(Clone, Debug)]
pub struct VmExit {
    /// Exit status of the QEMU process.
    pub status: ExitStatus,
    /// Everything that QEMU reported, oldest first.
    pub events: Vec<QmpEvent>,
}

impl VmExit {
    /// The reason: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`, `host-signal`, or `None` if
    /// QEMU was killed.
    pub fn reason(&self) -> Option<&str> {
        self.last("SHUTDOWN")?.data["reason"].as_str()
    }

    /// The watchdog's action, if it fired.
    pub fn watchdog(&self) -> Option<&str> {
        self.last("WATCHDOG")?.data["action"].as_str()
    }

    fn last(&self, name: &str) -> Option<&QmpEvent> {
        self.events.iter().rev().find(|event| event.name == name)
    }
}

impl std::fmt::Display for VmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {}",
            describe(self.status),
            self.reason().unwrap_or("no reason given")
        )
    }
}

/// A forwarded port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// Number of the card, from 0.
    pub nic: usize,
    /// Port in the guest.
    pub guest_port: u16,
    /// Address on the host, UDP and TCP.
    pub host: SocketAddr,
}

/// A running machine. Dropping it kills it.
///
/// Limits are for KVM. They are ten times longer under TCG.
#[derive(Debug)]
pub struct Vm {
    name: String,
    accel: Accel,
    pub(crate) qmp: Qmp,
    process: ChildProcess,
    console: VmConsole,
    forwards: Vec<PortForward>,
    /// The reserved ports of the forwards.
    _ports: Vec<ReservedPort>,
    macs: Vec<String>,
    /// Serial numbers of the disks that have one.
    serials: Vec<Option<String>>,
    counter: Option<FileCounter>,
    /// File of the guest's memory, if the machine can be saved.
    pub(crate) memory: Option<PathBuf>,
    /// Dropped after QEMU, which talks to it to the last.
    pub(crate) tpm: Option<TpmChip>,
    // The files are in use until the process is gone.
    scratch: ScratchDir,
    // Dropped last: another machine may start when nothing is left of this one.
    permit: Option<MachinePermit>,
}

impl Vm {
    /// A machine of this kind with 512 MiB, one processor, and nothing else.
    pub fn builder(kind: MachineKind) -> VmBuilder {
        VmBuilder::new(kind)
    }

    /// The accelerator in use.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// The serial console.
    pub fn console(&self) -> &VmConsole {
        &self.console
    }

    /// QEMU's control connection.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// A directory for files of this machine, removed with it.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Every forwarded port.
    pub fn forwards(&self) -> &[PortForward] {
        &self.forwards
    }

    /// The address of the node's port, UDP and TCP, on the first card that forwards it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.forward_of(NODE_PORT)
    }

    /// The host's address of a port of the guest.
    pub fn forward_of(&self, guest_port: u16) -> Option<SocketAddr> {
        let mut found = self
            .forwards
            .iter()
            .filter(|forward| forward.guest_port == guest_port);
        found.next().map(|forward| forward.host)
    }

    /// Processor time of QEMU so far.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.process.cpu_time()
    }

    /// The memory that QEMU holds, in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        self.process.resident_bytes()
    }

    /// The number of instructions that the guest executed, firmware included. `None` unless they are counted.
    pub fn instructions(&self) -> Option<u64> {
        self.counter.as_ref()?.read()
    }

    /// `limit`, scaled for this machine's accelerator.
    pub fn scale(&self, limit: Duration) -> Duration {
        self.accel.scale(limit)
    }

    /// Waits until the console has printed `needle`, from its beginning.
    pub fn wait_for(&self, needle: &str, limit: Duration) -> Result<ConsoleMark> {
        self.wait_for_after(ConsoleMark::default(), needle, limit)
    }

    /// Waits until the console prints `needle` after `mark`.
    pub fn wait_for_after(
        &self,
        mark: ConsoleMark,
        needle: &str,
        limit: Duration,
    ) -> Result<ConsoleMark> {
        let limit = self.scale(limit);
        let waited = self.console.wait(mark, needle, limit);
        self.outcome(waited, format!("{needle:?} on the console"), limit)
    }

    /// Waits for the first whole line of the console that contains `needle`, with its stamps.
    pub fn wait_line(&self, needle: &str, limit: Duration) -> Result<ConsoleLine> {
        let limit = self.scale(limit);
        let waited = self.console.wait_line(needle, limit);
        self.outcome(
            waited,
            format!("a line with {needle:?} on the console"),
            limit,
        )
    }

    /// Presses the power button (ACPI). Not on microvm.
    pub fn power_button(&self) -> Result<()> {
        self.qmp.execute("system_powerdown", json!({})).map(drop)
    }

    /// Presses the reset button.
    pub fn reset_button(&self) -> Result<()> {
        self.qmp.execute("system_reset", json!({})).map(drop)
    }

    /// Stops the processors and the machine's time.
    pub fn pause(&self) -> Result<()> {
        self.qmp.execute("stop", json!({})).map(drop)
    }

    /// Lets the processors run again.
    pub fn resume(&self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// Sends a non-maskable interrupt.
    pub fn inject_nmi(&self) -> Result<()> {
        self.qmp.execute("inject-nmi", json!({})).map(drop)
    }

    /// Pulls or puts in the cable of card `nic`, counted from 0.
    pub fn set_link(&self, nic: usize, up: bool) -> Result<()> {
        self.qmp
            .execute("set_link", json!({ "name": format!("nic{nic}"), "up": up }))
            .map(drop)
    }

    /// Puts card `nic`, declared [`Nic::unplugged`], into the running machine.
    pub fn plug(&self, nic: usize) -> Result<()> {
        let mac = self
            .macs
            .get(nic)
            .ok_or_else(|| Error::BadMachine(format!("no card {nic}")))?;
        let device = json!({
            "driver": "virtio-net-pci",
            "id": format!("nic{nic}"),
            "netdev": format!("net{nic}"),
            "bus": format!("slot{nic}"),
            "mac": mac,
            "romfile": "",
        });
        self.qmp.execute("device_add", device).map(drop)
    }

    /// Plugs disk `disk` into the running machine. It was declared
    /// [`VirtioDisk::unplugged`](crate::VirtioDisk::unplugged) and is counted from 0 with all others.
    pub fn plug_disk(&self, disk: usize) -> Result<()> {
        let serial = self
            .serials
            .get(disk)
            .ok_or_else(|| Error::BadMachine(format!("no disk {disk}")))?;
        let mut device = json!({
            "driver": "virtio-blk-pci",
            "id": format!("plugged{disk}"),
            "drive": format!("disk{disk}"),
            "bus": format!("diskslot{disk}"),
        });
        if let Some(serial) = serial {
            device["serial"] = serial.as_str().into();
        }
        self.qmp.execute("device_add", device).map(drop)
    }

    /// Unplugs disk `disk` again, which [`plug_disk`](Self::plug_disk) plugged in. The guest has to release it.
    pub fn unplug_disk(&self, disk: usize) -> Result<()> {
        self.qmp
            .execute("device_del", json!({ "id": format!("plugged{disk}") }))
            .map(drop)
    }

    /// Writes the machine's memory, and no more, to the file `to`: an ELF core file. The machine may run or be
    /// paused, also after it was switched off if QEMU is set to pause then.
    pub fn dump_memory(&self, to: &Path) -> Result<()> {
        self.qmp
            .execute(
                "dump-guest-memory",
                json!({ "paging": false, "protocol": format!("file:{}", to.display()) }),
            )
            .map(drop)
    }

    /// Unplugs card `nic` again, which [`plug`](Self::plug) plugged in. The guest has to release it.
    pub fn unplug(&self, nic: usize) -> Result<()> {
        self.qmp
            .execute("device_del", json!({ "id": format!("nic{nic}") }))
            .map(drop)
    }

    /// Ends the machine at once, as a power cut does. Writes to a file-backed disk stay, since the host keeps its
    /// page cache: for the losses of a real cut see [`DiskRecorder`](crate::DiskRecorder).
    pub fn cut_power(&mut self) -> Result<VmExit> {
        self.process.kill().map_err(Error::io("killing QEMU"))?;
        self.exit()
    }

    /// Waits until the machine ends without a command of the harness.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<VmExit> {
        let limit = self.scale(limit);
        if !self.qmp.wait_closed(limit) {
            return Err(self.timeout("the machine's end".to_owned(), limit));
        }
        self.exit()
    }

    /// Stores the console's log with its stamps and returns its path.
    pub fn keep_log(&self) -> Result<PathBuf> {
        let dir = logs_dir()?;
        let path = dir.join(format!("{}-{}.log", self.name, self.pid()));
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&path, self.console.stamped()))
            .map_err(Error::io(format!(
                "keeping the console's log in {}",
                dir.display()
            )))?;
        Ok(path)
    }

    /// The console in the form that errors quote: its tail, and the path of the whole log.
    pub fn report(&self) -> String {
        let kept = self.keep_log();
        let kept = kept.map_or_else(|error| error.to_string(), |path| path.display().to_string());
        format!(
            "--- console of {} ---\n{}\n--- whole log: {kept}",
            self.name,
            self.console.tail()
        )
    }

    fn outcome<T>(&self, waited: WaitResult<T>, waiting: String, limit: Duration) -> Result<T> {
        match waited {
            WaitResult::Said(found) => {
                // The machine has reached what its test waits for. Its further load is the test's.
                if let Some(permit) = &self.permit {
                    permit.started();
                }
                Ok(found)
            }
            WaitResult::TimedOut => Err(self.timeout(waiting, limit)),
            WaitResult::Closed => Err(Error::Ended {
                waiting,
                exit: self
                    .process
                    .wait()
                    .map_or_else(|error| error.to_string(), describe),
                console: self.report(),
            }),
        }
    }

    pub(crate) fn timeout(&self, waiting: String, limit: Duration) -> Error {
        Error::Timeout {
            waiting,
            limit,
            console: self.report(),
        }
    }

    fn exit(&mut self) -> Result<VmExit> {
        let status = self.process.wait().map_err(Error::io("waiting for QEMU"))?;
        // The process was killed and waited for, so the next machine may have them.
        self.tpm = None;
        self.permit = None;
        self.console.finish();
        // The last events tell why the machine ended.
        self.qmp.wait_closed(deadline(EVENTS_LIMIT));
        Ok(VmExit {
            status,
            events: self.qmp.events(),
        })
    }

    pub(crate) fn start(builder: &VmBuilder, accel: Accel) -> Result<Self> {
        let scratch = ScratchDir::new()?;
        let machine = &builder.machine;
        let mut wires = VmSockets::default();
        let console = wires.stream()?;
        let qmp = wires.stream()?;
        let lan_fds = wires.lans(&machine.nics)?;
        let (tpm, tpm_fd) = chip(machine, &mut wires, &scratch)?.unzip();
        let counter = if machine.counted {
            Some(counter(&scratch)?)
        } else {
            None
        };
        let (counter, plugin) = counter.unzip();
        let memory = match &machine.memory {
            GuestMemory::Anonymous => None,
            GuestMemory::Saveable => Some((scratch.file("memory"), true)),
            GuestMemory::Restored(folder) => Some((snapshot::memory_of(folder), false)),
        };
        let forwarded = machine.nics.iter().map(|nic| nic.forwards().len()).sum();
        // The ports are claimed here, because QEMU's command line has to name them.
        let ports = std::iter::repeat_with(ReservedPort::claim).take(forwarded);
        let ports: Vec<ReservedPort> = ports
            .collect::<Result<_, _>>()
            .map_err(Error::io("finding a free port"))?;
        let layout = MachineResources {
            accel,
            memory,
            console_fd: FIRST_FD,
            qmp_fd: FIRST_FD + 1,
            lan_fds,
            ports: ports.iter().map(ReservedPort::number).collect(),
            firmware: firmware(machine, &scratch)?,
            fw_cfg_files: fw_cfg_files(machine, &scratch)?,
            seed: seed(machine, &scratch)?,
            tpm_fd,
            plugin,
        };
        let stderr = scratch.file("stderr");
        let process = spawn(machine.arguments(&layout), &stderr, wires.theirs)?;
        let not_started_error = |error| not_started(&process, &stderr, error);
        let qmp = Qmp::connect(qmp).map_err(not_started_error)?;
        let before = snapshot::console_of(&machine.memory)?;
        let console = follow(console, &process, counter.as_ref(), &before)?;
        if let GuestMemory::Restored(folder) = &machine.memory {
            snapshot::read(&qmp, folder, accel).map_err(not_started_error)?;
            tpm.iter().for_each(TpmChip::taken_over);
        }
        let vm = Self {
            name: builder.name.clone(),
            accel,
            qmp,
            process,
            console,
            forwards: forwards(machine, &layout.ports),
            _ports: ports,
            macs: machine
                .nics
                .iter()
                .enumerate()
                .map(|(index, nic)| nic.mac(index))
                .collect(),
            serials: machine
                .disks
                .iter()
                .map(|disk| disk.serial.clone())
                .collect(),
            counter,
            memory: layout.memory.filter(|(_, shared)| *shared).map(|it| it.0),
            tpm,
            scratch,
            permit: None,
        };
        vm.release(machine)?;
        Ok(vm)
    }

    /// Holds `permit` until the machine has ended.
    pub(crate) fn hold(&mut self, permit: MachinePermit) {
        self.permit = Some(permit);
    }

    /// Unplugs the cables that are out from the start, and lets a waiting machine run.
    fn release(&self, machine: &MachineSpec) -> Result<()> {
        let restored = matches!(machine.memory, GuestMemory::Restored(_));
        // A restored machine does not run either until it gets the command.
        if !machine.starts_paused() && !restored {
            return Ok(());
        }
        for (index, nic) in machine.nics.iter().enumerate() {
            if nic.plugged && !nic.link_up {
                self.set_link(index, false)?;
            }
        }
        self.resume()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // A failed test has no other record of what its machine printed.
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

/// After QEMU's end its last events are in our socket already, and reading them takes no longer.
const EVENTS_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait of tests and commands from a node's power-on until it serves its port, under KVM on a host at rest.
pub const READY_WITHIN: Duration = Duration::from_secs(30);

/// QEMU's ends of every connection to it.
#[derive(Default)]
struct VmSockets {
    theirs: Vec<OwnedFd>,
}

impl VmSockets {
    /// The number that the next descriptor has in QEMU.
    fn next_fd(&self) -> i32 {
        FIRST_FD + i32::try_from(self.theirs.len()).unwrap_or(i32::MAX / 2)
    }

    fn stream(&mut self) -> Result<UnixStream> {
        let pair = UnixStream::pair();
        let (ours, theirs) = pair.map_err(Error::io("making a socket pair"))?;
        self.theirs.push(theirs.into());
        Ok(ours)
    }

    fn lans(&mut self, nics: &[Nic]) -> Result<Vec<i32>> {
        let mut fds = vec![];
        for nic in nics {
            if let NicBackend::Lan(lan) = &nic.wire {
                fds.push(self.next_fd());
                self.theirs.push(lan.attach()?);
            }
        }
        Ok(fds)
    }
}

fn spawn(arguments: Vec<OsString>, stderr: &Path, fds: Vec<OwnedFd>) -> Result<ChildProcess> {
    let log = File::create(stderr).map_err(Error::io("making the file for QEMU's errors"))?;
    let mut command = Command::new(tools::qemu());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    tracing::debug!(?command, "starting QEMU");
    let what = format!(
        "starting {} (install the package qemu-system-x86, or name it in {})",
        tools::qemu().display(),
        tools::QEMU_VARIABLE
    );
    ChildProcess::spawn(command, fds).map_err(Error::io(what))
}

/// QEMU's own message explains more than the error of the connection that it closed.
fn not_started(process: &ChildProcess, stderr: &Path, error: Error) -> Error {
    // Only a lost connection leaves the reason to QEMU's own message.
    if !matches!(error, Error::QmpLost { .. }) {
        return error;
    }
    let status = process
        .kill()
        .map_or_else(|error| error.to_string(), describe);
    Error::NotStarted {
        status,
        stderr: fs::read_to_string(stderr).unwrap_or_default(),
    }
}

fn follow(
    stream: UnixStream,
    process: &ChildProcess,
    counter: Option<&FileCounter>,
    before: &[u8],
) -> Result<VmConsole> {
    let counter = counter.map(FileCounter::share).transpose()?;
    let clock = process.cpu_clock();
    let gauge = move || {
        let cpu = clock
            .as_ref()
            .and_then(crate::process::CpuClock::read)
            .unwrap_or_default();
        (cpu, counter.as_ref().and_then(FileCounter::read))
    };
    let console = VmConsole::follow(stream, Box::new(gauge), before);
    console.map_err(Error::io("following the console"))
}

fn counter(scratch: &ScratchDir) -> Result<(FileCounter, String)> {
    FileCounter::create(&scratch.file("instructions"), scratch.path())
}

fn firmware(machine: &MachineSpec, scratch: &ScratchDir) -> Result<Option<(PathBuf, PathBuf)>> {
    if machine.kind != MachineKind::Q35Uefi {
        return Ok(None);
    }
    let tools::UefiFirmware { code, template } = tools::firmware(machine.secure_boot)?;
    let kept = machine.variables.clone();
    let vars = kept.unwrap_or_else(|| scratch.file("vars.fd"));
    // Variables that a test keeps go on where its last machine left them.
    if !vars.exists() {
        fs::copy(template, &vars).map_err(Error::io("copying the firmware's variables"))?;
    }
    Ok(Some((code, vars)))
}

/// The machine's TPM, and QEMU's descriptor for it.
fn chip(
    machine: &MachineSpec,
    wires: &mut VmSockets,
    scratch: &ScratchDir,
) -> Result<Option<(TpmChip, i32)>> {
    let Some(folder) = &machine.tpm else {
        return Ok(None);
    };
    let fd = wires.next_fd();
    let control = wires.stream()?;
    let log = scratch.file("swtpm");
    let chip = TpmChip::start(folder, control, &log, machine)?;
    Ok(Some((chip, fd)))
}

fn fw_cfg_files(machine: &MachineSpec, scratch: &ScratchDir) -> Result<Vec<PathBuf>> {
    let write = |(index, (_, content)): (usize, &(String, Vec<u8>))| {
        let path = scratch.file(&format!("fw_cfg-{index}"));
        fs::write(&path, content).map_err(Error::io("writing a firmware configuration file"))?;
        Ok(path)
    };
    machine.fw_cfg.iter().enumerate().map(write).collect()
}

/// The two files that a NoCloud volume must have.
fn seed(machine: &MachineSpec, scratch: &ScratchDir) -> Result<Option<PathBuf>> {
    let Some(user_data) = &machine.seed else {
        return Ok(None);
    };
    let folder = scratch.file("seed");
    fs::create_dir(&folder)
        // The volume counts only with this file in it, which may be empty.
        .and_then(|()| fs::write(folder.join("meta-data"), []))
        .and_then(|()| fs::write(folder.join("user-data"), user_data))
        .map_err(Error::io("writing a NoCloud volume"))?;
    Ok(Some(folder))
}

fn forwards(machine: &MachineSpec, ports: &[u16]) -> Vec<PortForward> {
    let cards = machine.nics.iter().enumerate();
    let guests = cards.flat_map(|(nic, card)| card.forwards().iter().map(move |port| (nic, *port)));
    let make = |((nic, guest_port), host): ((usize, u16), &u16)| PortForward {
        nic,
        guest_port,
        host: SocketAddr::from((Ipv4Addr::LOCALHOST, *host)),
    };
    guests.zip(ports).map(make).collect()
}

/// The folder that the variable names, or else one that other users cannot enter: the names of logs can be guessed.
fn logs_dir() -> Result<PathBuf> {
    let set = std::env::var_os(LOGS_VARIABLE).filter(|value| !value.is_empty());
    set.map_or_else(|| Ok(scratch::base()?.join("logs")), |set| Ok(set.into()))
}
