//! A machine without a disk starts over the network as the page about PXE builds one: with the page's commands, the
//! example of a configuration for dnsmasq, and loaders of other authors. The card's boot program is iPXE, from the
//! package ipxe-qemu. It speaks PXE too, so that PXELINUX can be started by it. Under UEFI the card has none: the firmware
//! itself fetches iPXE as an EFI program.
//!
//! Each run of the tests starts a machine by iPXE over HTTP. Those by iPXE over TFTP, by PXELINUX and under UEFI run in
//! `cargo xtask soak network-boot` only.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_qemu::{MachineKind, NODE_PORT, Vm};
use alknet_test_support::{limited, skip, skipped_whole};
use alknet_tests::{BootVariant, BuiltImageFolder, MachineNode, READY, TestBench, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::configuration::document;
use super::forms::{built, run_commands, shell_blocks};
use super::namespace::{in_network_namespace, ip};
use super::power::is_full;

/// The page, and the server's configuration beside it.
const PAGE: &str = include_str!("../../../docs/deploy-pxe.md");
const DNSMASQ: &str = include_str!("../../../docs/examples/dnsmasq.conf");

/// The folder that both name.
const FOLDER: &str = "/srv/alknet";
/// What the example sends to iPXE.
const SCRIPT: &str = "dhcp-boot=tag:ipxe,boot.ipxe\n";

/// The card of the machine, and the address that the server gives it.
const MAC: &str = "52:54:00:12:34:56";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);

/// Why a run of all tests leaves some out.
const ONLY_CAMPAIGN: &str =
    "its firmware or its loader takes long: `cargo xtask soak network-boot` runs it";

/// Longest wait from power-on until the machine serves. Emulated firmware takes long for its network.
const STARTED_WITHIN: Duration = Duration::from_secs(90);
/// Limit for one try to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Limit for the life of a server.
const SERVERS_WITHIN: Duration = Duration::from_secs(600);

#[test]
fn a_machine_starts_over_the_network_by_ipxe_and_tftp() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    with_server("boot.ipxe", |server| {
        server.starts_a_machine(NetworkFirmware::Bios);
        server.sent_by_tftp(&["boot.ipxe", "bzImage", "initrd.cpio.lz4"]);
    });
}

#[test]
fn a_machine_starts_over_the_network_by_ipxe_and_http() {
    with_server("http://192.0.2.1/boot.ipxe", |server| {
        server.starts_a_machine(NetworkFirmware::Bios);
        server.sent_by_http(&["boot.ipxe", "bzImage", "initrd.cpio.lz4"]);
    });
}

#[test]
fn a_machine_starts_over_the_network_by_uefi_and_ipxe() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    with_server("http://192.0.2.1/boot.ipxe", |server| {
        server.starts_a_machine(NetworkFirmware::Uefi);
        server.sent_by_tftp(&["snponly.efi"]);
        server.sent_by_http(&["boot.ipxe", "bzImage", "initrd.cpio.lz4"]);
    });
}

#[test]
fn a_machine_starts_over_the_network_by_pxelinux() {
    if !is_full() {
        skip!("campaign", "{ONLY_CAMPAIGN}");
    }
    with_server("pxelinux.0", |server| {
        server.starts_a_machine(NetworkFirmware::Bios);
        server.sent_by_tftp(&["pxelinux.0", "pxelinux.cfg/default", "initrd.cpio.lz4"]);
    });
}

/// What starts a machine over the network.
#[derive(Clone, Copy)]
enum NetworkFirmware {
    /// SeaBIOS, and iPXE in the card.
    Bios,
    /// OVMF, and nothing in the card.
    Uefi,
}

impl NetworkFirmware {
    fn machine(self) -> MachineKind {
        match self {
            Self::Bios => MachineKind::Q35,
            Self::Uefi => MachineKind::Q35Uefi,
        }
    }

    /// QEMU's card, from which the firmware starts the machine, and what the firmware needs for its network.
    fn devices(self) -> Vec<String> {
        let card = format!("virtio-net-pci,netdev=lan,mac={MAC},bootindex=0");
        match self {
            Self::Bios => vec![card],
            // OVMF of 2024 and later has no network without a source of random numbers.
            Self::Uefi => vec![card + ",romfile=", "virtio-rng-pci".to_owned()],
        }
    }
}

/// A network with a server, on which machines start.
struct BootServer {
    bench: TestBench,
    /// The served files.
    folder: PathBuf,
    tftp_log: PathBuf,
    http_log: PathBuf,
    programs: Vec<Child>,
}

/// Runs a test with a server that names this file to machines.
fn with_server(file: &'static str, test: impl FnOnce(&BootServer) + Send + 'static) {
    if !Path::new("/dev/net/tun").exists() {
        return skipped_whole("TUN", "this kernel makes no virtual network card");
    }
    in_network_namespace(move || test(&BootServer::new(file)));
}

impl BootServer {
    fn new(file: &str) -> Self {
        ip("tuntap add dev lan0 mode tap");
        ip("address add 192.0.2.1/24 dev lan0");
        ip("address add 2001:db8::1/64 dev lan0 nodad");
        ip("link set lan0 up");
        let bench = TestBench::new();
        let at = |name: &str| bench.path().join(name);
        let mut server = Self {
            folder: at("srv"),
            tftp_log: at("dnsmasq.log"),
            http_log: at("http.log"),
            programs: Vec::new(),
            bench,
        };
        server.prepare();
        server.start_dnsmasq(file);
        server.start_http();
        server
    }

    /// The page's commands.
    fn prepare(&self) {
        let config = document(&self.bench, "of-the-network") + "stateless = true\n";
        fs::write(self.bench.path().join("node.toml"), config).expect("the folder is ours");
        let image = format!("{}/", BuiltImageFolder::get().folder().display());
        for commands in shell_blocks(PAGE) {
            assert!(commands.contains(FOLDER), "{commands}");
            let commands = commands.replace("out/", &image);
            run_commands(self.bench.path(), &self.here(&commands));
        }
    }

    /// A text of the page with the folder of this server.
    fn here(&self, text: &str) -> String {
        text.replace(FOLDER, &self.folder.display().to_string())
    }

    fn start_dnsmasq(&mut self, file: &str) {
        assert!(DNSMASQ.contains(SCRIPT), "{DNSMASQ}");
        let named = format!("dhcp-boot=tag:ipxe,{file}\n");
        let config = self.here(&DNSMASQ.replace(SCRIPT, &named));
        let path = self.bench.path().join("dnsmasq.conf");
        fs::write(&path, config).expect("the folder is ours");
        let leases = self.bench.path().join("leases");
        let mut dnsmasq = limited(SERVERS_WITHIN, "dnsmasq");
        dnsmasq
            .args(["--keep-in-foreground", "--pid-file", "--user=root"])
            // The first answer would come three seconds later, after an unused address did not answer.
            .arg("--no-ping")
            // Without a router of IPv6, iPXE waits for one for 13 seconds.
            .args(["--enable-ra", "--dhcp-range=2001:db8::,ra-only"])
            .arg(format!("--dhcp-host={MAC},{ADDRESS}"))
            .arg(format!("--conf-file={}", path.display()))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .arg(format!("--log-facility={}", self.tftp_log.display()))
            .stdin(Stdio::null());
        let child = dnsmasq.spawn().expect("the set-up installs dnsmasq");
        self.programs.push(child);
    }

    fn start_http(&mut self) {
        let log = File::create(&self.http_log).expect("the folder is ours");
        let mut python = limited(SERVERS_WITHIN, "python3");
        python
            .args(["-m", "http.server", "80", "--bind", "192.0.2.1"])
            .arg("--directory")
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = python.spawn().expect("the set-up installs Python");
        self.programs.push(child);
        // A loader whose connection is refused gives up.
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        eventually("the HTTP server listens", || {
            TcpStream::connect_timeout(&address, CONNECT_WITHIN).ok()
        });
    }

    /// A machine without a disk starts on the network, and its node answers with the document that came with it.
    fn starts_a_machine(&self, firmware: NetworkFirmware) {
        let vm = Vm::builder(firmware.machine())
            .probe_kernel(built(ImageForm::Direct, OutputRole::Kernel))
            .argument("-netdev")
            .argument("tap,id=lan,ifname=lan0,script=no,downscript=no");
        let devices = firmware.devices().into_iter();
        let vm = devices.fold(vm, |vm, device| vm.argument("-device").argument(device));
        let vm = vm.start().unwrap_or_else(|error| panic!("{error}"));
        let ready = vm.wait_for(READY, STARTED_WITHIN);
        ready.unwrap_or_else(|error| panic!("{error}"));
        let admin = self.bench.admin().clone();
        let mut node = MachineNode::new(vm, BootVariant::Q35Initramfs, admin);
        let address = SocketAddr::from((ADDRESS, NODE_PORT));
        // The node serves before its card has an address.
        eventually("the machine has its address", || {
            TcpStream::connect_timeout(&address, CONNECT_WITHIN).ok()
        });
        node.use_address(address);
        node.translate_handshakes();
        let info = node.info();
        assert_eq!(info["name"], "of-the-network", "{info:#}");
        assert_eq!(info["config"]["source"], "kernel command line", "{info:#}");
        assert_eq!(info["data"]["mode"], "volatile", "{info:#}");
        assert_eq!(info["problems"], json!([]), "{info:#}");
    }

    /// The file server sent these files.
    fn sent_by_http(&self, names: &[&str]) {
        let log = read(&self.http_log);
        for name in names {
            let request = format!("\"GET /{name} HTTP/1.1\" 200");
            assert!(log.contains(&request), "{name}: {log}");
        }
    }

    /// The server sent these files to the machine.
    fn sent_by_tftp(&self, names: &[&str]) {
        let log = read(&self.tftp_log);
        for name in names {
            let sent = format!("sent {}/{name} to {ADDRESS}", self.folder.display());
            assert!(log.contains(&sent), "{sent}: {log}");
        }
    }
}

impl Drop for BootServer {
    fn drop(&mut self) {
        for program in &mut self.programs {
            // `timeout` passes this signal on to the program, and SIGKILL would end `timeout` alone.
            let pid = Pid::from_raw(program.id().cast_signed());
            let _ = kill(pid, Signal::SIGTERM);
            let _ = program.wait();
        }
    }
}

fn read(log: &Path) -> String {
    let bytes = fs::read(log).expect("the server wrote it");
    String::from_utf8_lossy(&bytes).into_owned()
}
