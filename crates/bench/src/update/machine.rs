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
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::release::{ReleasePair, VERSIONS};
use crate::call::measure::{failed, quantile};
use crate::child::ChildGuard;
use crate::rows::median;

/// Room behind the image for the data partition.
const DATA_BYTES: u64 = 1 << 30;

/// How long the calm machine is called.
const CALM: Duration = Duration::from_secs(30);
/// Pause between two calls, so that the calls alone do not take the whole processor of the guest.
const PAUSE: Duration = Duration::from_millis(20);
/// Rest before each measurement, in which the tasks of a start end.
const REST: Duration = Duration::from_secs(10);
/// Longest wait for a state of the updates, on a processor that runs guests itself.
const STATE_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two questions about the state.
const STATE_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a version to be staged, on a processor that runs guests itself.
const STAGED_WITHIN: Duration = Duration::from_secs(60);

const MIB: f64 = (1 << 20) as f64;

/// What one machine did.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpdateRound {
    pub(super) calm_p99_ms: f64,
    pub(super) staging_p99_ms: f64,
    /// The most memory in use while staging, without what the calm machine uses.
    pub(super) more_mib: f64,
    pub(super) staging_s: f64,
    /// From `node/reboot` to an answered call.
    pub(super) restart_s: f64,
    /// From `update/apply` to an answered call.
    pub(super) apply_s: f64,
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

    /// One round: a new machine with the first version, which ends with the second one on trial.
    pub(super) fn measure(&self) -> Result<UpdateRound> {
        let mut vm = self.start()?;
        let node = node::wait_ready(&vm)?;
        let (calm, staging, staging_s) = self.stage(&vm, &node)?;
        let restart_s = self.restart(&vm, &node, "node/reboot")?;
        let apply_s = self.restart(&vm, &node, "update/apply")?;
        self.wait_status(&vm, &node, "version", VERSIONS[1])?;
        vm.cut_power()?;
        Ok(UpdateRound {
            calm_p99_ms: calm.p99_ms(),
            staging_p99_ms: staging.p99_ms(),
            more_mib: staging.more_mib(&calm),
            staging_s,
            restart_s,
            apply_s,
        })
    }

    fn start(&self) -> Result<Vm> {
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
        Ok(builder.start()?)
    }

    /// Calls the calm machine, and then while it stages the version, which takes the returned seconds.
    fn stage(&self, vm: &Vm, node: &ReachableNode) -> Result<(CallSeries, CallSeries, f64)> {
        self.runtime.block_on(async {
            let (connection, _dialer) = self.connect(node).await?;
            tokio::time::sleep(REST).await;
            let until = Instant::now() + CALM;
            let calm = CallSeries::record(&connection, || Ok(Instant::now() < until)).await?;
            let begun = Instant::now();
            let mut command = self.stage_command(node);
            let child = command
                .spawn()
                .map_err(TaskError::io("run alknet update"))?;
            let mut child = ChildGuard::new(child);
            let limit = vm.scale(STAGED_WITHIN);
            let staging = CallSeries::record(&connection, || match child.try_wait()? {
                None if begun.elapsed() < limit => Ok(true),
                None => Err(failed("staging")(vm.report())),
                Some(status) if status.success() => Ok(false),
                Some(status) => Err(failed("staging")(status)),
            });
            let staging = staging.await?;
            Ok((calm, staging, begun.elapsed().as_secs_f64()))
        })
    }

    fn stage_command(&self, node: &ReachableNode) -> Command {
        let mut command = self.cli.command("update");
        command.arg(node.target()).arg(&self.release.bundle);
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

    /// Seconds from the call of an operation that restarts the machine to the next answered call.
    fn restart(&self, vm: &Vm, node: &ReachableNode, operation: &str) -> Result<f64> {
        // After its start a machine looks at its slots.
        self.wait_status(vm, node, "state", "staged")?;
        thread::sleep(REST);
        let mark = vm.console().mark();
        let begun = Instant::now();
        self.cli.call(node, operation)?;
        node::wait_ready_after(vm, mark)?;
        self.cli.call(node, "node/info")?;
        Ok(begun.elapsed().as_secs_f64())
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

/// A node without a vault, which both administer.
fn document(admins: [&str; 2]) -> String {
    let admins = admins.map(|key| format!("\"{key}\"")).join(", ");
    format!("[node]\nname = \"alknet\"\nadmin_keys = [{admins}]\n[vault]\ninit = \"off\"\n")
}

/// Calls in a row, of an operation that tells the machine's memory.
#[derive(Debug, Default)]
struct CallSeries {
    took: Vec<Duration>,
    /// Memory in use at each call, in MiB: all of the machine, without what the kernel could reclaim.
    in_use_mib: Vec<f64>,
}

impl CallSeries {
    /// Calls as long as `goes_on` says so.
    async fn record(
        connection: &CallConnection,
        mut goes_on: impl FnMut() -> Result<bool>,
    ) -> Result<Self> {
        let mut series = Self::default();
        while goes_on()? {
            let begun = Instant::now();
            let info = connection.call_typed("node/info", &json!({})).await;
            let info: Value = info.map_err(failed("calling the node"))?;
            series.took.push(begun.elapsed());
            series.in_use_mib.push(in_use_mib(&info)?);
            tokio::time::sleep(PAUSE).await;
        }
        series.took.sort_unstable();
        Ok(series)
    }

    fn p99_ms(&self) -> f64 {
        quantile(&self.took, 99) / 1e3
    }

    fn more_mib(&self, calm: &Self) -> f64 {
        let most = self.in_use_mib.iter().copied().fold(f64::NAN, f64::max);
        most - median(calm.in_use_mib.clone())
    }
}

/// From the answer of `node/info`.
fn in_use_mib(info: &Value) -> Result<f64> {
    let bytes = |name: &str| info["memory"][name].as_f64();
    let of = bytes("total_bytes").zip(bytes("available_bytes"));
    let lacking = || failed("reading node/info")(format!("no memory: {info}"));
    of.map(|(total, available)| (total - available) / MIB)
        .ok_or_else(lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_memory_of_a_series_is_compared_with_the_calm_middle() {
        let series = |in_use_mib: &[f64]| CallSeries {
            in_use_mib: in_use_mib.to_vec(),
            ..CallSeries::default()
        };
        let calm = series(&[100.0, 101.0, 180.0]);
        assert_eq!(series(&[100.0, 121.0, 105.0]).more_mib(&calm), 20.0);
        assert!(series(&[]).more_mib(&calm).is_nan(), "nothing was seen");
    }

    #[test]
    fn memory_is_read_from_the_answer() {
        let answer = json!({ "memory": { "total_bytes": 3 << 20, "available_bytes": 1 << 20 } });
        assert_eq!(in_use_mib(&answer).expect("as node/info answers"), 2.0);
        assert!(in_use_mib(&json!({})).is_err());
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
