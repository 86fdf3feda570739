//! Machines of clouds, on a network with a model of the cloud's services. No real cloud is asked.

#[path = "../../../provisioning/metadata/tests/models/model.rs"]
mod model;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use alknet_qemu::{DhcpLease, Lan, LanEvent, LanSettings, Nic};
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, TestBench};
use serde_json::Value;

use super::configuration::document;
use model::{Misbehaviour, ModelService, ServedCloud};

const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
const WIRE_SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(168, 63, 129, 16), 80);
/// The machine's address, and the port that it serves.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);
const PORT: u16 = 443;

/// Longest wait for one event, on a processor that runs guests natively.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two tries. Each is a handshake.
const PAUSE: Duration = Duration::from_millis(300);

/// A network on which `model` has the services of a cloud.
fn cloud(model: &ModelService) -> Lan {
    let lan = Lan::new(LanSettings {
        dhcp4: Some(DhcpLease::for_address(ADDRESS)),
        ..LanSettings::default()
    });
    for at in [METADATA, WIRE_SERVER] {
        lan.serve(at, model.address());
    }
    lan
}

/// A machine in that network, whose firmware has these strings of a cloud.
fn machine<'b>(bench: &'b TestBench, lan: &Lan, strings: &str) -> MachineBuilder<'b> {
    let machine = bench.machine(BootVariant::Q35Initramfs).config("");
    let machine = machine.nic(Nic::lan(lan));
    machine.with(|vm| vm.argument("-smbios").argument(strings))
}

/// Asks for the node's facts until it has this name.
#[track_caller]
fn info_when_named(node: &mut MachineNode, lan: &Lan, name: &str) -> Value {
    let forward = lan.forward((ADDRESS, PORT).into());
    node.use_address(forward.unwrap_or_else(|error| panic!("{error}")));
    let deadline = Instant::now() + node.vm().scale(PATIENCE);
    loop {
        let answer = node.try_call("node/info", &Value::Null, &[]);
        let info = (answer.status == 0).then(|| answer.json());
        if let Some(info) = info.filter(|info| info["name"] == name) {
            return info;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no {name}: {answer:?}\n{}", node.vm().report());
        thread::sleep(PAUSE);
    }
}

fn waits_for(node: &MachineNode, line: &str) {
    let waited = node.vm().wait_for(line, PATIENCE);
    waited.unwrap_or_else(|error| panic!("{error}"));
}

/// How often machines connected to this address.
fn connections(lan: &Lan, to: SocketAddrV4) -> usize {
    let events = lan.events().into_iter();
    events
        .filter(|event| *event == LanEvent::Connecting(to))
        .count()
}

#[test]
fn a_machine_of_ec2_takes_its_document_and_sealed_with_it_asks_nothing() {
    let bench = TestBench::new();
    let model = ModelService::serving(ServedCloud::Ec2, &document(&bench, "of-user-data"));
    let lan = cloud(&model);
    let strings = "type=1,manufacturer=Amazon EC2,product=t3.micro";
    let mut node = machine(&bench, &lan, strings).boot();
    let info = info_when_named(&mut node, &lan, "of-user-data");
    let source = info["config"]["source"].as_str();
    assert_eq!(source, Some("metadata (Amazon EC2)"), "{info:#}");
    let console = node.vm().console().text();
    let asks = "asking the metadata service of Amazon EC2 for a configuration";
    assert!(console.contains(asks), "{console}");
    assert_eq!(model.refusals(), Vec::<String>::new());
    node.end();
    // Counted once the machine is off, so that no connection of this start comes later.
    let asked = connections(&lan, METADATA);
    assert!(asked >= 2, "the token and the data: {asked}");

    let mut node = machine(&bench, &lan, strings).boot();
    let info = info_when_named(&mut node, &lan, "of-user-data");
    assert_eq!(info["config"]["source"], "config.toml", "{info:#}");
    assert_eq!(connections(&lan, METADATA), asked, "nothing was asked");
    let console = node.vm().console().text();
    assert!(!console.contains("metadata service"), "{console}");
}

#[test]
fn a_silent_service_delays_the_node_and_its_document_is_taken_once_it_speaks() {
    let bench = TestBench::new();
    let silent = ModelService::misbehaving(Misbehaviour::Hangs);
    let lan = cloud(&silent);
    let strings = "type=1,manufacturer=Hetzner,product=vServer";
    // The machine serves, although it has no configuration and no administrator.
    let mut node = machine(&bench, &lan, strings).boot();
    waits_for(
        &node,
        "alknet: problem metadata-unanswered: the metadata service of Hetzner: ",
    );
    let speaks = ModelService::serving(ServedCloud::Hetzner, &document(&bench, "of-hetzner"));
    lan.serve(METADATA, speaks.address());
    let info = info_when_named(&mut node, &lan, "of-hetzner");
    let source = info["config"]["source"].as_str();
    assert_eq!(source, Some("metadata (Hetzner)"), "{info:#}");
    assert_eq!(speaks.refusals(), Vec::<String>::new());
}

/// Its document comes from fw_cfg, and Azure has another one, which the machine does not ask for.
#[test]
fn a_configured_machine_of_azure_asks_for_no_document_and_reports_that_it_is_ready() {
    let bench = TestBench::new();
    let model = ModelService::serving(ServedCloud::Azure, &document(&bench, "of-azure"));
    let lan = cloud(&model);
    let strings = "type=3,asset=7783-7084-3265-9085-8269-3286-77";
    let given = document(&bench, "of-fw-cfg") + "stateless = true\n";
    let machine = machine(&bench, &lan, strings).data(None).config(given);
    let mut node = machine.boot();
    let info = info_when_named(&mut node, &lan, "of-fw-cfg");
    assert_eq!(info["config"]["source"], "fw_cfg", "{info:#}");
    let deadline = Instant::now() + node.vm().scale(PATIENCE);
    let report = loop {
        if let Some(report) = model.ready_report() {
            break report;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no report\n{}", node.vm().report());
        thread::sleep(PAUSE);
    };
    assert!(report.contains("<State>Ready</State>"), "{report}");
    assert_eq!(model.refusals(), Vec::<String>::new());
    assert_eq!(connections(&lan, METADATA), 0);
}
