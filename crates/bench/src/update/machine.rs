//! A machine that is updated, emulated on every host: calls while nothing else happens and while a version is staged,
//! and both kinds of restarts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use alknet_call::{ALPN, CallClient, CallConnection};
use alknet_core::{Carriage, PeerKey};
use alknet_endpoint::{EndpointDialer, Target};
use alknet_image::ImageForm;
use alknet_qemu::{Accel, VirtioDisk, Vm, copy};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};
use alknet_tasks::node::{self, MachineType, NodeCli, ReachableNode};
use alknet_tls::NodeKey;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::calls::CallSeries;
use super::release::{ReleasePair, VERSIONS};
use crate::call::measure::failed;
use crate::child::ChildGuard;
use crate::work_cost::WorkCost;

/// Room behind the image for the data partition.
const DATA_BYTES: u64 = 1 << 30;

/// How long the calm machine is called, before staging and after it.
const CALM: Duration = Duration::from_secs(30);
/// Rest before each measurement, in which the tasks of a start end.
const REST: Duration = Duration::from_secs(10);
/// Longest wait for a state of the updates, on a processor that runs guests itself.
const STATE_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two questions about the state.
const STATE_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a version to be staged, on a processor that runs guests itself.
const STAGED_WITHIN: Duration = Duration::from_secs(60);

const MEGA: f64 = 1e6;

/// What one piece of the machine's work cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct MachineCost {
    /// By the clock, and of QEMU's processor time.
    pub(super) work: WorkCost,
    /// Millions of instructions of the guest, if they are counted.
    pub(super) minsn: Option<f64>,
}

/// What the restarts of a machine that has staged a version cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct RestartCosts {
    /// From `node/reboot` to an answered call.
    pub(super) restart: MachineCost,
    /// From `update/apply` to an answered call.
    pub(super) apply: MachineCost,
}

/// What the pieces of an update by the delta cost a machine whose instructions are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountedCosts {
    /// Of `alknet update --stage` from its start to its end.
    pub(super) staged: MachineCost,
    pub(super) restarts: RestartCosts,
}

/// What a machine did while it staged one bundle.
#[derive(Clone, Debug)]
pub(super) struct StagingRound {
    pub(super) calls: StagingCalls,
    /// Of `alknet update --stage` from its start to its end, with the calls.
    pub(super) cost: MachineCost,
}

/// What the two machines of a round did: each stages another bundle, and the first one restarts.
#[derive(Clone, Debug)]
pub(super) struct UpdateRound {
    pub(super) delta: StagingRound,
    /// The bundle with the whole program.
    pub(super) whole: StagingRound,
    pub(super) restarts: RestartCosts,
}

/// Calls before a version is staged, meanwhile, and afterwards.
#[derive(Clone, Debug)]
pub(super) struct StagingCalls {
    pub(super) before: CallSeries,
    pub(super) staging: CallSeries,
    pub(super) after: CallSeries,
}

impl StagingCalls {
    /// The most memory in use while staging, without what the machine used before.
    pub(super) fn more_mib(&self) -> f64 {
        self.staging.more_mib(&self.before)
    }
}

/// The clocks of a machine as they were at one moment.
struct MachineMeter {
    at: Instant,
    cpu: Duration,
    instructions: Option<u64>,
}

impl MachineMeter {
    fn read(vm: &Vm) -> Self {
        Self {
            at: Instant::now(),
            cpu: vm.cpu_time().unwrap_or_default(),
            instructions: vm.instructions(),
        }
    }

    /// What the machine has done since then.
    fn cost(&self, vm: &Vm) -> MachineCost {
        self.until(&Self::read(vm))
    }

    fn until(&self, later: &Self) -> MachineCost {
        let counted = self.instructions.zip(later.instructions);
        MachineCost {
            work: WorkCost {
                wall_s: later.at.duration_since(self.at).as_secs_f64(),
                cpu_s: later.cpu.saturating_sub(self.cpu).as_secs_f64(),
            },
            minsn: counted.map(|(before, after)| after.saturating_sub(before) as f64 / MEGA),
        }
    }
}

/// Everything the rounds need, made once.
pub(super) struct StagingMachine<'a> {
    release: &'a ReleasePair,
    scratch: &'a Path,
    disk: PathBuf,
    cli: NodeCli,
    admin: String,
    /// The key of the benchmark's own connection.
    key: NodeKey,
    runtime: Runtime,
}

impl<'a> StagingMachine<'a> {
    pub(super) fn prepare(
        cx: &XtaskContext,
        release: &'a ReleasePair,
        scratch: &'a Path,
    ) -> Result<Self> {
        cx.say("the machine");
        let cli = NodeCli::new(&release.binaries[0], Some(&scratch.join("cli")));
        let lacking = || TaskError::Arguments("the raw image has no disk".to_owned());
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Self {
            disk: release.disk().ok_or_else(lacking)?,
            admin: cli.identity()?,
            key: NodeKey::generate().map_err(failed("making a key"))?,
            runtime: runtime.map_err(failed("starting a runtime"))?,
            cli,
            release,
            scratch,
        })
    }

    /// One round: a new machine with the first version, which ends with the second one on trial, and then another new
    /// one, which stages the whole program.
    pub(super) fn measure(&self) -> Result<UpdateRound> {
        let bundles = &self.release.bundles;
        let (delta, restarts) = self.with_machine(false, |vm, node| {
            let delta = self.stage_with_calls(vm, node, &bundles.delta)?;
            Ok((delta, self.restart_both(vm, node)?))
        })?;
        // The first machine has the version on trial, and does not stage it again.
        let whole = self.with_machine(false, |vm, node| {
            self.stage_with_calls(vm, node, &bundles.whole)
        })?;
        Ok(UpdateRound {
            delta,
            whole,
            restarts,
        })
    }

    /// The delta and the restarts on a machine whose instructions are counted, without calls while it stages. It is
    /// slower and has another clock, so its seconds say nothing.
    pub(super) fn count(&self) -> Result<CountedCosts> {
        self.with_machine(true, |vm, node| {
            thread::sleep(REST);
            let meter = MachineMeter::read(vm);
            let mut staging = self.begin_staging(vm, node, &self.release.bundles.delta)?;
            while staging.goes_on()? {
                thread::sleep(STATE_PAUSE);
            }
            Ok(CountedCosts {
                staged: meter.cost(vm),
                restarts: self.restart_both(vm, node)?,
            })
        })
    }

    /// Starts a new machine with the first version, and cuts its power when `work` is done.
    fn with_machine<T>(
        &self,
        is_counted: bool,
        work: impl FnOnce(&Vm, &ReachableNode) -> Result<T>,
    ) -> Result<T> {
        let mut vm = self.start(is_counted)?;
        let node = node::wait_ready(&vm)?;
        let done = work(&vm, &node)?;
        vm.cut_power()?;
        Ok(done)
    }

    fn start(&self, is_counted: bool) -> Result<Vm> {
        let disk = self.scratch.join("machine.raw");
        copy(&self.disk, &disk)?;
        let grow = || {
            let file = File::options().write(true).open(&disk)?;
            file.set_len(file.metadata()?.len() + DATA_BYTES)
        };
        grow().map_err(TaskError::io("make the disk longer"))?;
        let ReleasePair { image, kernel, .. } = self.release;
        let (form, machine) = (ImageForm::Raw, MachineType::Uefi);
        let builder = node::builder(image, kernel, form, machine, &self.admin)?;
        let builder = builder
            .disk(VirtioDisk::file(&disk))
            .config(document([&self.admin, &self.key.public().to_string()]))
            .accel(Accel::Tcg);
        let builder = match is_counted {
            true => builder.count_instructions(),
            false => builder,
        };
        Ok(builder.start()?)
    }

    /// Calls the calm machine, then while it stages the version of `bundle`, and then the calm machine again.
    fn stage_with_calls(
        &self,
        vm: &Vm,
        node: &ReachableNode,
        bundle: &Path,
    ) -> Result<StagingRound> {
        self.runtime.block_on(async {
            let (connection, _dialer) = self.connect(node).await?;
            let before = call_calm(&connection).await?;
            let meter = MachineMeter::read(vm);
            let mut staging = self.begin_staging(vm, node, bundle)?;
            let calls = CallSeries::record(&connection, || staging.goes_on()).await?;
            let cost = meter.cost(vm);
            let after = call_calm(&connection).await?;
            let calls = StagingCalls {
                before,
                staging: calls,
                after,
            };
            Ok(StagingRound { calls, cost })
        })
    }

    fn begin_staging<'v>(
        &self,
        vm: &'v Vm,
        node: &ReachableNode,
        bundle: &Path,
    ) -> Result<StagingCommand<'v>> {
        let child = self.stage_command(node, bundle).spawn();
        Ok(StagingCommand {
            child: ChildGuard::new(child.map_err(TaskError::io("run alknet update"))?),
            vm,
            until: Instant::now() + vm.scale(STAGED_WITHIN),
        })
    }

    fn stage_command(&self, node: &ReachableNode, bundle: &Path) -> Command {
        let mut command = self.cli.command("update");
        command.arg(node.target()).arg(bundle);
        command.args(["--stage", "--json"]).stdout(Stdio::null());
        command
    }

    async fn connect(&self, node: &ReachableNode) -> Result<(CallConnection, EndpointDialer)> {
        let target: Target = node
            .address
            .to_string()
            .parse()
            .map_err(failed("naming the node"))?;
        let identity: PeerKey = node.identity.parse().map_err(failed("naming the node"))?;
        let dialer = EndpointDialer::new(Some(self.key.clone()));
        let target = target.with_pins([identity]);
        let dialled = dialer.dial_over(Carriage::Quic, &target, ALPN).await;
        let dialled = dialled.map_err(failed("dialling the node"))?;
        let connection = CallClient::without_operations().attach(dialled, None);
        Ok((connection, dialer))
    }

    /// Restarts the machine that has staged a version, first with the version that runs, and then with the staged one.
    fn restart_both(&self, vm: &Vm, node: &ReachableNode) -> Result<RestartCosts> {
        let restart = self.restart(vm, node, "node/reboot")?;
        let apply = self.restart(vm, node, "update/apply")?;
        self.wait_status(vm, node, "version", VERSIONS[1])?;
        Ok(RestartCosts { restart, apply })
    }

    /// From the call of an operation that restarts the machine to the next answered call.
    fn restart(&self, vm: &Vm, node: &ReachableNode, operation: &str) -> Result<MachineCost> {
        // After its start a machine looks at its slots.
        self.wait_status(vm, node, "state", "staged")?;
        thread::sleep(REST);
        let mark = vm.console().mark();
        let meter = MachineMeter::read(vm);
        self.cli.call(node, operation)?;
        node::wait_ready_after(vm, mark)?;
        self.cli.call(node, "node/info")?;
        Ok(meter.cost(vm))
    }

    /// Waits until a member of `update/status` has this value.
    fn wait_status(&self, vm: &Vm, node: &ReachableNode, name: &str, value: &str) -> Result<()> {
        let until = Instant::now() + vm.scale(STATE_WITHIN);
        loop {
            let answer = self.cli.call(node, "update/status")?;
            let status: Value =
                serde_json::from_str(&answer).map_err(failed("reading a status"))?;
            if status[name] == value {
                return Ok(());
            }
            if Instant::now() > until {
                let why = format!("{name} is not {value}: {status}");
                return Err(failed("waiting for the machine")(why));
            }
            thread::sleep(STATE_PAUSE);
        }
    }
}

/// `alknet update --stage` under way.
struct StagingCommand<'v> {
    child: ChildGuard,
    vm: &'v Vm,
    until: Instant,
}

impl StagingCommand<'_> {
    /// Whether the command still runs.
    ///
    /// # Errors
    /// It failed, or takes too long.
    fn goes_on(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            None if Instant::now() < self.until => Ok(true),
            None => Err(failed("staging")(self.vm.report())),
            Some(status) if status.success() => Ok(false),
            Some(status) => Err(failed("staging")(status)),
        }
    }
}

/// Calls a machine that does nothing else.
async fn call_calm(connection: &CallConnection) -> Result<CallSeries> {
    tokio::time::sleep(REST).await;
    let until = Instant::now() + CALM;
    CallSeries::record(connection, || Ok(Instant::now() < until)).await
}

/// A node without a vault, which both administer.
fn document(admins: [&str; 2]) -> String {
    let admins = admins.map(|key| format!("\"{key}\"")).join(", ");
    format!("[node]\nname = \"alknet\"\nadmin_keys = [{admins}]\n[vault]\ninit = \"off\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_the_difference_of_two_readings() {
        let at = Instant::now();
        let reading = |seconds, instructions| MachineMeter {
            at: at + Duration::from_secs(2 * seconds),
            cpu: Duration::from_secs(seconds),
            instructions,
        };
        let cost = reading(5, Some(3_000_000)).until(&reading(7, Some(10_000_000)));
        let work = WorkCost {
            wall_s: 4.0,
            cpu_s: 2.0,
        };
        assert_eq!((cost.work, cost.minsn), (work, Some(7.0)));
        let cost = reading(5, None).until(&reading(7, None));
        assert_eq!(cost.minsn, None);
    }

    #[test]
    fn both_administer_the_machine() {
        let table: toml::Table = document(["ed25519:ab", "ed25519:cd"])
            .parse()
            .expect("it is TOML");
        let keys = table["node"]["admin_keys"].as_array().expect("a list");
        assert_eq!(keys.len(), 2);
        assert_eq!(table["vault"]["init"].as_str(), Some("off"));
    }
}
