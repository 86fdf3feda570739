//! The boot, from the kernel's hand-over to the running loop.

use std::{
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        resource::{Resource, setrlimit},
    },
    unistd::sync,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use alknet_provisioning::ConsoleDocument;
use alknet_vault::slots::OpenAlkv;

use crate::{
    InitError, clock,
    console::{ConsoleId, ConsoleInput, InitConsole},
    control::PowerAction,
    data::{self, DataAccess, PreparedData},
    facts::{ClockState, InitFacts},
    groups,
    install::{self, INSTALL_MAX, InstallJob},
    log::{InitLog, RingSubscriber},
    machine::{EVENTS_MAX, InitMachine, MachineConsole, MachineEvent, panic_text},
    mount, power,
    settings::{self, NodeSettings},
    shutdown,
    stage::{self, BootStageName},
    update::{self, UpdateStart, UpdateSystem},
    vault::{UnlockCredentials, VaultHandle},
    vsock,
    watchdog::Watchdog,
    wipe,
};

/// How long the reason stays on the console before a machine that cannot continue reboots.
const FATAL_PAUSE: Duration = Duration::from_secs(10);
/// Maximum time to prepare the disk: growing a file system of many terabytes on a slow disk takes
/// minutes. PID 1 feeds the watchdog for this long, and no longer.
const DISK_MAX: Duration = Duration::from_secs(300);
/// How long the last line of an installation stays on the console before the machine ends.
const INSTALLED_PAUSE: Duration = Duration::from_secs(2);
/// The first virtual terminal: what the screen shows until its keyboard switches to another.
const SCREEN: &str = "/dev/tty1";
/// Maximum number of console inputs that wait for the loop.
const ANSWERS_MAX: usize = 16;
/// Files that PID 1 and its node may have open, each. It has room for every connection that the node accepts, and for
/// the open files of its site.
pub const OPEN_FILES_MAX: u64 = 16_384;
/// How often the watchdog is fed while the disk is prepared.
const FEED_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of threads that wait for disks.
const DISK_THREADS_MAX: usize = 4;
/// How long an idle disk thread is kept.
const DISK_THREAD_IDLE: Duration = Duration::from_secs(1);
/// Inode of the first PID namespace, `PROC_PID_INIT_INO`. PID 1 of a container is in another
/// namespace.
const MACHINE_PID_NAMESPACE: u64 = 0xefff_fffc;

/// The results of the boot, for the loop.
#[derive(Debug)]
pub(crate) struct BootResult {
    pub(crate) facts: InitFacts,
    pub(crate) opened: OpenedData,
    pub(crate) vault: Arc<VaultHandle>,
    pub(crate) update: UpdateStart,
}

/// The result of an attempt to open the data.
#[derive(Debug)]
pub(crate) struct OpenedData {
    pub(crate) prepared: PreparedData,
    pub(crate) settings: NodeSettings,
    pub(crate) clock: ClockState,
    /// The credentials of the attempt.
    pub(crate) offer: UnlockCredentials,
    /// The boot slots, if the opened data tell another disk with them than PID 1 has found before.
    pub(crate) update: Option<Box<UpdateStart>>,
}

impl OpenedData {
    /// Looks for the disk with the boot slots again, now that the data are open or not.
    pub(crate) fn look_for_slots(&mut self, before: &UpdateSystem, is_unread: bool) {
        self.update = UpdateStart::again(before, is_unread, self.device()).map(Box::new);
    }

    /// Name below `/dev` of the device of the data, if they are open.
    fn device(&self) -> Option<&str> {
        let PreparedData {
            state, state_dir, ..
        } = &self.prepared;
        settings::data_dir(&state.mode, state_dir)?;
        state.device.as_deref()?.strip_prefix("/dev/")
    }

    /// Whether the data stay closed because a blank disk must not become this machine's.
    fn refuses_blank_disk(&self) -> bool {
        let waiting = self.prepared.waiting.as_ref();
        waiting.is_some_and(|waiting| waiting.problem.code == data::MISSING)
    }
}

/// Runs the machine. PID 1 never ends: as the last resort it shows a reason on the console and
/// reboots.
pub(crate) fn run() -> ! {
    // The kernel panics when PID 1 ends, and the reason would be lost.
    let outcome = panic::catch_unwind(AssertUnwindSafe(start));
    match outcome {
        Ok(Err(InitError::NotTheMachine)) => {
            eprintln!("alknet: {}", InitError::NotTheMachine);
            std::process::exit(2)
        }
        Ok(Err(error)) => fatal(&error.to_string()),
        Ok(Ok(())) => fatal("the loop of PID 1 ended"),
        Err(payload) => fatal(&panic_text(&*payload)),
    }
}

fn fatal(reason: &str) -> ! {
    update::note_location(reason);
    eprintln!("\nalknet: fatal: {reason}");
    eprintln!("alknet: rebooting in {} seconds", FATAL_PAUSE.as_secs());
    // The data are synced before the pause: a user who reads the reason may switch the machine off.
    sync();
    thread::sleep(FATAL_PAUSE);
    sync();
    // The call returns only if the kernel refuses, which it does not for PID 1.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        thread::park();
    }
}

fn start() -> Result<(), InitError> {
    let mut facts = InitFacts::default();
    stage::record_stage(&mut facts.stages, BootStageName::Init);
    // The check comes before the first mount: PID 1 must not change a container's mounts.
    if in_container() {
        return Err(InitError::NotTheMachine);
    }
    let failed_mounts = mount::mount_all()?;
    // Without a console there is nowhere to report an error.
    let streams = mount::standard_streams();
    mount::apply_settings();
    let files = raise_open_files();
    stage::record_stage(&mut facts.stages, BootStageName::Mounts);
    // The log exists before anything that may report.
    let log = InitLog::default();
    record_panics(&log);
    // Only PID 1 sets the subscriber, once, so this does not fail.
    let _ = tracing::subscriber::set_global_default(RingSubscriber::new(log.clone()));
    let watchdog = Watchdog::arm(Path::new("/dev"));

    let groups = groups::prepare();
    let failed = [streams.err(), groups.err(), files.err()];
    let failed = failed.into_iter().flatten();
    for error in failed_mounts.into_iter().chain(failed) {
        log.warn(error);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS_MAX)
        .thread_keep_alive(DISK_THREAD_IDLE)
        .build()
        .map_err(InitError::at("make the loop of", "PID 1"))?;
    runtime.block_on(serve(facts, log, watchdog))
}

/// Raises the number of files that PID 1 and its node may have open. The kernel begins with 1,024, fewer than the
/// connections that the node accepts. Only PID 1 may raise the second limit of a process.
fn raise_open_files() -> Result<(), InitError> {
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX)
        .map_err(io::Error::from)
        .map_err(InitError::at("raise the limit of open files of", "PID 1"))
}

/// Whether this process is PID 1 of a container, which has another PID namespace than the first. On
/// a machine there is no `/proc` before this program mounts it. A container always has one.
pub(crate) fn in_container() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|found| found.ino() != MACHINE_PID_NAMESPACE)
}

/// Makes a panic of any task a line of the log. The code that catches the panic decides what it
/// means.
fn record_panics(log: &InitLog) {
    let log = log.clone();
    panic::set_hook(Box::new(move |info| {
        log.error(format_args!("panic: {info}"));
        update::note_panic(info);
    }));
}

async fn serve(
    facts: InitFacts,
    log: InitLog,
    watchdog: Option<Watchdog>,
) -> Result<(), InitError> {
    let (events, mut arriving) = mpsc::channel(EVENTS_MAX);
    watch_signals(&events).map_err(InitError::at("watch", "signals"))?;
    let vault = Arc::new(VaultHandle::new().map_err(InitError::Vault)?);
    let consoles = install_on_order(&log, &events, watchdog.as_ref()).await?;
    let prepare = {
        let log = log.clone();
        move || wipe::after(|| prepare(facts, vault, &log))
    };
    let prepared = tokio::task::spawn_blocking(prepare);
    let booted = feed_while(prepared, watchdog.as_ref(), DISK_MAX).await?;
    power::watch(&events);
    if let Err(error) = vsock::watch(&events) {
        tracing::debug!(%error, "no console over the vsock");
    }
    let consoles = consoles.unwrap_or_else(|| open_consoles(&log, &events));
    let mut machine = InitMachine::new(booted, log, events, watchdog, consoles);
    // The first turn starts the node now, and not with the first event.
    machine.turn(MachineEvent::Tick);
    loop {
        let event = tokio::select! {
            event = arriving.recv() => event.unwrap_or(MachineEvent::Tick),
            () = tokio::time::sleep(machine.idle()) => MachineEvent::Tick,
        };
        machine.turn(event);
    }
}

/// Carries out the order of this start to install the image onto a disk, and ends the machine then. Without an order it
/// does nothing. If the order cannot be carried out, the data of this start stay closed, and the consoles that show the
/// work are returned.
async fn install_on_order(
    log: &InitLog,
    events: &mpsc::Sender<MachineEvent>,
    watchdog: Option<&Watchdog>,
) -> Result<Option<Vec<MachineConsole>>, InitError> {
    let find = {
        let log = log.clone();
        move || {
            // The order may be on one of them, and the disk may be one.
            data::wait_for_usb_drives(Path::new("/sys"), &log);
            wipe::after(InstallJob::find)
        }
    };
    let found = feed_while(tokio::task::spawn_blocking(find), watchdog, DISK_MAX).await?;
    let Some(job) = found else {
        return Ok(None);
    };
    let consoles = open_consoles(log, events);
    let work = {
        let log = log.clone();
        let shown: Vec<_> = consoles.iter().map(|it| it.console.clone()).collect();
        move || {
            job.run(&mut |line| {
                log.info(&line);
                shown
                    .iter()
                    .for_each(|console| console.say(format!("alknet: {line}")));
            })
        }
    };
    let done = feed_while(tokio::task::spawn_blocking(work), watchdog, INSTALL_MAX).await?;
    match done {
        Ok(action) => {
            sync();
            // The consoles are tasks of this loop, and write the last line meanwhile.
            tokio::time::sleep(INSTALLED_PAUSE).await;
            shutdown::end(action)
        }
        Err(error) => {
            install::refuse(&error);
            Ok(Some(consoles))
        }
    }
}

/// Opens the console, and the screen with its keyboard beside it where the machine has one, and shows the log on
/// both. A machine without either serves all the same.
fn open_consoles(log: &InitLog, events: &mpsc::Sender<MachineEvent>) -> Vec<MachineConsole> {
    let open = |path: &str| {
        let (id, answers) = listener(events);
        let opens = match path {
            SCREEN => InitConsole::open_screen,
            _ => InitConsole::open,
        };
        let console = opens(Path::new(path), answers)
            .inspect_err(|error| log.warn(format_args!("no console at {path}: {error}")))
            .ok()?;
        tokio::spawn(show_log(console.clone(), log.clone()));
        Some(MachineConsole { id, console })
    };
    let screen = has_screen().then(|| open(SCREEN)).flatten();
    open("/dev/console").into_iter().chain(screen).collect()
}

/// Whether the kernel draws virtual terminals on a screen, and `/dev/console` is not one of them.
fn has_screen() -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let terminals = fs::read_dir("/sys/class/vtconsole");
    let mut names = terminals
        .into_iter()
        .flatten()
        .flatten()
        .map(|one| read(&format!("{}/name", one.path().display())));
    !is_virtual_terminal(&read("/sys/class/tty/console/active")) && names.any(|name| draws(&name))
}

/// Whether `/dev/console` leads to a virtual terminal: to the last one in the kernel's list of active consoles.
fn is_virtual_terminal(active: &str) -> bool {
    let last = active.split_whitespace().last().unwrap_or_default();
    let number = last.strip_prefix("tty");
    number.is_some_and(|number| number.parse::<u8>().is_ok())
}

/// Whether a driver of virtual terminals has a screen, by its name in sysfs: text by the card (BIOS) or a frame buffer
/// (UEFI). Without either the kernel has the dummy device, which draws nothing.
fn draws(name: &str) -> bool {
    name.contains("VGA") || name.contains("frame buffer")
}

/// The id of a new console, and the channel for its inputs.
pub(crate) fn listener(
    events: &mpsc::Sender<MachineEvent>,
) -> (ConsoleId, mpsc::Sender<ConsoleInput>) {
    let (answers, typed) = mpsc::channel(ANSWERS_MAX);
    let console = ConsoleId::unique();
    tokio::spawn(listen(console, typed, events.clone()));
    (console, answers)
}

/// Passes on the user's inputs at a console to the loop, and at last that the console is gone.
async fn listen(
    console: ConsoleId,
    mut typed: mpsc::Receiver<ConsoleInput>,
    events: mpsc::Sender<MachineEvent>,
) {
    while let Some(input) = typed.recv().await {
        let answered = MachineEvent::Answered { console, input };
        if events.send(answered).await.is_err() {
            return;
        }
    }
    // The loop ends only with the machine.
    let _ = events.send(MachineEvent::ConsoleGone(console)).await;
}

async fn show_log(console: InitConsole, log: InitLog) {
    let mut grown = log.follow();
    let mut next = 0;
    loop {
        let records: Vec<_> = {
            let ring = log.ring();
            let from = std::mem::replace(&mut next, ring.next());
            ring.since(from).map(|(_, record)| record.clone()).collect()
        };
        for record in records {
            console.log(record);
        }
        if grown.changed().await.is_err() {
            return;
        }
    }
}

/// Does everything that waits for disks: the data, the clock's note, the configuration.
fn prepare(mut facts: InitFacts, vault: Arc<VaultHandle>, log: &InitLog) -> BootResult {
    data::wait_for_usb_drives(Path::new("/sys"), log);
    // Before anything that may hang: a version on trial notes how far it came.
    let begun = UpdateStart::begin(log);
    let offer = UnlockCredentials::default();
    let took_blank = begun.takes_blank_disk();
    let mut opened = open(&vault, offer, took_blank, log);
    // The disk may have been slow to appear, and was waited for with the data.
    let is_unread = UpdateStart::is_unread(begun.report.as_ref());
    opened.look_for_slots(&begun.system, is_unread);
    let update = opened.update.take().map_or(begun, |found| *found);
    if !took_blank && update.takes_blank_disk() && opened.refuses_blank_disk() {
        opened = open(&vault, opened.offer, true, log);
    }
    stage::record_stage(&mut facts.stages, BootStageName::Data);
    facts.fault_injection =
        alknet_provisioning::fault_injection(&alknet_provisioning::SourcePaths::system());
    if facts.fault_injection {
        log.warn("fault injection is switched on by the hypervisor: this is a test machine");
    }
    stage::record_stage(&mut facts.stages, BootStageName::Config);
    BootResult {
        facts,
        opened,
        vault,
        update,
    }
}

/// One attempt to open the data, with the user's credentials. `takes_blank` says whether a blank disk becomes this
/// machine's.
pub(crate) fn open(
    vault: &VaultHandle,
    offer: UnlockCredentials,
    takes_blank: bool,
    log: &InitLog,
) -> OpenedData {
    let access = DataAccess {
        vault,
        offer: &offer,
        log,
        takes_blank,
    };
    let mut prepared = data::prepare(access);
    let opened = prepared.vault.take();
    let data_dir = settings::data_dir(&prepared.state.mode, &prepared.state_dir);
    let clock = match clock::settle(data_dir.as_deref()) {
        Ok(source) => ClockState::Local(source),
        Err(error) => {
            log.error(format_args!("the clock cannot be set: {error}"));
            ClockState::Unset
        }
    };
    let pasted = offer.pasted.as_ref().map(ConsoleDocument::copied);
    let words = opened.as_ref().map(OpenAlkv::entropy);
    let settings = NodeSettings::read(data_dir.as_deref(), vault, words, pasted);
    let prepared = data::conclude(prepared, opened, &settings, access);
    OpenedData {
        settings,
        prepared,
        clock,
        offer,
        update: None,
    }
}

/// Waits for the disk thread, and feeds the watchdog up to the limit.
async fn feed_while<T>(
    mut work: JoinHandle<T>,
    watchdog: Option<&Watchdog>,
    limit: Duration,
) -> Result<T, InitError> {
    let begun = Instant::now();
    loop {
        if let Some(watchdog) = watchdog {
            watchdog.feed();
        }
        match tokio::time::timeout(FEED_EVERY, &mut work).await {
            Ok(done) => {
                let path = "the data disk";
                let failed = |error| InitError::at("prepare", path)(io::Error::other(error));
                return done.map_err(failed);
            }
            Err(_) if begun.elapsed() < limit => {}
            Err(_) => {
                let source = io::ErrorKind::TimedOut.into();
                return Err(InitError::at("prepare in time", "the data disk")(source));
            }
        }
    }
}

/// Watches for ended children, and for the signals that stop a machine. Ctrl-Alt-Delete arrives as
/// SIGINT.
fn watch_signals(events: &mpsc::Sender<MachineEvent>) -> io::Result<()> {
    // The kernel refuses this only to a process without CAP_SYS_BOOT, which PID 1 has (reboot(2)).
    let _ = set_cad_enabled(false);
    forward(SignalKind::child(), events, || MachineEvent::Children)?;
    forward(SignalKind::interrupt(), events, || {
        MachineEvent::Signal(PowerAction::Reboot)
    })?;
    forward(SignalKind::terminate(), events, || {
        MachineEvent::Signal(PowerAction::Poweroff)
    })?;
    let power_fail = SignalKind::from_raw(libc::SIGPWR);
    forward(power_fail, events, || {
        MachineEvent::Signal(PowerAction::Poweroff)
    })
}

fn forward(
    kind: SignalKind,
    events: &mpsc::Sender<MachineEvent>,
    event: fn() -> MachineEvent,
) -> io::Result<()> {
    let mut arriving = signal(kind)?;
    let events = events.clone();
    tokio::spawn(async move {
        while arriving.recv().await.is_some() && events.send(event()).await.is_ok() {}
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_panic_is_kept() {
        let texts = [
            panic::catch_unwind(|| panic!("plain")),
            panic::catch_unwind(|| panic!("with {}", "arguments")),
            panic::catch_unwind(|| panic::panic_any(7)),
        ]
        .map(|outcome| panic_text(&*outcome.expect_err("it panicked")));
        assert_eq!(texts, ["plain", "with arguments", "a panic without words"]);
    }

    #[test]
    fn panics_of_tasks_reach_the_log() {
        let log = InitLog::default();
        let before = panic::take_hook();
        record_panics(&log);
        let _ = panic::catch_unwind(|| panic!("seen"));
        panic::set_hook(before);
        let ring = log.ring();
        assert!(
            ring.since(0)
                .any(|(_, record)| record.message.contains("seen"))
        );
    }

    #[test]
    fn a_screen_is_a_terminal_that_the_kernel_draws_and_the_console_is_not() {
        for (name, drawn) in [
            ("(S) dummy device\n", false),
            ("(S) VGA+\n", true),
            ("(M) frame buffer device\n", true),
            ("", false),
        ] {
            assert_eq!(draws(name), drawn, "{name}");
        }
        for (active, virtual_terminal) in [
            ("tty0 ttyS0\n", false),
            ("ttyS0 tty0\n", true),
            ("ttyS0\n", false),
            ("hvc0\n", false),
            ("", false),
        ] {
            assert_eq!(is_virtual_terminal(active), virtual_terminal, "{active}");
        }
    }
}
