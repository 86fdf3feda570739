//! What a document says of the node itself: ports, names, links, limits.

use super::*;

#[test]
fn ports_have_bounds_and_any_radix() {
    for (text, port) in [("1", 1), ("65535", 65535), ("0x1bb", 443), ("4_43", 443)] {
        let config = NodeConfig::parse(format!("listen.port = {text}").as_bytes());
        assert_eq!(config.map(|config| config.listen.port), Ok(port));
    }
    for text in ["0", "65536", "-1", "99999999999999999999999"] {
        assert_diagnostic(&format!("listen.port = {text}"), &["from 1 to 65535"]);
    }
}

#[test]
fn names_follow_their_grammar() {
    let long = "a".repeat(64);
    for bad in ["", "-a", "a-", "A", "a.b", "ä", long.as_str()] {
        assert_diagnostic(&format!("node.name = \"{bad}\""), &["is no host name"]);
    }
    for bad in ["example", "example..org", "Example.org", "1.2.3.4"] {
        assert_diagnostic(
            &format!("node.domain = \"{bad}\""),
            &["is no public domain"],
        );
    }
    for bad in ["time.example.org:123", "", "http://x"] {
        assert_diagnostic(&format!("node.time_servers = [\"{bad}\"]"), &["neither"]);
    }
}

#[test]
fn links_follow_their_rules() {
    let link = |rest: &str| format!("[[network]]\nmatch = \"eth0\"\n{rest}\n");
    assert_diagnostic(
        "[[network]]\nmethod = \"off\"",
        &["network[0].match", "missing"],
    );
    assert_diagnostic(&link("method = \"dhcp\""), &["auto, static or off"]);
    assert_diagnostic(&link("method = \"static\""), &["needs an address"]);
    assert_diagnostic(
        &link("gateways = [\"192.0.2.1\"]"),
        &["method = \"static\""],
    );
    assert_diagnostic(
        &link("method = \"off\"\naddresses = [\"192.0.2.1/24\"]"),
        &["is off"],
    );
    let fixed = |rest: &str| link(&format!("method = \"static\"\n{rest}"));
    for bad in [
        "192.0.2.1",
        "192.0.2.1/33",
        "192.0.2.1/0",
        "2001:db8::1/129",
        "::/64",
        "x/24",
    ] {
        let errors = refused(&fixed(&format!("addresses = [\"{bad}\"]")));
        assert!(errors.iter().any(|e| e.contains("addresses[0]")), "{bad}");
    }
    let two = "addresses = [\"192.0.2.2/24\"]\ngateways = [\"192.0.2.1\", \"192.0.2.3\"]";
    assert_diagnostic(&fixed(two), &["one router per family"]);
    let twice = "addresses = [\"192.0.2.2/24\", \"192.0.2.2/25\"]";
    assert_diagnostic(&fixed(twice), &["listed twice"]);
    for bad in ["a/b", "0123456789abcdef", "52:54:00:12:34", "", ".."] {
        let errors = refused(&format!("[[network]]\nmatch = \"{bad}\""));
        assert_eq!(errors.len(), 1, "{errors:?}");
    }
    let double =
        "[[network]]\nmatch = \"52:54:00:AB:CD:EF\"\n[[network]]\nmatch = \"52:54:00:ab:cd:ef\"";
    assert_diagnostic(double, &["line 3, network[1]", "network[0]"]);
}

#[test]
fn iroh_has_a_port_of_its_own_and_relays_are_named_in_full() {
    let iroh = |rest: &str| format!("[iroh]\nenabled = true\n{rest}\n");
    assert!(!NodeConfig::default().iroh.enabled);
    assert_diagnostic(&iroh("port = 443"), &["line 3, iroh.port", "the one port"]);
    assert_diagnostic(
        &(iroh("port = 8443") + "[listen]\nport = 8443\n"),
        &["line 3, iroh.port"],
    );
    assert_diagnostic(&iroh("port = 0"), &["from 1 to 65535"]);
    for bad in [
        "http://relay.example.org",
        "relay.example.org",
        "https://",
        "https://relay.example.org/path",
        "https://user@relay.example.org",
    ] {
        assert_diagnostic(&iroh(&format!("relays = [\"{bad}\"]")), &["is no relay"]);
    }
    let many = ["\"https://relay.example.org\""; 9].join(", ");
    assert_diagnostic(&iroh(&format!("relays = [{many}]")), &["iroh.relays[8]"]);
}

#[test]
fn promotion_waits_for_the_next_start_unless_configured_otherwise() {
    let standard = NodeConfig::default().promotion;
    assert_eq!((standard.activate, standard.reviews), (Activation::Boot, 1));
    assert!(!standard.rollback_on_errors);
    assert_diagnostic(
        "[promotion]\nactivate = \"soon\"\n",
        &["promotion.activate", "boot"],
    );
    assert_diagnostic(
        "[promotion]\nreviews = 0\n",
        &["promotion.reviews", "1 to 16"],
    );
    assert_diagnostic(
        "[promotion]\nreviewers = 2\n",
        &["promotion.reviewers", "reviews"],
    );
}

#[test]
fn workers_have_a_least_sandbox_and_shaders_a_driver() {
    let standard = NodeConfig::default();
    assert_eq!(standard.runtime.min_sandbox, SandboxLevel::Partial);
    assert_eq!(standard.compute.driver, None);
    assert!(standard.compute.host_kernels);
    assert_eq!(standard.compute.gpu_seconds, 10);
    for level in SandboxLevel::ALL {
        let document = format!("runtime.min_sandbox = \"{}\"", level.name());
        let config = NodeConfig::parse(document.as_bytes());
        assert_eq!(config.map(|config| config.runtime.min_sandbox), Ok(level));
        let config: NodeConfig = toml::from_str(&document).expect("the same name");
        assert_eq!(config.runtime.min_sandbox, level);
    }
    assert_diagnostic(
        "runtime.min_sandbox = \"best\"",
        &["runtime.min_sandbox", "process-only, partial or full"],
    );
    for good in ["none", "llvmpipe", "v3dv"] {
        let config = NodeConfig::parse(format!("compute.driver = \"{good}\"").as_bytes());
        assert_eq!(
            config.map(|config| config.compute.driver),
            Ok(Some(good.into()))
        );
    }
    let long = "a".repeat(33);
    for bad in ["", "LLVMpipe", "3d", "../x", "a=b", long.as_str()] {
        let document = format!("compute.driver = \"{bad}\"");
        assert_diagnostic(&document, &["compute.driver", "is no name of a driver"]);
    }
    assert_diagnostic(
        "compute.host_kernels = 1",
        &["compute.host_kernels", "expected true or false"],
    );
    assert_diagnostic(
        "compute.host_kernel = true",
        &["did you mean 'host_kernels'?"],
    );
    for good in [1, 600] {
        let config = NodeConfig::parse(format!("compute.gpu_seconds = {good}").as_bytes());
        assert_eq!(config.map(|config| config.compute.gpu_seconds), Ok(good));
    }
    for bad in ["0", "601", "-1"] {
        assert_diagnostic(
            &format!("compute.gpu_seconds = {bad}"),
            &["compute.gpu_seconds", "from 1 to 600"],
        );
    }
}

#[test]
fn files_are_kept_within_configured_limits() {
    let standard = NodeConfig::default().fs;
    assert!(standard.enabled);
    let limits = (
        standard.boot_verify_mib,
        standard.staging_mib,
        standard.session_seconds,
        standard.blob_rate,
    );
    assert_eq!(limits, (1024, 2048, 3600, 256));
    assert_eq!((standard.fetch_seconds, standard.sync_seconds), (30, 60));
    let config = NodeConfig::parse(b"[fs]\nenabled = false\nboot_verify_mib = 0\n");
    let read = config.expect("a correct document").fs;
    assert!(!read.enabled);
    assert_eq!((read.boot_verify_mib, read.staging_mib), (0, 2048));
    assert_diagnostic("fs.enabled = 1", &["fs.enabled", "expected true or false"]);
    assert_diagnostic(
        "fs.staging_mib = 0",
        &["fs.staging_mib", "from 1 to 1048576"],
    );
    assert_diagnostic(
        "fs.session_seconds = 59",
        &["fs.session_seconds", "from 60 to 604800"],
    );
    assert_diagnostic("fs.blob_rate = 0", &["fs.blob_rate", "from 1 to 1048576"]);
    assert_diagnostic(
        "fs.fetch_seconds = 0",
        &["fs.fetch_seconds", "from 1 to 300"],
    );
    assert_diagnostic(
        "fs.sync_seconds = 86401",
        &["fs.sync_seconds", "from 1 to 86400"],
    );
    assert_diagnostic("fs.staging = 1", &["did you mean 'staging_mib'?"]);
    assert_diagnostic("fs = true", &["expected a table"]);
}

#[test]
fn limits_and_log_have_their_values() {
    assert_diagnostic(
        "limits.connections = 0",
        &["limits.connections", "from 1 to 4096"],
    );
    assert_diagnostic("limits.handshake_burst = 10001", &["from 1 to 10000"]);
    assert_diagnostic(
        "limits.failures_per_minute = \"10\"",
        &["expected a whole number"],
    );
    assert_diagnostic("limits.conections = 1", &["did you mean 'connections'?"]);
    assert_diagnostic("log.level = \"trace\"", &["error, warn, info or debug"]);
    assert_diagnostic("log.hash_addresses = \"yes\"", &["expected true or false"]);
    assert_diagnostic("log = \"info\"", &["expected a table"]);
}
