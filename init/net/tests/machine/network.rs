//! The manager against dnsmasq, in network namespaces. Needs root, iproute2 and dnsmasq-base.

use crate::lab::{LinkNamespaces, addresses, only};
use alknet_core::config::{LinkConfig, LinkMethod};

const DHCP4: &[&str] = &[
    "--interface=srv0",
    "--dhcp-range=10.9.0.50,10.9.0.60,2m",
    "--dhcp-option=option:dns-server,10.9.0.1,10.9.0.2",
    "--dhcp-option=option:ntp-server,10.9.0.3",
    "--dhcp-option=option:domain-name,lab.example",
    "--dhcp-option=option:mtu,1400",
    "--dhcp-authoritative",
];

#[test]
fn dhcp4_brings_address_route_resolver_and_time_servers() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        lab.dnsmasq(DHCP4);
        let mut net = lab.start(lab.plan());
        net.until("ready", |s| s.ready() && !s.links[0].gateways.is_empty())
            .await;
        let link = only(&net.state.links);
        assert_eq!(
            (link.name.as_str(), link.mac.as_str()),
            ("eth0", "02:00:00:00:00:00")
        );
        assert!(only(&link.addresses).starts_with("10.9.0."));
        assert!(only(&link.addresses).ends_with("/24"));
        assert_eq!(link.sources, ["dhcp4"]);
        assert_eq!(only(&link.gateways).to_string(), "10.9.0.1");
        assert_eq!(only(&net.state.ntp).to_string(), "10.9.0.3");
        assert_eq!(net.state.search, ["lab.example"]);
        let text = std::fs::read_to_string(lab.resolv_conf()).expect("written");
        assert!(text.contains("nameserver 10.9.0.1\nnameserver 10.9.0.2\nsearch lab.example\n"));
        assert!(lab.show(&["link", "show", "eth0"]).contains("mtu 1400"));
        assert!(lab.show(&["addr", "show", "lo"]).contains("127.0.0.1/8"));
        let address = lab.show(&["addr", "show", "eth0"]);
        assert!(
            address.contains("valid_lft 1"),
            "the kernel knows when it ends: {address}"
        );
    });
}

#[test]
fn a_server_that_appears_late_is_found() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        let mut net = lab.start(lab.plan());
        net.until("the carrier", |s| s.links.iter().any(|l| l.up))
            .await;
        assert!(!net.state.ready());
        lab.dnsmasq(DHCP4);
        net.address("eth0", "10.9.0.").await;
    });
}

#[test]
fn a_lease_that_changes_replaces_address_and_route() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        let short = &[
            "--dhcp-option-force=option:T1,3",
            "--dhcp-option-force=option:T2,100",
        ];
        let first = lab.dnsmasq(&[DHCP4, short].concat());
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        lab.stop(first);
        // The same subnet, so that the new address is a secondary of the old one for a moment.
        lab.dnsmasq(&[
            "--interface=srv0",
            "--dhcp-range=10.9.0.70,10.9.0.70,2m",
            "--dhcp-option=option:router,10.9.0.9",
            "--dhcp-authoritative",
        ]);
        net.until("the other address", |s| {
            addresses(s, "eth0") == ["10.9.0.70/24"]
                && s.links[0]
                    .gateways
                    .iter()
                    .map(ToString::to_string)
                    .eq(["10.9.0.9"])
        })
        .await;
        let routes = lab.show(&["route", "show", "default"]);
        assert_eq!(routes.lines().count(), 1, "{routes}");
        assert!(
            routes.contains("via 10.9.0.9") && routes.contains("src 10.9.0.70"),
            "{routes}"
        );
        assert!(!lab.show(&["addr", "show", "eth0"]).contains("10.9.0.5"));
    });
}

#[test]
fn after_the_cable_was_out_another_network_is_taken_up() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24", "10.8.0.1/24"]);
        let first = lab.dnsmasq(DHCP4);
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        lab.plug(0, false);
        net.until("no carrier", |s| !s.links[0].up && !s.ready())
            .await;
        lab.stop(first);
        lab.dnsmasq(&[
            "--interface=srv0",
            "--dhcp-range=10.8.0.50,10.8.0.60,2m",
            "--dhcp-authoritative",
        ]);
        lab.plug(0, true);
        net.address("eth0", "10.8.0.").await;
        net.until("only one address", |s| addresses(s, "eth0").len() == 1)
            .await;
        net.until("one router", |s| s.links[0].gateways.len() == 1)
            .await;
        assert_eq!(only(&net.state.links[0].gateways).to_string(), "10.8.0.1");
    });
}

#[test]
fn the_same_network_after_a_pulled_cable_gives_the_same_address() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        lab.dnsmasq(DHCP4);
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        let before = addresses(&net.state, "eth0").to_vec();
        for _ in 0..3 {
            lab.plug(0, false);
            net.until("no carrier", |s| !s.links[0].up).await;
            lab.plug(0, true);
            net.until("ready", |s| s.ready() && !s.links[0].gateways.is_empty())
                .await;
        }
        assert_eq!(addresses(&net.state, "eth0"), before);
    });
}

#[test]
fn a_second_card_comes_and_goes() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        lab.dnsmasq(&[
            "--interface=srv*",
            "--dhcp-range=10.9.0.50,10.9.0.60,2m",
            "--dhcp-range=10.7.0.50,10.7.0.60,2m",
            "--dhcp-authoritative",
        ]);
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        lab.cable(1, &["10.7.0.1/24"]);
        net.address("eth1", "10.7.0.").await;
        net.until("both routers", |s| {
            s.links.iter().all(|l| l.gateways.len() == 1)
        })
        .await;
        let routes = lab.show(&["route", "show", "default"]);
        assert_eq!(
            routes.lines().count(),
            2,
            "both stay, told apart by metric: {routes}"
        );
        lab.show(&["link", "del", "eth1"]);
        net.until("one card", |s| s.links.len() == 1).await;
        assert!(net.state.ready());
    });
}

const RA: &[&str] = &[
    "--interface=srv0",
    "--enable-ra",
    "--ra-param=srv0,4,1200",
    "--port=53",
];

#[test]
fn ipv6_alone_with_name_servers_of_the_router() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["2001:db8:9::1/64"]);
        lab.dnsmasq(
            &[
                RA,
                &[
                    "--dhcp-range=2001:db8:9::,ra-only",
                    "--dhcp-option=option6:dns-server,[2001:db8:9::53]",
                    "--dhcp-option=option6:domain-search,six.example",
                ],
            ]
            .concat(),
        );
        let mut net = lab.start(lab.plan());
        net.address("eth0", "2001:db8:9:").await;
        net.until("a router and a name server", |s| {
            !s.links[0].gateways.is_empty() && !s.dns.is_empty() && !s.search.is_empty()
        })
        .await;
        assert_eq!(net.state.links[0].sources, ["slaac"]);
        assert_eq!(only(&net.state.dns).to_string(), "2001:db8:9::53");
        assert_eq!(net.state.search, ["six.example"]);
        assert!(
            only(&net.state.links[0].gateways)
                .to_string()
                .starts_with("fe80::")
        );
        let text = std::fs::read_to_string(lab.resolv_conf()).expect("written");
        assert!(text.contains("nameserver 2001:db8:9::53\n"), "{text}");
    });
}

#[test]
fn dhcp6_gives_an_address_where_the_router_says_so() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["2001:db8:9::1/64"]);
        lab.dnsmasq(
            &[
                RA,
                &[
                    "--dhcp-range=2001:db8:9::100,2001:db8:9::1ff,64,2m",
                    "--dhcp-option=option6:dns-server,[2001:db8:9::53]",
                    "--dhcp-option=option6:ntp-server,[2001:db8:9::123]",
                    "--dhcp-authoritative",
                ],
            ]
            .concat(),
        );
        let mut net = lab.start(lab.plan());
        net.address("eth0", "2001:db8:9::1").await;
        net.until("its source", |s| {
            s.links[0].sources.contains(&"dhcp6".to_owned())
        })
        .await;
        net.until("a router", |s| !s.links[0].gateways.is_empty())
            .await;
        assert_eq!(only(&net.state.ntp).to_string(), "2001:db8:9::123");
        let text = lab.show(&["-6", "addr", "show", "eth0"]);
        assert!(text.contains("/128 scope global dynamic"), "{text}");
    });
}

#[test]
fn dhcp6_gives_only_servers_where_the_router_says_so() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["2001:db8:9::1/64"]);
        lab.dnsmasq(
            &[
                RA,
                &[
                    "--dhcp-range=2001:db8:9::,ra-stateless",
                    "--dhcp-option=option6:ntp-server,[2001:db8:9::123]",
                ],
            ]
            .concat(),
        );
        let mut net = lab.start(lab.plan());
        net.until("an address and a time server", |s| {
            s.ready() && !s.ntp.is_empty()
        })
        .await;
        assert_eq!(net.state.links[0].sources, ["slaac"]);
        assert_eq!(only(&net.state.ntp).to_string(), "2001:db8:9::123");
    });
}

fn fixed(method: LinkMethod) -> LinkConfig {
    LinkConfig {
        matches: "02:00:00:00:00:00".to_owned(),
        method,
        addresses: vec!["10.9.0.20/24".to_owned(), "2001:db8:9::20/64".to_owned()],
        gateways: vec![
            "10.9.0.1".parse().expect("valid"),
            "2001:db8:9::1".parse().expect("valid"),
        ],
        dns: vec!["10.9.0.7".parse().expect("valid")],
    }
}

#[test]
fn a_static_card_has_what_is_written_and_nothing_else() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24", "2001:db8:9::1/64"]);
        lab.dnsmasq(&[RA, &["--dhcp-range=2001:db8:9::,ra-only"]].concat());
        let mut plan = lab.plan();
        plan.links = vec![fixed(LinkMethod::Static)];
        let mut net = lab.start(plan);
        net.until("both addresses and routers", |s| {
            addresses(s, "eth0").len() == 2 && s.links[0].gateways.len() == 2
        })
        .await;
        let link = &net.state.links[0];
        assert_eq!(link.addresses, ["10.9.0.20/24", "2001:db8:9::20/64"]);
        assert_eq!(link.sources, ["static"]);
        assert_eq!(only(&net.state.dns).to_string(), "10.9.0.7");
    });
}

#[test]
fn a_changed_plan_is_taken_up_and_switches_cards_over() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24", "2001:db8:9::1/64"]);
        lab.dnsmasq(DHCP4);
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        let mut plan = lab.plan();
        plan.links = vec![fixed(LinkMethod::Static)];
        assert!(net.handle.apply(plan.clone()).await);
        net.until("the static ones", |s| {
            addresses(s, "eth0") == ["10.9.0.20/24", "2001:db8:9::20/64"]
        })
        .await;
        plan.links = vec![fixed(LinkMethod::Off)];
        assert!(net.handle.apply(plan).await);
        net.until("off", |s| !s.links[0].up && addresses(s, "eth0").is_empty())
            .await;
        assert!(net.handle.apply(lab.plan()).await);
        net.until("automatic", |s| {
            s.ready() && s.links[0].sources == ["dhcp4"]
        })
        .await;
    });
}

#[test]
fn after_a_panic_another_manager_takes_over() {
    LinkNamespaces::run(async |mut lab| {
        lab.cable(0, &["10.9.0.1/24"]);
        lab.dnsmasq(DHCP4);
        let mut net = lab.start(lab.plan());
        net.address("eth0", "10.9.0.").await;
        net.handle.inject_panic().await;
        assert!(net.handle.ended().await.contains("panic"));
        assert!(
            lab.show(&["addr", "show", "eth0"]).contains("10.9.0."),
            "the address stays"
        );
        // A foreign address is gone once the new manager has its own.
        lab.show(&["addr", "add", "10.6.6.6/24", "dev", "eth0"]);
        let mut net = lab.start(lab.plan());
        net.until("one address again", |s| {
            addresses(s, "eth0").len() == 1 && addresses(s, "eth0")[0].starts_with("10.9.0.")
        })
        .await;
    });
}
