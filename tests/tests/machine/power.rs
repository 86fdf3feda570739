//! A machine loses its power at any moment, and switches off by the power button and by an operation.
//!
//! `ALKNET_SOAK=full` makes the 600 power cuts that the project promises. `ALKNET_SEED` repeats a campaign.

mod campaign;
mod clients;
mod files;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use alknet_call::{CallConnection, CallOptions, ErrorCode, Subscription};
use alknet_core::{Carriage, CloseCode, CloseReason};
use alknet_qemu::{DiskRecorder, DiskRecording, ScratchDir, VirtioDisk};
use alknet_sealed::PartitionContent;
use alknet_sealed::limits::VAULT_B_AT;
use alknet_tests::tools::{
    RAW_DATA_AT, assert_clean, has_groups_without_descriptors, replay, tool_says,
};
use alknet_tests::{
    BootVariant, MachineBuilder, MachineNode, READY, TestBench, TokenCallers, notes_of_tokens,
};
use alknet_vault::slots::{FileCopyStorage, VaultCopies};
use serde_json::{Value, json};

pub(super) use campaign::{CampaignRng, Evidence, cut_now};
use clients::{Answer, CollectedCounts};

use super::disks::small;
use super::vault::VAULT_A_AT;

/// Environment variable that `cargo xtask soak` sets to `full`.
const COUNT_VARIABLE: &str = "ALKNET_SOAK";
/// By how much the clocks of the later lives of a machine with clients are ahead.
const SECOND_LIFE: &str = "1 hour";
const NEXT_LIFE: &str = "2 hours";
/// Cuts that the soak promises for each of the four campaigns. Outside the soak each campaign names its own count: one
/// cut of each kind.
const CUTS_FULL: usize = 100;
/// Bytes of the header, the key slots and the vault of a sealed disk (docs/sealed.md).
const HEAD_BYTES: u64 = 16 << 20;
/// Number of random losses of each write of the head that the test examines.
const LOOKS: usize = 4;
/// Size of the blank data disk whose power the test cuts.
const DISK_BYTES: u64 = 256 << 20;
/// Where the superblock and the group descriptors of the data lie on a disk image.
const DESCRIBED: Range<u64> = RAW_DATA_AT..RAW_DATA_AT + 8192;
/// Longest time from the decision to go down until the machine is off: the bound that `docs/machine.md` states.
const OFF_WITHIN: Duration = Duration::from_secs(25);
/// Longest wait for everything that a caller receives until the node closes its connection.
const GOODBYE_WITHIN: Duration = Duration::from_secs(30);
/// Deadline of the call that ends by itself while the node drains.
const CALL_MS: Duration = Duration::from_secs(3);
/// Deadline of the call that outlives the drain.
const LONG_CALL: Duration = Duration::from_secs(600);

#[test]
fn a_power_cut_on_a_blank_disk_never_costs_the_identity() {
    campaign(PowerRecording::of_clients(), Some(0), 2);
}

#[test]
fn a_power_cut_on_a_blank_disk_that_is_sealed_never_costs_the_identity() {
    // The test of the head, below, makes the cuts before the announcement.
    campaign(PowerRecording::of_sealing(), None, 1);
}

/// Power cuts in the writes of the vault's copies, the header and its key slots. Few moments of a campaign fall into
/// these writes, and an error in one of them would leave a disk that nothing opens. The test cuts at every such moment
/// and examines the head. It boots one result of each kind, and in a full campaign also as many as the campaign
/// promises.
#[test]
fn a_power_cut_in_the_head_of_a_sealed_disk_leaves_a_vault_that_opens() {
    let bench = TestBench::new();
    let session = PowerRecording::of_sealing();
    let moments = session.recording.writes_in(0..HEAD_BYTES);
    let vault = session.recording.writes_in(VAULT_A_AT..HEAD_BYTES);
    assert!(
        moments.len() > vault.len() && vault.len() > 1,
        "{moments:?} {vault:?}"
    );
    eprintln!(
        "{} writes of the head, of which {} of the vault",
        moments.len(),
        vault.len()
    );
    let mut dice = CampaignRng::from_environment();
    let image = Evidence(bench.path().join("cut.raw"));
    let mut kinds: BTreeMap<DiskHeadState, Vec<(usize, u64)>> = BTreeMap::new();
    for moment in &moments {
        for _ in 0..LOOKS {
            let seed = dice.next();
            let cut = session.recording.cut_blank(*moment, seed, &image.0);
            cut.unwrap_or_else(|error| panic!("{error}"));
            let head = DiskHeadState::read(&image.0);
            let is_lost = head.header == HeaderState::Sealed && !head.vault;
            assert!(!is_lost, "moment {moment}, seed {seed}: no vault");
            assert!(
                *moment < session.announced || head == DiskHeadState::WHOLE,
                "moment {moment}, seed {seed}: {head:?} after the announcement"
            );
            kinds.entry(head).or_default().push((*moment, seed));
        }
    }
    assert!(kinds.len() > 2, "{:?}", kinds.keys());
    let one_of_each = kinds.values().map(|cuts| cuts[dice.below(cuts.len())]);
    let mut booted: Vec<_> = one_of_each.collect();
    if is_full() {
        // Every second cut is in the vault.
        booted.extend((0..CUTS_FULL).map(|number| {
            let some = if number % 2 == 0 { &vault } else { &moments };
            (some[dice.below(some.len())], dice.next())
        }));
    }
    for (number, (moment, seed)) in booted.into_iter().enumerate() {
        let cut = session.recording.cut(moment, seed, &image.0);
        let cut = cut.unwrap_or_else(|error| panic!("{error}"));
        let head = DiskHeadState::read(&image.0);
        eprintln!("cut {number}: moment {moment}, seed {seed}: {cut:?}, {head:?}");
        session.serves_again(&bench, &image.0, moment);
    }
}

/// State of a sealed disk's head, as a start finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DiskHeadState {
    header: HeaderState,
    /// Whether the machine ever finished a vault.
    vault: bool,
}

/// How much of a header the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HeaderState {
    None,
    Half,
    Sealed,
}

impl DiskHeadState {
    const WHOLE: Self = Self {
        header: HeaderState::Sealed,
        vault: true,
    };

    /// Reads the head of the disk in the file `disk`. The test fails if a start would refuse that head.
    fn read(disk: &Path) -> Self {
        let file = File::open(disk).expect("it was made");
        let bytes = file.metadata().expect("it was made").len();
        let header = match alknet_sealed::SealedPartition::probe(&file, bytes).expect("readable") {
            PartitionContent::Unsealed => HeaderState::None,
            PartitionContent::HalfFormatted => HeaderState::Half,
            PartitionContent::Sealed(_) => HeaderState::Sealed,
            other => panic!("{other:?}"),
        };
        let area = |at| FileCopyStorage::at(disk, at);
        let vault = VaultCopies::new(area(VAULT_A_AT), area(VAULT_B_AT)).load();
        Self {
            header,
            vault: vault.expect("one or none").is_some(),
        }
    }
}

#[test]
fn a_power_cut_on_a_disk_image_that_grows_never_costs_the_identity() {
    // The test of the growth, below, makes the cuts before the announcement.
    campaign(PowerRecording::of_growth(), Some(RAW_DATA_AT), 1);
}

/// Power cuts after which the replay of the journal completes the growth. Few moments of a campaign are such moments,
/// so the test searches for them. It boots the first of them, or in a full campaign all.
#[test]
fn a_power_cut_while_the_file_system_grows_is_made_up_for() {
    let bench = TestBench::new();
    let session = PowerRecording::of_growth();
    let image = Evidence(bench.path().join("cut.raw"));
    let mut found = 0;
    for moment in 0..session.announced {
        let seed = moment as u64;
        // The file system that grows lies on a part of the disk that was blank.
        let cut = session.recording.cut_blank(moment, seed, &image.0);
        cut.unwrap_or_else(|error| panic!("{error}"));
        let (before, after) = replay(&image.0, RAW_DATA_AT);
        if before == after {
            continue;
        }
        found += 1;
        eprintln!("moment {moment}: {before} blocks, {after} after the replay");
        let cut = session.recording.cut(moment, seed, &image.0);
        cut.unwrap_or_else(|error| panic!("{error}"));
        session.serves_again(&bench, &image.0, moment);
        assert_clean(&image.0, RAW_DATA_AT);
        if !is_full() {
            break;
        }
    }
    assert_ne!(found, 0, "no moment of the growth was cut");
}

/// Power cuts after which the superblock counts groups whose descriptors only the journal has.
#[test]
fn a_power_cut_between_the_count_of_groups_and_their_descriptors_is_made_up_for() {
    const SEEDS: u64 = 64;
    let bench = TestBench::new();
    let session = PowerRecording::of_growth();
    let image = Evidence(bench.path().join("cut.raw"));
    let moments = session.recording.writes_in(DESCRIBED);
    let mut cuts = moments
        .iter()
        .flat_map(|moment| (0..SEEDS).map(move |seed| (*moment, seed)));
    let (moment, seed) = cuts
        .find(|(moment, seed)| {
            let cut = session.recording.cut_blank(*moment, *seed, &image.0);
            cut.unwrap_or_else(|error| panic!("{error}"));
            has_groups_without_descriptors(&image.0, RAW_DATA_AT)
        })
        .unwrap_or_else(|| panic!("no cut in {moments:?} parts them"));
    eprintln!("moment {moment}, seed {seed}");
    let cut = session.recording.cut(moment, seed, &image.0);
    cut.unwrap_or_else(|error| panic!("{error}"));
    session.serves_again(&bench, &image.0, moment);
    assert_clean(&image.0, RAW_DATA_AT);
}

/// Boots from what random power cuts leave of a disk. `at` is the byte where the file system lies, and `None` for a
/// sealed file system. The campaign makes `short` cuts, or all that the soak promises.
fn campaign(session: &PowerRecording, at: Option<u64>, short: usize) {
    let bench = TestBench::new();
    let mut dice = CampaignRng::from_environment();
    for number in 0..cuts(short) {
        // One half of the cuts comes before the machine announced the identity, and one half after, while the machine
        // writes.
        let moment = if number % 2 == 0 {
            session.announced + dice.below(session.recording.len() - session.announced + 1)
        } else {
            dice.below(session.announced)
        };
        let image = Evidence(bench.path().join("cut.raw"));
        let seed = dice.next();
        let cut = session
            .recording
            .cut(moment, seed, &image.0)
            .unwrap_or_else(|error| panic!("{error}"));
        let (last, announced) = (session.recording.len(), session.announced);
        eprintln!(
            "cut {number}: moment {moment} of {last}, announced at {announced}, seed {seed}: {cut:?}"
        );
        session.serves_again(&bench, &image.0, moment);
        if let Some(at) = at {
            assert_clean(&image.0, at);
        }
    }
}

/// Number of cuts in a campaign that makes `short` cuts outside the soak.
fn cuts(short: usize) -> usize {
    if is_full() { CUTS_FULL } else { short }
}

/// Whether the environment requests all cuts that the project promises.
pub(super) fn is_full() -> bool {
    std::env::var(COUNT_VARIABLE).is_ok_and(|value| value == "full")
}

/// Whether the data partition is encrypted and the vault derives the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartitionEncryption {
    No,
    Yes,
}

/// How long the test records a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordedLives {
    /// From the machine's first boot to its orderly end.
    One,
    /// The same and a second boot, which changes the stored data.
    Two,
}

/// The disk before the first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BaseDisk {
    /// A blank data disk.
    Blank,
    /// The disk image, on a disk larger than it.
    Image,
}

/// What is recorded.
#[derive(Clone, Copy, Debug)]
struct Recorded {
    base: BaseDisk,
    sealed: PartitionEncryption,
    lives: RecordedLives,
    /// Whether clients write files in each life.
    has_clients: bool,
}

impl Recorded {
    const fn new(base: BaseDisk, sealed: PartitionEncryption, lives: RecordedLives) -> Self {
        Self {
            base,
            sealed,
            lives,
            has_clients: false,
        }
    }
}

/// Recording of what a machine wrote in its first life, or in its first two.
struct PowerRecording {
    recording: DiskRecording,
    /// Number of events on the disk when the machine had announced the identity.
    announced: usize,
    identity: String,
    base: BaseDisk,
    sealed: PartitionEncryption,
    /// What clients of the machine's files were answered, in the order of the moments.
    answers: Vec<Answer>,
    /// Folder with the disk as it was before the recording, which is the base of every cut. Rust never drops the
    /// content of a static: the next program that starts machines removes the folder.
    _folder: ScratchDir,
}

impl PowerRecording {
    /// Recording of a blank disk that a machine seals, made once for all campaigns.
    fn of_sealing() -> &'static Self {
        static ONE: OnceLock<PowerRecording> = OnceLock::new();
        ONE.get_or_init(|| {
            let sealed = PartitionEncryption::Yes;
            Self::record(Recorded::new(BaseDisk::Blank, sealed, RecordedLives::Two))
        })
    }

    /// Recording of a blank disk on which clients write files, made once for all campaigns.
    fn of_clients() -> &'static Self {
        static ONE: OnceLock<PowerRecording> = OnceLock::new();
        ONE.get_or_init(|| {
            // The campaign on the image that grows cuts what a later boot writes into the same file system.
            let lives = match is_full() {
                true => RecordedLives::Two,
                false => RecordedLives::One,
            };
            let recorded = Recorded {
                has_clients: true,
                ..Recorded::new(BaseDisk::Blank, PartitionEncryption::No, lives)
            };
            Self::record(recorded)
        })
    }

    /// Recording of a disk image that grows, made once for all campaigns.
    fn of_growth() -> &'static Self {
        static ONE: OnceLock<PowerRecording> = OnceLock::new();
        ONE.get_or_init(|| {
            let sealed = PartitionEncryption::No;
            Self::record(Recorded::new(BaseDisk::Image, sealed, RecordedLives::Two))
        })
    }

    fn record(recorded: Recorded) -> Self {
        let Recorded {
            base,
            sealed,
            lives,
            has_clients,
        } = recorded;
        let (bench, folder) = (&TestBench::new(), ScratchDir::new());
        let folder = folder.unwrap_or_else(|error| panic!("{error}"));
        let before = folder.file("before");
        let disk = match base {
            BaseDisk::Blank => bench.disk("blank", DISK_BYTES),
            BaseDisk::Image => bench.raw(),
        };
        alknet_qemu::copy(&disk, &before).unwrap_or_else(|error| panic!("{error}"));
        let recorder = DiskRecorder::serve(&before).unwrap_or_else(|error| panic!("{error}"));
        let disk = || base.disk(VirtioDisk::recorded(&recorder));
        let node = machine(bench, "first", disk(), sealed).boot();
        let (announced, identity) = (recorder.recording().len(), node.identity().to_owned());
        let mut answers = Vec::new();
        if has_clients {
            answers.extend(clients::work(&node, &recorder, 0).answers);
        }
        node.end();
        if lives == RecordedLives::Two {
            let second = machine(bench, "second", disk(), sealed);
            // What was removed in the first life is old enough to be collected.
            let mut node = match has_clients {
                true => later(second, SECOND_LIFE).boot(),
                false => second.boot(),
            };
            assert_eq!(node.identity(), identity);
            let said = node.vm().console().text();
            assert!(said.contains(&format!("{READY}second ")), "{said}");
            if has_clients {
                let work = clients::work(&node, &recorder, 1);
                let CollectedCounts { rows, contents } = work.collected;
                println!("figure collected while clients wrote: {rows} rows, {contents} contents");
                // Otherwise no cut would come while contents are removed.
                assert!(rows > 0 && contents > 0, "{:?}", work.collected);
                answers.extend(work.answers);
            }
            node.vm_mut()
                .cut_power()
                .unwrap_or_else(|error| panic!("{error}"));
        }
        Self {
            recording: recorder.recording(),
            announced,
            identity,
            base,
            sealed,
            answers,
            _folder: folder,
        }
    }

    fn serves_again(&self, bench: &TestBench, image: &Path, moment: usize) {
        let disk = self.base.disk(VirtioDisk::file(image));
        let again = machine(bench, "second", disk, self.sealed);
        let node = match self.answers.is_empty() {
            true => again.boot(),
            // Its clock does not go back.
            false => later(again, NEXT_LIFE).boot(),
        };
        let info = node.info();
        assert_eq!(info["data"]["mode"], "mounted", "{info:#}");
        assert_eq!(info["problems"], json!([]), "{info:#}");
        assert_eq!(info["name"], "second");
        if moment >= self.announced {
            assert_eq!(node.identity(), self.identity, "another identity");
        }
        if !self.answers.is_empty() {
            files::check_on(&node, &self.answers, moment);
        }
        // The test can examine only an unsealed file system from outside the machine.
        if self.sealed == PartitionEncryption::No {
            node.end();
        }
    }
}

impl BaseDisk {
    /// Returns `disk` as the machine attaches it.
    fn disk(self, disk: VirtioDisk) -> VirtioDisk {
        match self {
            Self::Blank => disk.data(),
            Self::Image => disk,
        }
    }
}

/// A machine with this name and this disk.
fn machine<'a>(
    bench: &'a TestBench,
    name: &str,
    disk: VirtioDisk,
    sealed: PartitionEncryption,
) -> MachineBuilder<'a> {
    let admin = bench.admin().identity();
    let machine = bench
        .machine(BootVariant::MicrovmErofs)
        .config(format!(
            "[node]\nname = \"{name}\"\nadmin_keys = [\"{admin}\"]\n"
        ))
        .data(Some(disk));
    match sealed {
        PartitionEncryption::No => machine.plain(),
        PartitionEncryption::Yes => machine,
    }
}

/// A machine whose clock is ahead by so much.
fn later<'a>(machine: MachineBuilder<'a>, ahead: &str) -> MachineBuilder<'a> {
    let clock = tool_says("date", &["-u", "-d", ahead, "+base=%Y-%m-%dT%H:%M:%S"]);
    machine.with(|vm| vm.argument("-rtc").argument(clock.trim()))
}

/// Other callers make tokens meanwhile. The machine keeps each token that it has confirmed, and no other.
#[test]
fn the_power_button_lets_calls_end_and_leaves_the_disk_clean() {
    let bench = TestBench::new();
    let mut node = breakable(&bench);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let limit = node.vm().scale(GOODBYE_WITHIN);
    let goodbye = async {
        // The close of a connection over QUIC carries a code.
        let dial = |carriage| node.client_over(carriage, bench.admin());
        let [(_dialer, client), (_other, by_tcp)] = [
            dial(Carriage::Quic).await.expect("it serves"),
            dial(Carriage::Tcp).await.expect("it serves"),
        ];
        let mut log = client
            .subscribe("node/log", &json!({ "last": 1000, "follow": true }))
            .await
            .expect("it is connected");
        let short = hang(&client, CALL_MS);
        let long = hang(&client, LONG_CALL);
        hear(&mut log, "fault injected").await;
        hear(&mut log, "fault injected").await;
        let mut callers = TokenCallers::default();
        callers.start(&client, "quic", None);
        callers.start(&by_tcp, "tcp", None);
        callers.are_answered().await;
        node.vm()
            .power_button()
            .unwrap_or_else(|error| panic!("{error}"));
        hear(&mut log, "the power button").await;
        // A call that ends within the drain gets its own answer. A longer call gets an error that names the reason.
        assert_eq!(ending(short).await, ErrorCode::Timeout);
        assert_eq!(ending(long).await, ErrorCode::Unavailable);
        let confirmed = callers.refused().await;
        while let Some(event) = log.next().await {
            if let Err(error) = event {
                assert_eq!(error.code, ErrorCode::Unavailable);
            }
        }
        assert!(client.is_draining(), "no goaway was heard");
        let reason = client.closed().await;
        let shutdown = u64::from(CloseCode::Shutdown.code());
        let told = matches!(reason, CloseReason::Peer(Some(code), _) if code == shutdown);
        assert!(told, "{reason}");
        confirmed
    };
    let said = runtime.block_on(async { tokio::time::timeout(limit, goodbye).await });
    let confirmed = said.unwrap_or_else(|_| panic!("no goodbye\n{}", node.vm().report()));
    let exit = node.vm_mut().wait_exit(OFF_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-shutdown"));
    assert_clean(&bench.data(), 0);

    let again = bench.machine(BootVariant::MicrovmErofs).plain().boot();
    assert_eq!(again.identity(), node.identity());
    assert_eq!(again.info()["data"]["clean"], true);
    let listed = again.call("token/list", &Value::Null);
    assert_eq!(notes_of_tokens(&listed), confirmed);
    again.end();
}

/// A machine without a vault that the test can switch off, and on which it can make calls hang.
fn breakable(bench: &TestBench) -> MachineNode {
    let snapshot = bench.snapshot(BootVariant::Q35Initramfs);
    snapshot.plain().faults().restore()
}

/// Makes a call that hangs, with `timeout` as its deadline.
fn hang(
    client: &CallConnection,
    timeout: Duration,
) -> tokio::task::JoinHandle<Result<(), ErrorCode>> {
    let client = client.clone();
    tokio::spawn(async move {
        let options = CallOptions {
            timeout: Some(timeout),
            ..CallOptions::default()
        };
        let input = json!({ "kind": "handler-hang" });
        let answer = client.call_with("node/fault", &input, &options).await;
        answer.map(drop).map_err(|error| error.code)
    })
}

async fn ending(call: tokio::task::JoinHandle<Result<(), ErrorCode>>) -> ErrorCode {
    let outcome = call.await.expect("it does not panic");
    outcome.expect_err("a call that hangs has no answer")
}

/// Follows the log until a record contains `text`.
async fn hear(log: &mut Subscription, text: &str) {
    loop {
        let event = log.next().await.expect("the log goes on");
        let event = event.expect("the log goes on");
        let message = event.output.value()["message"].as_str().unwrap_or_default();
        if message.contains(text) {
            return;
        }
    }
}

#[test]
fn reboot_and_poweroff_are_operations_and_end_in_order() {
    let bench = TestBench::new();
    let mut node = breakable(&bench);
    let (identity, mark) = (node.identity().to_owned(), node.vm().console().mark());
    let accepted = json!({ "accepted": true });
    assert_eq!(node.call("node/reboot", &Value::Null), accepted);
    node.wait_ready(mark);
    assert_eq!(node.identity(), identity);
    assert_eq!(node.info()["data"]["clean"], true);

    assert_eq!(node.call("node/poweroff", &Value::Null), accepted);
    let exit = node.vm_mut().wait_exit(OFF_WITHIN);
    let exit = exit.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exit.reason(), Some("guest-shutdown"));
    assert_clean(&bench.data(), 0);
}

#[test]
fn a_disk_that_was_not_unmounted_says_so_and_is_whole() {
    let bench = TestBench::new();
    let mut node = small(&bench);
    node.vm_mut()
        .cut_power()
        .unwrap_or_else(|error| panic!("{error}"));
    let again = bench.machine(BootVariant::MicrovmErofs).plain().boot();
    assert_eq!(again.identity(), node.identity());
    let info = again.info();
    assert_eq!(info["data"]["clean"], false, "{info:#}");
    assert_eq!(info["problems"], json!([]), "{info:#}");
    again.end();
    assert_clean(&bench.data(), 0);
}
