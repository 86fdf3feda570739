//! A node on a machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection};
use alknet_core::Carriage;
use alknet_endpoint::{EndpointDialer, Target};
use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{
    Accel, ConsoleMark, MachineKind, Nic, READY_WITHIN, VirtioDisk, Vm, VmBuilder, VmExit,
};
use alknet_tls::NodeKey;
use serde_json::Value;

use crate::bench::TestBench;
use crate::cli::{CliOutput, CliRunner, CliSubscription};
use crate::dialer::patient_dialer;
use crate::image::BuiltImageFolder;
use crate::snapshot::{self, SnapshotPoint};
use crate::wait::is_busy;

/// PID 1 prints this when the port is served: host name, identity, port.
pub const READY: &str = "alknet: ready ";

/// Longest wait from the power button to power off.
const OFF_WITHIN: Duration = Duration::from_secs(30);

/// Handshakes for this purpose, on each carriage.
const TRANSLATING_HANDSHAKES: usize = 8;

/// The fw_cfg entry that switches fault injection on, if its content is `1`.
pub const FAULTS_FILE: &str = "opt/org.alknet/test-faults";

/// How the image is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootVariant {
    /// The erofs root on microvm.
    MicrovmErofs,
    /// The initramfs on an ordinary PC.
    Q35Initramfs,
    /// The raw disk on an ordinary PC with UEFI. Its data partition is on the same disk.
    UefiRaw,
}

impl BootVariant {
    /// The form of the image that it boots.
    pub(crate) fn form(self) -> ImageForm {
        match self {
            Self::MicrovmErofs => ImageForm::Erofs,
            Self::Q35Initramfs => ImageForm::Direct,
            Self::UefiRaw => ImageForm::Raw,
        }
    }

    /// The source of the test configuration in `node/info`. A microvm gets it on the disk after
    /// root and data.
    #[must_use]
    pub fn config_source(self) -> &'static str {
        match self {
            Self::MicrovmErofs => "nocloud (vdc)",
            Self::Q35Initramfs | Self::UefiRaw => "fw_cfg",
        }
    }
}

/// Where a machine starts.
#[derive(Clone, Debug)]
enum StartPoint {
    PowerOn,
    /// After this point of another machine with the shipped image.
    After(SnapshotPoint),
    /// At the point of the machine saved in this folder.
    From(PathBuf),
}

/// A machine that is being built.
#[derive(Debug)]
#[must_use]
pub struct MachineBuilder<'a> {
    bench: &'a TestBench,
    boot: BootVariant,
    vm: VmBuilder,
    config: String,
    command_line: String,
    data: Option<VirtioDisk>,
    disks: Vec<VirtioDisk>,
    nics: Vec<Nic>,
    /// Whether it has a TPM.
    measured: bool,
    start: StartPoint,
}

impl<'a> MachineBuilder<'a> {
    pub(crate) fn new(bench: &'a TestBench, boot: BootVariant) -> Self {
        let kind = match boot {
            BootVariant::MicrovmErofs => MachineKind::Microvm,
            BootVariant::Q35Initramfs => MachineKind::Q35,
            BootVariant::UefiRaw => MachineKind::Q35Uefi,
        };
        let form = match boot {
            BootVariant::MicrovmErofs => ImageForm::Erofs,
            BootVariant::Q35Initramfs | BootVariant::UefiRaw => ImageForm::Direct,
        };
        let mut command_line = BuiltImageFolder::get().command_line(form).to_owned();
        if boot == BootVariant::MicrovmErofs {
            // Only a reset ends this machine, and without ACPI only a triple fault resets.
            command_line += " reboot=t";
            // On a host whose processors are busy the emulated timer may be late. A kernel that finds none in the few ticks
            // for which it waits panics before it has a console, so that the machine ends without a word.
            command_line += " no_timer_check";
        }
        Self {
            bench,
            boot,
            vm: vm_of(kind),
            config: config(&bench.admin().identity()),
            command_line,
            data: (boot != BootVariant::UefiRaw).then(|| VirtioDisk::file(bench.data()).data()),
            disks: vec![],
            nics: vec![],
            measured: false,
            start: StartPoint::PowerOn,
        }
    }

    /// Changes anything about the machine itself.
    pub fn with(mut self, change: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        self.vm = change(self.vm);
        self
    }

    /// Replaces the configuration, which a microvm gets on a NoCloud volume and others by fw_cfg.
    /// An empty text gives no configuration.
    pub fn config(mut self, toml: impl Into<String>) -> Self {
        self.config = toml.into();
        self
    }

    /// Adds to the configuration: `[[network]]` and other top-level tables.
    pub fn configured(mut self, toml: &str) -> Self {
        self.config = format!("{}\n{toml}", self.config);
        self
    }

    /// The configuration, for a machine that is built in another way.
    #[must_use]
    pub fn config_text(&self) -> &str {
        &self.config
    }

    /// Without a vault: its key is a file, and the data partition can be read from outside.
    pub fn plain(self) -> Self {
        self.configured("[vault]\ninit = \"off\"")
    }

    /// With a TPM of this name, which stays on the bench, as the firmware's variables do.
    pub fn measured(mut self, chip: &str) -> Self {
        self.measured = true;
        let folder = self.bench.path();
        let (chip, variables) = (
            folder.join(format!("{chip}.tpm")),
            folder.join("variables.fd"),
        );
        self.with(|vm| vm.tpm(chip).variables(variables))
    }

    /// With firmware that starts only what these variables allow, which
    /// [`PlatformOwner::enroll`](alknet_qemu::PlatformOwner::enroll) wrote.
    pub fn secured(self, variables: &Path) -> Self {
        self.with(|vm| vm.variables(variables).secure_boot())
    }

    /// Starts at the point where firmware has handed over to the kernel of the shipped image, as a
    /// copy of a machine on which real firmware did so once. First, this machine's TPM gets the
    /// messages that the firmware sent to its TPM, so it has the same measurements. With a TPM, the
    /// kernel has initialised itself and its memory, and sends its first command to the TPM.
    /// Everything after that happens here, with this machine's disks, configuration and TPM.
    ///
    /// In emulation, firmware takes longer than all the rest. Not for a test of what firmware
    /// starts, refuses or measures, and not with other disks or cards than the usual ones.
    pub fn after_firmware(mut self) -> Self {
        self.start = StartPoint::After(SnapshotPoint::Kernel);
        self
    }

    /// Starts at the point where firmware with a TPM is about to boot, as a copy like
    /// [`after_firmware`](Self::after_firmware). The content of this machine's disk is read,
    /// started or refused, and measured here, so use it for tests of that. The earlier part is half
    /// of the firmware's time. Boot entries and other firmware variables are those of a first boot.
    pub fn ready_to_boot(mut self) -> Self {
        self.start = StartPoint::After(SnapshotPoint::ReadyToBoot);
        self
    }

    /// Starts at the point that an identically built machine of this test reached, see
    /// [`TestBench::record`].
    pub fn resumed(mut self, record: &Path) -> Self {
        self.start = StartPoint::From(record.to_owned());
        self
    }

    /// Adds to the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.command_line = format!("{} {words}", self.command_line);
        self
    }

    /// Replaces the data disk. `None` removes it.
    pub fn data(mut self, disk: Option<VirtioDisk>) -> Self {
        self.data = disk;
        self
    }

    /// Adds a disk after the data disk. A disk added by [`with`](Self::with) comes before the root
    /// file system, which a microvm expects on its first disk.
    pub fn disk(mut self, disk: VirtioDisk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Adds a card, instead of the one on QEMU's network.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// Switches `node/fault` on.
    pub fn faults(self) -> Self {
        self.with(|vm| vm.fw_cfg(FAULTS_FILE, "1"))
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    /// QEMU does not start.
    pub fn start(self) -> Vm {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, but may fail.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn try_start(self) -> alknet_qemu::Result<Vm> {
        let (boot, measured, start) = (self.boot, self.measured, self.start.clone());
        let vm = self.into_builder();
        match start {
            StartPoint::PowerOn => vm.start(),
            StartPoint::After(point) => Ok(snapshot::after(point, boot, measured, &vm)),
            StartPoint::From(record) => vm.restore(record).start(),
        }
    }

    /// What it must have in common with a saved machine to be restored from it.
    pub(crate) fn recipe(self) -> String {
        // The machine is not started, so its disk need not exist.
        let recipe = self.builder(PathBuf::new()).recipe();
        recipe.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts it and waits until the port is served.
    ///
    /// # Panics
    /// It is not served in time.
    pub fn boot(self) -> MachineNode {
        let (admin, boot) = (self.bench.admin().clone(), self.boot);
        MachineNode::new(self.start(), boot, admin)
    }

    fn into_builder(self) -> VmBuilder {
        let raw = match self.boot {
            BootVariant::UefiRaw => self.bench.raw(),
            BootVariant::MicrovmErofs | BootVariant::Q35Initramfs => PathBuf::new(),
        };
        self.builder(raw)
    }

    /// `raw` is the disk of a machine that boots from it.
    fn builder(self, raw: PathBuf) -> VmBuilder {
        let image = BuiltImageFolder::get();
        let direct = |vm: VmBuilder, form, role| {
            vm.kernel(image.file(form, role))
                .append(self.command_line.as_str())
        };
        let mut vm = match self.boot {
            BootVariant::MicrovmErofs => direct(self.vm, ImageForm::Erofs, OutputRole::Vmlinux)
                .disk(VirtioDisk::file(image.file(ImageForm::Erofs, OutputRole::Root)).read_only()),
            BootVariant::Q35Initramfs => direct(self.vm, ImageForm::Direct, OutputRole::Kernel)
                .initrd(image.file(ImageForm::Direct, OutputRole::Initrd)),
            BootVariant::UefiRaw => self.vm.disk(VirtioDisk::file(raw)),
        };
        vm = self
            .data
            .into_iter()
            .chain(self.disks)
            .fold(vm, VmBuilder::disk);
        if !self.config.is_empty() {
            vm = vm.config(self.config);
        }
        if self.nics.is_empty() {
            return vm.nic(Nic::user());
        }
        self.nics.into_iter().fold(vm, VmBuilder::nic)
    }
}

/// A serving node.
#[derive(Debug)]
pub struct MachineNode {
    vm: Vm,
    boot: BootVariant,
    admin: CliRunner,
    identity: String,
    address: Option<SocketAddr>,
}

impl MachineNode {
    /// Waits until the machine serves.
    ///
    /// # Panics
    /// It does not serve in time.
    pub fn new(vm: Vm, boot: BootVariant, admin: CliRunner) -> Self {
        let address = vm.address();
        let mut node = Self {
            vm,
            boot,
            admin,
            identity: String::new(),
            address,
        };
        node.wait_ready(ConsoleMark::default());
        node
    }

    /// Waits until the machine reports after `mark` that it serves, and reads its identity.
    ///
    /// # Panics
    /// It does not report this in time.
    pub fn wait_ready(&mut self, mark: ConsoleMark) {
        let wait = |mark, needle| self.vm.wait_for_after(mark, needle, READY_WITHIN);
        let ready = wait(mark, READY).and_then(|ready| wait(ready, " port ").map(|_| ready));
        let ready = ready.unwrap_or_else(|error| panic!("{error}"));
        let text = self.vm.console().since(ready);
        let identity = text
            .split_whitespace()
            .find(|word| word.starts_with("ed25519:"));
        self.identity = identity
            .unwrap_or_else(|| panic!("no identity: {text}"))
            .to_owned();
        self.translate_handshakes();
    }

    /// Makes an emulated processor translate the code of a handshake, which takes a second on an
    /// idle host. On a busy host, and only there, this would take longer than the node's limit for
    /// a handshake, and the test's first client would be refused. A refused handshake has
    /// translated a part of the code. The test itself checks that the node answers.
    ///
    /// A restarted node has other addresses in memory, so QEMU translates its handshakes again.
    pub fn translate_handshakes(&self) {
        if self.vm.accel() != Accel::Tcg || !is_busy() {
            return;
        }
        let Some(target) = self.address.map(|_| self.target()) else {
            return;
        };
        let target: Target = target.parse().expect("identity and address");
        let translate = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("this host has threads and sockets");
            runtime.block_on(async {
                let dialer = patient_dialer(None);
                for carriage in [Carriage::Quic, Carriage::Tcp] {
                    for _ in 0..TRANSLATING_HANDSHAKES {
                        if dialer.dial_over(carriage, &target, ALPN).await.is_ok() {
                            break;
                        }
                    }
                }
            });
        };
        // The test may run as a runtime's task, in which another runtime cannot wait.
        thread::scope(|scope| scope.spawn(translate).join()).expect("no step of it panics");
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The machine.
    pub fn vm_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// The node's key, `ed25519:…`.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The host's end of the node's port.
    ///
    /// # Panics
    /// No card forwards it and [`use_address`](Self::use_address) was not called.
    pub fn address(&self) -> SocketAddr {
        self.address
            .expect("a card forwards the port, or the test says how to reach the node")
    }

    /// Uses this host address for the node from now on.
    pub fn use_address(&mut self, address: SocketAddr) {
        self.address = Some(address);
    }

    /// The target in the form for the command line.
    pub fn target(&self) -> String {
        format!("{}@{}", self.identity, self.address())
    }

    /// Calls an operation as administrator, with the command line.
    ///
    /// # Panics
    /// The call fails.
    pub fn call(&self, operation: &str, input: &Value) -> Value {
        let answer = self.try_call(operation, input, &[]);
        assert_eq!(
            answer.status,
            0,
            "{operation}: {answer:?}\n{}",
            self.vm.report()
        );
        answer.json()
    }

    /// Calls an operation as administrator. `more` are further arguments, such as `--carriage tcp`.
    pub fn try_call(&self, operation: &str, input: &Value, more: &[&str]) -> CliOutput {
        self.admin.call(&self.target(), operation, input, more)
    }

    /// Subscribes to an operation as administrator.
    pub fn subscribe(&self, operation: &str, input: &Value) -> CliSubscription {
        self.admin.subscribe(&self.target(), operation, input)
    }

    /// `node/info`.
    pub fn info(&self) -> Value {
        self.call("node/info", &Value::Null)
    }

    /// Connects with the client library, as administrator. Keep the dialer while the connection is
    /// used.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub async fn client(&self) -> anyhow::Result<(EndpointDialer, CallConnection)> {
        self.client_of(&self.admin).await
    }

    /// Connects with the client library, with the key of `user`. Keep the dialer while the connection is used.
    ///
    /// # Errors
    /// The errors of [`client`](Self::client).
    pub async fn client_of(
        &self,
        user: &CliRunner,
    ) -> anyhow::Result<(EndpointDialer, CallConnection)> {
        let (dialer, target) = self.dialer_of(user)?;
        let connection = dialer.dial(&target, ALPN).await?;
        Ok((
            dialer,
            CallClient::without_operations().attach(connection, None),
        ))
    }

    /// Like [`client_of`](Self::client_of), over this carriage.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub async fn client_over(
        &self,
        carriage: Carriage,
        user: &CliRunner,
    ) -> anyhow::Result<(EndpointDialer, CallConnection)> {
        let (dialer, target) = self.dialer_of(user)?;
        let connection = dialer.dial_over(carriage, &target, ALPN).await?;
        Ok((
            dialer,
            CallClient::without_operations().attach(connection, None),
        ))
    }

    fn dialer_of(&self, user: &CliRunner) -> anyhow::Result<(EndpointDialer, Target)> {
        let (key, _) = NodeKey::load_or_create(&user.state().join("identity.key"))?;
        Ok((patient_dialer(Some(key)), self.target().parse()?))
    }

    /// Ends the machine in the way that its kind allows, and waits for it.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn end(mut self) -> VmExit {
        if self.boot == BootVariant::MicrovmErofs {
            self.call("node/reboot", &Value::Null);
        } else {
            self.vm
                .power_button()
                .unwrap_or_else(|error| panic!("{error}"));
        }
        self.vm
            .wait_exit(OFF_WITHIN)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The document that names `admin` as administrator.
fn config(admin: &str) -> String {
    // On an emulated processor that others use too, a small shader takes many seconds.
    format!("[compute]\ngpu_seconds = 600\n[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\"]\n")
}

/// microvm ends with a reset. A test that wants it to reboot must ask for that.
fn vm_of(kind: MachineKind) -> VmBuilder {
    let vm = Vm::builder(kind)
        .probe_kernel(BuiltImageFolder::get().file(ImageForm::Direct, OutputRole::Kernel));
    if kind == MachineKind::Microvm {
        vm.exit_on_reset()
    } else {
        vm
    }
}
