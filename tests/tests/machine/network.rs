//! The network changes while the booted node is served, without a reboot.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use alknet_qemu::{
    DhcpLease, Lan, LanEvent, LanSettings, Nic, ROUTER_V4, ROUTER_V6, RouterAdvertisement,
};
use alknet_tests::{BootVariant, MachineBuilder, MachineNode, READY, TestBench};
use serde_json::{Value, json};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 21);

/// Addresses of the network with IPv6.
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0xb, 0, 0, 0, 0);
const ROUTER_GLOBAL: &str = "fd09:0:0:b::1";
/// Another network, and the address that its DHCP server gives.
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0xc, 0, 0, 0, 0);
const MANAGED: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0xc, 0, 0, 0, 0x77);

/// Port of the node.
const PORT: u16 = 443;

/// Longest wait for one event, on a processor that runs guests natively.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two tries. Each is a handshake, which takes an emulated processor longer than the
/// event itself.
const PAUSE: Duration = Duration::from_millis(300);

/// The hardware clock of a machine whose battery is empty.
const LONG_AGO: &str = "base=2001-02-03T04:05:06";

/// The time server's time: 2031-05-05T05:05:05Z.
const SERVED_TIME: u64 = 1_935_723_905;

/// A machine whose battery is empty starts with the time of its build, which the network corrects,
/// and then gets a lease with other values.
#[test]
fn a_clock_wrong_by_years_is_set_and_a_lease_with_other_values_moves_the_node() {
    let lease = DhcpLease {
        // A short lease, so that the change is seen soon.
        lease: Duration::from_secs(20),
        time: Some(ROUTER_V4),
        ..DhcpLease::for_address(FIRST)
    };
    let lan = ipv4(lease);
    let bench = TestBench::new();
    let machine = on(&bench, BootVariant::MicrovmErofs, &lan);
    let mut node = machine
        .with(|vm| vm.argument("-rtc").argument(LONG_AGO))
        .boot();
    let before = served_at(&mut node, &lan, FIRST.into());
    assert_eq!(before["clock"], "build-time");
    let time = before["time"]
        .as_str()
        .expect("a sane clock tells the time");
    assert!(time > "2026-11", "no binary was built before: {time}");
    let expected = json!({
        "name": "eth0", "mac": "52:54:00:12:34:56", "up": true,
        "addresses": ["10.9.0.20/24"], "gateways": ["10.9.0.1"], "sources": ["dhcp4"],
    });
    assert_eq!(before["links"], json!([expected]));
    assert_eq!(before["dns"], json!([ROUTER_V4]));
    assert_eq!(before["addresses"], json!([FIRST]));

    // The node's SNTP client asks again by itself. The test does not announce that the server
    // answers now.
    lan.set(|lan| lan.time = Some(SERVED_TIME));
    happens(&node, &lan, LanEvent::Timed);
    let info = eventually(&node, "the server's time", |info| info["clock"] == "sntp");
    let time = info["time"].as_str().expect("a sane clock tells the time");
    assert!(time.starts_with("2031-05-05T05:"), "{time}");

    let (router, dns) = (Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 3));
    lan.set(|lan| {
        lan.dhcp4 = Some(DhcpLease {
            router,
            dns,
            ..DhcpLease::for_address(SECOND)
        });
    });
    happens(&node, &lan, LanEvent::Refused(Some(FIRST)));
    happens(&node, &lan, LanEvent::Given(SECOND));
    served_at(&mut node, &lan, SECOND.into());
    let after = eventually(&node, "the second lease alone", |info| {
        info["links"][0]["addresses"] == json!(["10.9.0.21/24"])
    });
    assert_eq!(after["links"][0]["gateways"], json!([router]));
    assert_eq!(after["dns"], json!([dns]));
    never_rebooted(&node, &after);
}

/// The machine starts with both cables out. Networks appear, change and disappear, and it is served
/// on every connected card.
#[test]
fn a_network_that_appears_after_the_boot_is_used_and_so_is_another_one() {
    let (first, second) = (Lan::new(LanSettings::default()), ipv6(&slaac()));
    let bench = TestBench::new();
    let machine = bench.machine(BootVariant::MicrovmErofs).plain();
    let cards = [&first, &second].map(|lan| Nic::lan(lan).link_down());
    let mut node = cards.into_iter().fold(machine, MachineBuilder::nic).boot();
    for lan in [&first, &second] {
        assert!(lan.neighbours().is_empty(), "the cable is out");
    }
    // First a cable into a silent network, then one that answers.
    set_link(&node, 0, true);
    first.set(|lan| lan.dhcp4 = Some(DhcpLease::for_address(FIRST)));
    happens(&node, &first, LanEvent::Given(FIRST));
    let info = served_at(&mut node, &first, FIRST.into());
    assert_eq!(info["links"][0]["sources"], json!(["dhcp4"]));
    assert_eq!(info["links"][1]["up"], false);

    set_link(&node, 1, true);
    let address = global(&node, &second, PREFIX);
    let info = served_at(&mut node, &second, address);
    let links = info["links"].as_array().expect("a list");
    let sources: Vec<_> = links.iter().map(|link| link["sources"].clone()).collect();
    assert_eq!(sources, [json!(["dhcp4"]), json!(["slaac"])]);

    // A cable moves into another network while the second card serves.
    set_link(&node, 0, false);
    let info = eventually(&node, "a card without a carrier", |info| {
        info["links"][0]["up"] == false
    });
    assert_eq!(info["links"][1]["up"], true);
    first.set(|lan| lan.dhcp4 = Some(DhcpLease::for_address(SECOND)));
    set_link(&node, 0, true);
    happens(&node, &first, LanEvent::Given(SECOND));
    served_at(&mut node, &first, SECOND.into());
    eventually(&node, "the new network's address", |info| {
        info["links"][0]["up"] == true && info["links"][0]["addresses"] == json!(["10.9.0.21/24"])
    });

    // A network gets IPv6 later.
    first.set(|lan| {
        lan.advertise = Some(RouterAdvertisement {
            prefix: OTHER,
            ..slaac()
        });
    });
    let address = global(&node, &first, OTHER);
    let info = served_at(&mut node, &first, address);
    never_rebooted(&node, &info);
}

#[test]
fn a_card_that_is_plugged_in_is_served_and_forgotten_when_it_is_gone() {
    let (first, second) = (ipv4(DhcpLease::for_address(FIRST)), ipv6(&slaac()));
    let bench = TestBench::new();
    let machine = on(&bench, BootVariant::Q35Initramfs, &first).nic(Nic::lan(&second).unplugged());
    let mut node = machine.boot();
    let info = served_at(&mut node, &first, FIRST.into());
    assert_eq!(info["links"].as_array().map(Vec::len), Some(1), "{info}");

    node.vm().plug(1).unwrap_or_else(|error| panic!("{error}"));
    let address = global(&node, &second, PREFIX);
    let info = served_at(&mut node, &second, address);
    assert_eq!(info["links"][1]["mac"], "52:54:00:12:34:57");
    assert_eq!(info["links"][1]["sources"], json!(["slaac"]));

    served_at(&mut node, &first, FIRST.into());
    node.vm()
        .unplug(1)
        .unwrap_or_else(|error| panic!("{error}"));
    let info = eventually(&node, "one card again", |info| {
        info["links"]
            .as_array()
            .is_some_and(|links| links.len() == 1)
    });
    assert_eq!(info["addresses"], json!([FIRST]));
    never_rebooted(&node, &info);
}

/// A machine that never sees IPv4. On one card it makes its address itself. On the other, whose
/// router requests that, it gets one by DHCP.
#[test]
fn ipv6_alone_is_enough_and_by_dhcp_where_the_router_asks_for_it() {
    let first = ipv6(&slaac());
    let second = Lan::new(LanSettings {
        advertise: Some(RouterAdvertisement {
            prefix: OTHER,
            autonomous: false,
            managed: true,
            dns: false,
            ..slaac()
        }),
        dhcp6: Some(MANAGED),
        ..LanSettings::default()
    });
    let bench = TestBench::new();
    let machine = bench.machine(BootVariant::MicrovmErofs).plain();
    // With one cable out, only what the DHCP server gives is available.
    let cards = [Nic::lan(&first).link_down(), Nic::lan(&second)];
    let mut node = cards.into_iter().fold(machine, MachineBuilder::nic).boot();
    happens(&node, &second, LanEvent::Given6);
    served_at(&mut node, &second, MANAGED.into());
    // The server gets requests from a link-local address and identifies itself with its own.
    let info = eventually(&node, "the server's name server", |info| {
        info["dns"] == json!([ROUTER_V6])
    });
    assert_eq!(info["addresses"], json!([MANAGED]));

    set_link(&node, 0, true);
    let address = global(&node, &first, PREFIX);
    served_at(&mut node, &first, address);
    let info = eventually(&node, "both name servers", |info| {
        all_of(&info["dns"]) == all_of(&json!([ROUTER_GLOBAL, ROUTER_V6]))
    });
    let addresses = json!([address, MANAGED]);
    assert_eq!(all_of(&info["addresses"]), all_of(&addresses));
    let link = &info["links"][0];
    assert_eq!(link["addresses"], json!([format!("{address}/64")]));
    assert_eq!(link["sources"], json!(["slaac"]));
    assert_eq!(link["gateways"], json!([ROUTER_V6]));
    let link = &info["links"][1];
    assert_eq!(link["addresses"], json!([format!("{MANAGED}/128")]));
    assert_eq!(link["sources"], json!(["dhcp6"]));
}

#[test]
fn static_addresses_are_used_without_dhcp() {
    let lan = ipv4(DhcpLease::for_address(SECOND));
    let bench = TestBench::new();
    let machine = on(&bench, BootVariant::MicrovmErofs, &lan).configured(
        "[[network]]\n\
         match = \"52:54:00:12:34:56\"\n\
         method = \"static\"\n\
         addresses = [\"10.9.0.20/24\", \"fd09:0:0:b::20/64\"]\n\
         gateways = [\"10.9.0.1\"]\n\
         dns = [\"10.9.0.3\"]\n",
    );
    let mut node = machine.boot();
    served_at(&mut node, &lan, FIRST.into());
    let info = eventually(&node, "both addresses", |info| {
        info["links"][0]["addresses"] == json!(["10.9.0.20/24", "fd09:0:0:b::20/64"])
    });
    assert_eq!(info["links"][0]["sources"], json!(["static"]));
    assert_eq!(info["links"][0]["gateways"], json!([ROUTER_V4]));
    assert_eq!(info["dns"], json!(["10.9.0.3"]));
    assert_eq!(lan.events(), [], "DHCP was asked all the same");
}

fn ipv4(dhcp4: DhcpLease) -> Lan {
    Lan::new(LanSettings {
        dhcp4: Some(dhcp4),
        ..LanSettings::default()
    })
}

fn ipv6(advertise: &RouterAdvertisement) -> Lan {
    Lan::new(LanSettings {
        advertise: Some(*advertise),
        ..LanSettings::default()
    })
}

/// The router announces a network and a name server, and machines make their addresses themselves.
fn slaac() -> RouterAdvertisement {
    RouterAdvertisement {
        prefix: PREFIX,
        autonomous: true,
        managed: false,
        other: false,
        dns: true,
        lifetime: Duration::from_secs(1800),
    }
}

/// Without a vault, which has nothing to do with a network, and whose making takes half of a first boot.
fn on<'a>(bench: &'a TestBench, boot: BootVariant, lan: &Lan) -> MachineBuilder<'a> {
    bench.machine(boot).plain().nic(Nic::lan(lan))
}

/// What is in a list, in whatever order. None of it is there twice.
fn all_of(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().expect("a list");
    let all: BTreeSet<_> = list.iter().map(Value::to_string).collect();
    assert_eq!(all.len(), list.len(), "{list:?}");
    all
}

/// Reaches the node at `address` from now on, and asks it for its facts there.
fn served_at(node: &mut MachineNode, lan: &Lan, address: IpAddr) -> Value {
    let forward = lan.forward((address, PORT).into());
    node.use_address(forward.unwrap_or_else(|error| panic!("{error}")));
    eventually(node, "an answer that names the address", |info| {
        let addresses = info["addresses"].as_array();
        addresses.is_some_and(|all| all.contains(&json!(address)))
    })
}

/// Asks for the node's facts until they fit.
#[track_caller]
fn eventually(node: &MachineNode, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + node.vm().scale(PATIENCE);
    loop {
        let answer = node.try_call("node/info", &Value::Null, &[]);
        let info = (answer.status == 0).then(|| answer.json());
        if let Some(info) = info.filter(|info| fits(info)) {
            return info;
        }
        let late = Instant::now() > deadline;
        assert!(!late, "no {what}: {answer:?}\n{}", node.vm().report());
        thread::sleep(PAUSE);
    }
}

#[track_caller]
fn happens(node: &MachineNode, lan: &Lan, event: LanEvent) {
    let happened = lan.wait_event(event, 0, node.vm().scale(PATIENCE));
    let events = lan.events();
    assert!(
        happened,
        "no {event:?} in {events:?}\n{}",
        node.vm().report()
    );
}

/// The address the machine made itself in the advertised network.
#[track_caller]
fn global(node: &MachineNode, lan: &Lan, prefix: Ipv6Addr) -> IpAddr {
    let ours = |address: IpAddr| match address {
        IpAddr::V6(address) => address.segments()[..4] == prefix.segments()[..4],
        IpAddr::V4(_) => false,
    };
    let found = lan.wait_neighbour(ours, node.vm().scale(PATIENCE));
    found.unwrap_or_else(|| panic!("no address of its own\n{}", node.vm().report()))
}

fn set_link(node: &MachineNode, card: usize, up: bool) {
    let set = node.vm().set_link(card, up);
    set.unwrap_or_else(|error| panic!("{error}"));
}

#[track_caller]
fn never_rebooted(node: &MachineNode, info: &Value) {
    let ready = node.vm().console().text().matches(READY).count();
    assert_eq!(ready, 1, "{}", node.vm().report());
    assert_eq!(info["node_restarts"], 0);
}
