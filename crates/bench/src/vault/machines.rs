//! What a vault costs a machine: from power-on to the served port with sealed data, by each type of slot,
//! beside the same machine whose data is not sealed; and by a TPM, on a machine that has one and firmware
//! that measures, beside the same machine with a key that lies on the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{Accel, ConsoleLine, VirtioDisk, Vm, VmBuilder, blank, copy};
use data_encoding::BASE64;

use super::share_server::{ShareServerMachine, patient};
use super::{BENCH, MEGA};
use crate::rows::{BenchRow, Goal, median};
use alknet_tasks::binary;
use alknet_tasks::context::XtaskContext;
use alknet_tasks::driver::DriverSelection;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::image::{self, ImageFiles};
use alknet_tasks::kernel::{self, KernelFiles};
use alknet_tasks::node::{self, MachineType, NodeCli};

/// What PID 1 prints when the port is served.
const READY: &str = "alknet: ready ";
/// What the console asks for.
const ASKS: &str = "alknet: asks: ";
/// From power-on until it asks.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// How long it takes to take an answer in, before the next one.
const AGAIN: &str = "the same again";
const PASSPHRASE: &str = "correct horse battery staple\r";
const PIN: &str = "1234\r";
pub(super) const DISK_BYTES: u64 = 1 << 30;

/// What the peer is called in rows.
const UNSEALED: &str = "data that is not sealed";
/// A boot with sealed data may take so much longer, Argon2id excluded.
const MORE_S: f64 = 1.0;

/// What it is called in rows of machines with a TPM.
const ON_DISK: &str = "slot none on the same machine";
/// Opening by a TPM may take so much longer than by a key that lies on the disk.
const TPM_S: f64 = 1.0;

/// How the data is protected, and on which machine: the last three have a TPM and firmware. For `Kms` a
/// second machine keeps a share of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SealKind {
    Unsealed,
    None,
    Provisioning,
    Passphrase,
    Kms,
    Measured,
    Tpm2,
    Tpm2Pin,
}

impl SealKind {
    const ALL: [Self; 8] = [
        Self::Unsealed,
        Self::None,
        Self::Provisioning,
        Self::Passphrase,
        Self::Kms,
        Self::Measured,
        Self::Tpm2,
        Self::Tpm2Pin,
    ];

    const fn machine(self) -> MachineType {
        match self {
            Self::Measured | Self::Tpm2 | Self::Tpm2Pin => MachineType::Uefi,
            _ => MachineType::Microvm,
        }
    }

    /// A TPM and another machine answer in their own time, so that instructions of a machine that waits for
    /// one are no measure.
    const fn is_counted(self) -> bool {
        matches!(self.machine(), MachineType::Microvm) && !matches!(self, Self::Kms)
    }

    /// What the benchmark types at the machine's console, if anything.
    const fn typed(self) -> Option<&'static str> {
        match self {
            Self::Passphrase => Some(PASSPHRASE),
            Self::Tpm2Pin => Some(PIN),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Unsealed => "unsealed",
            Self::None => "none",
            Self::Provisioning => "provisioning",
            Self::Passphrase => "passphrase",
            Self::Kms => "kms",
            Self::Measured => "measured",
            Self::Tpm2 => "tpm2",
            Self::Tpm2Pin => "tpm2-pin",
        }
    }

    /// What the document says besides; `code` leads to who keeps a share.
    fn document(self, code: &str) -> String {
        match self {
            Self::Unsealed => "[vault]\ninit = \"off\"\n".to_owned(),
            Self::Provisioning => {
                let key = BASE64.encode(&[0x5e; 32]);
                let vault = "27209049-2f6c-46bf-a462-c718ee429cc0";
                format!(
                    "[vault]\nunlock = [\"provisioning\"]\n\
                     [secrets]\nseed_key = \"alknet-seed-1 {vault} {key}\"\n"
                )
            }
            Self::Kms => {
                format!("[vault]\nunlock = [\"kms\"]\n[vault.kms]\ncode = \"{code}\"\n")
            }
            Self::Measured => "[vault]\nunlock = [\"none\"]\n".to_owned(),
            Self::Tpm2Pin => "[vault]\nunlock = [\"tpm2\"]\ntpm_pin = true\n".to_owned(),
            Self::None | Self::Passphrase | Self::Tpm2 => {
                format!("[vault]\nunlock = [\"{}\"]\n", self.name())
            }
        }
    }
}

/// From power-on, or from the Enter key behind a passphrase or a PIN, to the served port.
#[derive(Clone, Copy, Debug)]
struct UnlockCost {
    cpu_s: f64,
    wall_s: f64,
    minsn: Option<f64>,
}

impl UnlockCost {
    fn between(begin: Option<&ConsoleLine>, end: &ConsoleLine) -> Self {
        let count = |line: &ConsoleLine| line.instructions.map(|count| count as f64 / MEGA);
        let (cpu, at) = begin.map_or((Duration::ZERO, Duration::ZERO), |line| (line.cpu, line.at));
        let before = begin.map_or(Some(0.0), count);
        Self {
            cpu_s: (end.cpu.saturating_sub(cpu)).as_secs_f64(),
            wall_s: (end.at.saturating_sub(at)).as_secs_f64(),
            minsn: count(end).zip(before).map(|(end, before)| end - before),
        }
    }
}

struct UnlockBench {
    image: ImageFiles,
    kernel: KernelFiles,
    cli: NodeCli,
    admin: String,
    share_server: ShareServerMachine,
    scratch: tempfile::TempDir,
}

/// Measures, each round one boot of every kind, by the clock and counted.
pub(super) fn rows(cx: &XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let stage = UnlockBench::prepare(cx)?;
    for kind in SealKind::ALL {
        stage.for_kind(kind, || stage.first_boot(kind))?;
    }
    let mut costs: BTreeMap<SealKind, Vec<UnlockCost>> = BTreeMap::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        for counted in [false, true] {
            for kind in SealKind::ALL {
                if counted && !kind.is_counted() {
                    continue;
                }
                costs
                    .entry(kind)
                    .or_default()
                    .push(stage.for_kind(kind, || stage.boot(kind, counted))?);
            }
        }
    }
    Ok(rows_of(&costs))
}

fn rows_of(costs: &BTreeMap<SealKind, Vec<UnlockCost>>) -> Vec<BenchRow> {
    let of = |kind: SealKind, counted: bool, what: fn(&UnlockCost) -> f64| {
        let all = costs.get(&kind).into_iter().flatten();
        // A guest whose instructions are counted is slower.
        let some = all.filter(|cost| cost.minsn.is_some() == counted);
        median(some.map(what).collect())
    };
    let minsn = |cost: &UnlockCost| cost.minsn.unwrap_or(f64::NAN);
    let mut rows = Vec::new();
    for kind in [SealKind::None, SealKind::Provisioning] {
        let case = format!("microvm: power-on to served, slot {}", kind.name());
        let row = |unit, counted, what: fn(&UnlockCost) -> f64| {
            BenchRow::lower(BENCH, case.clone(), unit, of(kind, counted, what))
                .beside(UNSEALED, of(SealKind::Unsealed, counted, what))
        };
        rows.push(row("CPU s", false, |cost| cost.cpu_s));
        rows.push(row("M instructions", true, minsn));
        let wall = row("s wall", false, |cost| cost.wall_s);
        let more = wall.ours - wall.peer.unwrap_or(f64::NAN);
        rows.push(wall);
        let case = format!("microvm: sealed data costs a boot, slot {}", kind.name());
        rows.push(BenchRow::lower(BENCH, case, "s wall", more).goal(Goal::Ours(MORE_S)));
    }
    let case = "microvm: passphrase typed to served";
    let kind = SealKind::Passphrase;
    rows.extend([
        BenchRow::lower(BENCH, case, "CPU s", of(kind, false, |cost| cost.cpu_s)),
        BenchRow::lower(BENCH, case, "s wall", of(kind, false, |cost| cost.wall_s)),
        BenchRow::lower(BENCH, case, "M instructions", of(kind, true, minsn)),
    ]);
    let by_node = |unit, what: fn(&UnlockCost) -> f64| {
        let case = "microvm: power-on to served, slot kms";
        BenchRow::lower(BENCH, case, unit, of(SealKind::Kms, false, what))
            .beside(UNSEALED, of(SealKind::Unsealed, false, what))
    };
    rows.extend([
        by_node("CPU s", |cost| cost.cpu_s),
        by_node("s wall", |cost| cost.wall_s),
    ]);
    let by_tpm = |unit, what: fn(&UnlockCost) -> f64| {
        let case = "PC with firmware: power-on to served, slot tpm2";
        BenchRow::lower(BENCH, case, unit, of(SealKind::Tpm2, false, what))
            .beside(ON_DISK, of(SealKind::Measured, false, what))
    };
    let wall = by_tpm("s wall", |cost| cost.wall_s);
    let more = wall.ours - wall.peer.unwrap_or(f64::NAN);
    rows.extend([by_tpm("CPU s", |cost| cost.cpu_s), wall]);
    let case = "PC with firmware: opening by the TPM costs a boot";
    rows.push(BenchRow::lower(BENCH, case, "s wall", more).goal(Goal::Ours(TPM_S)));
    let case = "PC with firmware: PIN typed to served";
    let kind = SealKind::Tpm2Pin;
    rows.extend([
        BenchRow::lower(BENCH, case, "CPU s", of(kind, false, |cost| cost.cpu_s)),
        BenchRow::lower(BENCH, case, "s wall", of(kind, false, |cost| cost.wall_s)),
    ]);
    rows
}

impl UnlockBench {
    fn prepare(cx: &XtaskContext) -> Result<Self> {
        let scratch =
            tempfile::tempdir().map_err(TaskError::io("make a folder for the benchmark"))?;
        let kernel = kernel::ensure(cx)?;
        let binary = binary::whole(cx, &DriverSelection::usual())?;
        let image = image::ensure(cx, &kernel, &binary, &[ImageForm::Erofs, ImageForm::Raw])?;
        let cli = NodeCli::new(&binary, Some(&scratch.path().join("cli")));
        let admin = cli.identity()?;
        Ok(Self {
            share_server: ShareServerMachine::start(&image, &kernel, &cli, &admin, scratch.path())?,
            admin,
            image,
            kernel,
            cli,
            scratch,
        })
    }

    /// Runs `act`, with the machine that keeps the share awake if this kind needs it.
    fn for_kind<T>(&self, kind: SealKind, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match kind {
            SealKind::Kms => self.share_server.awake(act),
            _ => act(),
        }
    }

    fn disk(&self, kind: SealKind) -> PathBuf {
        self.scratch.path().join(kind.name())
    }

    fn machine(&self, kind: SealKind, disk: VirtioDisk) -> Result<VmBuilder> {
        let machine = kind.machine();
        let form = match machine {
            MachineType::Microvm => ImageForm::Erofs,
            _ => ImageForm::Raw,
        };
        let builder = node::builder(&self.image, &self.kernel, form, machine, &self.admin)?;
        let code = self.share_server.code();
        let document = format!("{}{}", node::config(&self.admin), kind.document(code));
        let builder = match kind {
            SealKind::Kms => patient(builder, &self.image),
            _ => builder,
        };
        let builder = builder.accel(Accel::Tcg).config(document);
        Ok(match machine {
            MachineType::Microvm => builder.disk(disk.data()),
            _ => builder
                .disk(disk)
                .tpm(self.chip(kind))
                .variables(self.scratch.path().join("variables")),
        })
    }

    /// The machine's own TPM, as it is; each boot has a copy of what the first left.
    fn chip(&self, kind: SealKind) -> PathBuf {
        self.scratch.path().join(format!("{}.tpm", kind.name()))
    }

    /// The disk before its first boot: blank, or with the image and room behind it.
    fn fresh_disk(&self, kind: SealKind) -> Result<PathBuf> {
        let disk = self.disk(kind);
        if kind.machine() == MachineType::Microvm {
            blank(&disk, DISK_BYTES)?;
            return Ok(disk);
        }
        let (image, lacking) = (&self.image, "the raw image has no disk: build it again");
        let raw = image
            .manifest
            .path(&image.folder, ImageForm::Raw, OutputRole::Disk);
        copy(
            &raw.ok_or_else(|| TaskError::Arguments(lacking.to_owned()))?,
            &disk,
        )?;
        let grow = || {
            let file = File::options().write(true).open(&disk)?;
            file.set_len(file.metadata()?.len() + DISK_BYTES)
        };
        grow().map_err(TaskError::io("make the disk longer"))?;
        Ok(disk)
    }

    /// Makes the vault and the data, and ends in order.
    fn first_boot(&self, kind: SealKind) -> Result<()> {
        let disk = self.fresh_disk(kind)?;
        let mut vm = self.machine(kind, VirtioDisk::file(&disk))?.start()?;
        if let Some(typed) = kind.typed() {
            vm.wait_for(ASKS, ASKED_WITHIN)?;
            send(&vm, typed)?;
            // The machine asks for a new passphrase twice, so that a typing mistake does not lock its owner out.
            vm.wait_for(AGAIN, ASKED_WITHIN)?;
            send(&vm, typed)?;
        }
        let node = node::wait_ready(&vm)?;
        node::power_off(&mut vm, kind.machine(), &self.cli, &node)
    }

    /// Boots from what the first boot left, each time the same.
    fn boot(&self, kind: SealKind, counted: bool) -> Result<UnlockCost> {
        let disk: &Path = &self.disk(kind);
        let mut builder = self.machine(kind, VirtioDisk::snapshot(disk))?;
        if counted {
            builder = builder.count_instructions();
        }
        // Power that is cut counts as a wrong PIN: not for the next boot.
        let chip = tempfile::tempdir().map_err(TaskError::io("make a folder for a TPM"))?;
        if kind.machine() != MachineType::Microvm {
            let copied = copy_files(&self.chip(kind), chip.path());
            copied.map_err(TaskError::io("copy the TPM"))?;
            builder = builder.tpm(chip.path());
        }
        let mut vm = builder.start()?;
        let typed = if let Some(typed) = kind.typed() {
            let line = vm.wait_line(ASKS, ASKED_WITHIN)?;
            // What the machine spends until the answer is typed is not the answer's.
            let now = ConsoleLine {
                cpu: vm.cpu_time().unwrap_or(line.cpu),
                instructions: vm.instructions(),
                at: line.at,
                text: String::new(),
            };
            send(&vm, typed)?;
            Some(now)
        } else {
            None
        };
        let ready = vm.wait_line(READY, ASKED_WITHIN)?;
        vm.cut_power()?;
        Ok(UnlockCost::between(typed.as_ref(), &ready))
    }
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

fn send(vm: &Vm, typed: &str) -> Result<()> {
    let sent = vm.console().send(typed);
    sent.map_err(TaskError::io("type at the console"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_and_plain_boots_are_kept_apart() {
        let cost = |wall_s, minsn| UnlockCost {
            cpu_s: wall_s,
            wall_s,
            minsn,
        };
        let all = |more: f64| vec![cost(1.0 + more, None), cost(9.0, Some(100.0 + more))];
        let costs = SealKind::ALL.map(|kind| {
            (
                kind,
                all(if kind == SealKind::Unsealed { 0.0 } else { 0.5 }),
            )
        });
        let rows = rows_of(&costs.into());
        let more = rows.iter().find(|row| row.case.contains("costs a boot"));
        assert_eq!(more.expect("measured").ours, 0.5);
        let counted = rows.iter().find(|row| row.unit == "M instructions");
        assert_eq!(counted.expect("measured").peer, Some(100.0));
    }

    #[test]
    fn each_kind_says_what_it_is() {
        for kind in SealKind::ALL {
            let document = kind.document("alkjoin1_code");
            let sealed = document.contains("unlock");
            assert_eq!(sealed, kind != SealKind::Unsealed, "{document}");
        }
    }
}
