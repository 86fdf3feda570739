use super::*;

fn link(settings: LinkSettings) -> ManagedLink {
    let info = LinkInfo {
        index: 3,
        name: "eth0".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        ..LinkInfo::default()
    };
    ManagedLink::new(info, settings, "box")
}

fn lease(prefix_len: u8, routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>) -> dhcp4::Dhcp4Lease {
    dhcp4::Dhcp4Lease {
        address: Ipv4Addr::new(10, 0, 0, 5),
        prefix_len,
        server: Ipv4Addr::new(10, 0, 0, 1),
        routes,
        dns: vec![Ipv4Addr::new(10, 0, 0, 1)],
        domain: None,
        ntp: Vec::new(),
        hostname: None,
        mtu: None,
        lasts: Some(Duration::from_secs(60)),
        renew_after: Duration::from_secs(30),
        rebind_after: Duration::from_secs(50),
    }
}

#[test]
fn a_router_outside_the_leased_prefix_is_taken_to_be_on_the_link() {
    let router = Ipv4Addr::new(10, 0, 0, 1);
    let all = (Ipv4Addr::UNSPECIFIED, 0, router);
    let mut link = link(LinkSettings::default());
    link.lease4 = Some(lease(32, vec![all, (router, 32, Ipv4Addr::UNSPECIFIED)]));
    let (addresses, routes) = link.target_state();
    assert_eq!((addresses[0].prefix.len, addresses[0].valid), (32, 60));
    assert_eq!(routes[0].gateway, None, "what others lean on comes first");
    assert!(routes[1].onlink);
    link.lease4 = Some(lease(24, vec![all]));
    assert!(!link.target_state().1[0].onlink);
}

#[test]
fn configured_name_servers_replace_what_the_network_offers() {
    let mut offered = link(LinkSettings::default());
    offered.lease4 = Some(lease(24, Vec::new()));
    assert_eq!(
        offered.name_servers()[0].address,
        IpAddr::from([10, 0, 0, 1])
    );
    let own = LinkSettings {
        dns: vec!["fe80::53".parse().expect("valid")],
        ..LinkSettings::default()
    };
    let mut configured = link(own);
    configured.lease4 = Some(lease(24, Vec::new()));
    let servers = configured.name_servers();
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0].scope, Some((3, "eth0".to_owned())));
}

#[test]
fn a_card_that_is_off_wants_nothing() {
    let off = link(LinkSettings {
        method: LinkMethod::Off,
        addresses: vec![Prefix::new(IpAddr::from([10, 0, 0, 9]), 24)],
        ..LinkSettings::default()
    });
    assert_eq!(off.target_state(), (Vec::new(), Vec::new()));
}
