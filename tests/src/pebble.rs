//! Pebble, an ACME certificate authority by other authors, with its own name server, for nodes that
//! request a certificate.
//!
//! The node's configuration needs the authority's address before the node starts, and the authority
//! needs the node's ports before it validates them. So there are two steps: a [`PebbleAddress`] has
//! an address, and after [`open`](PebbleAddress::open) the authority answers there.

use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use alknet_test_support::ReservedPort;
use serde_json::json;
use tempfile::TempDir;

use crate::curl::Curl;
use crate::tools::tool_says;
use crate::wait::eventually;

/// The host's address for a machine on QEMU's network.
pub const GATEWAY: &str = "10.0.2.2";

/// OpenSSL's configuration for the authority's own certificate.
const CERTIFICATES: &str = "[req]
distinguished_name = name
prompt = no
[name]
CN = authority of a test
[authority]
basicConstraints = critical, CA:TRUE
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1, IP:10.0.2.2
";

/// The issuer's name in Pebble's certificates, before random digits.
const ISSUER: &str = "Pebble Intermediate CA";

/// Pause between two checks of a node's certificate. Each check is three programs and a handshake,
/// and a renewal takes two thirds of a certificate's lifetime.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How an authority treats its clients.
#[derive(Clone, Copy, Debug)]
pub struct PebbleOptions {
    /// Port of 127.0.0.1 that every name is validated on over HTTP.
    pub http: u16,
    /// The same for TLS.
    pub tls: u16,
    /// Lifetime of certificates in seconds.
    pub lifetime_s: u64,
    /// How many of a hundred requests Pebble refuses although their nonces are valid (RFC 8555
    /// section 6.5), so that the client must retry.
    pub refused_percent: u8,
}

/// An authority that has an address but does not answer yet.
#[derive(Debug)]
pub struct PebbleAddress {
    folder: TempDir,
    /// For the directory, the management, the name server and its control.
    ports: [ReservedPort; 4],
}

impl PebbleAddress {
    /// An authority with a new certificate.
    ///
    /// # Panics
    /// OpenSSL cannot make it.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("openssl.cnf"), CERTIFICATES).expect("the folder is ours");
        let own = [file("own.key"), file("own.pem")];
        certificate(folder.path(), "authority", &own, &[]);
        let issued_by: [OsString; 4] = [
            "-CA".into(),
            own[1].clone().into(),
            "-CAkey".into(),
            own[0].clone().into(),
        ];
        let server = [file("server.key"), file("server.pem")];
        certificate(folder.path(), "server", &server, &issued_by);
        Self {
            folder,
            ports: ReservedPort::claim_all(),
        }
    }

    /// `tls.acme.directory`. `host` is `localhost` or [`GATEWAY`].
    pub fn directory(&self, host: &str) -> String {
        format!("https://{host}:{}/dir", self.ports[0].number())
    }

    /// `tls.roots`: the root of the authority's own certificate.
    pub fn roots(&self) -> PathBuf {
        self.folder.path().join("own.pem")
    }

    /// A certificate for this host, which the root has issued, and its key.
    pub fn server_files(&self) -> [PathBuf; 2] {
        ["server.pem", "server.key"].map(|name| self.folder.path().join(name))
    }

    /// Starts answering.
    ///
    /// # Panics
    /// It does not start. The set-up installs it.
    pub fn open(self, manners: &PebbleOptions) -> Pebble {
        let [certificate, key] = self.server_files();
        let Self { folder, ports } = self;
        let [directory, management, dns, control] = ports.each_ref().map(ReservedPort::number);
        let local = |port: u16| format!("127.0.0.1:{port}");
        let file = |name: &str| folder.path().join(name);
        let config = json!({ "pebble": {
            "listenAddress": local(directory),
            "managementListenAddress": local(management),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": manners.http,
            "tlsPort": manners.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": manners.lifetime_s,
        }});
        std::fs::write(file("pebble.json"), config.to_string()).expect("the folder is ours");
        let (dns, control) = (local(dns), local(control));
        let mut name_server = Command::new("pebble-challtestsrv");
        name_server
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-dns01", &dns, "-management", &control]);
        let mut pebble = Command::new("pebble");
        pebble
            .arg("-config")
            .arg(file("pebble.json"))
            .args(["-dnsserver", &dns])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env(
                "PEBBLE_WFE_NONCEREJECT",
                manners.refused_percent.to_string(),
            );
        let programs = [
            PebbleProgram::start(name_server, &file("names.log")),
            PebbleProgram::start(pebble, &file("pebble.log")),
        ];
        let pebble = Pebble {
            _programs: programs,
            _ports: ports,
            folder,
            management,
        };
        for port in [management, directory] {
            let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok();
            eventually("an authority", connect);
        }
        pebble
    }
}

impl Default for PebbleAddress {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes a key and a certificate with the extensions of `section`, in these two files.
fn certificate(folder: &Path, section: &str, [key, to]: &[PathBuf; 2], more: &[OsString]) {
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -extensions";
    let subject = format!("/CN={section} of a test");
    let mut arguments: Vec<OsString> = words.split(' ').map(OsString::from).collect();
    arguments.extend([section, "-subj", &subject, "-config"].map(OsString::from));
    arguments.push(folder.join("openssl.cnf").into());
    for (option, file) in [("-keyout", key), ("-out", to)] {
        arguments.push(option.into());
        arguments.push(file.into());
    }
    arguments.extend_from_slice(more);
    tool_says("openssl", &arguments);
}

/// A running authority. It is ended on drop.
#[derive(Debug)]
pub struct Pebble {
    _programs: [PebbleProgram; 2],
    // Dropped after the programs, which use them.
    _ports: [ReservedPort; 4],
    // Dropped after the programs, which read it.
    folder: TempDir,
    management: u16,
}

impl Pebble {
    /// The root for its certificates.
    ///
    /// # Panics
    /// It does not answer.
    pub fn root(&self) -> PathBuf {
        let file = self.folder.path().join("root.pem");
        let url = format!("https://localhost:{}/roots/0", self.management);
        let own = self.folder.path().join("own.pem");
        let (own, to) = (own.display().to_string(), file.display().to_string());
        let fixed = ["--silent", "--show-error", "--fail", "--max-time"];
        let limit = alknet_test_support::seconds(Duration::from_secs(60));
        let (own, to) = (own.as_str(), to.as_str());
        let asked = [
            limit.as_str(),
            "--cacert",
            own,
            "--output",
            to,
            "--url",
            &url,
        ];
        Curl::new(&[&fixed[..], &asked].concat()).says();
        file
    }

    /// Waits until a node shows for `name` a certificate from this authority that is not `before`,
    /// and returns it. Meanwhile calls `every_time` repeatedly.
    ///
    /// # Panics
    /// The node shows no such certificate in time.
    pub fn certificate_at(
        &self,
        address: SocketAddr,
        name: &str,
        before: Option<&str>,
        mut every_time: impl FnMut(),
    ) -> String {
        eventually(&format!("a certificate for {name}"), || {
            every_time();
            let shown = shown(address, name);
            let new = shown.contains(ISSUER) && before.is_none_or(|before| before != shown);
            if !new {
                thread::sleep(LOOK_EVERY);
            }
            new.then_some(shown)
        })
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("pebble.log"));
            eprintln!("--- log of pebble ---\n{}", log.unwrap_or_default());
        }
    }
}

/// Issuer and serial number of the certificate that a server shows to a client that asks for
/// `name`. Empty if the server shows no certificate.
fn shown(address: SocketAddr, name: &str) -> String {
    let script = format!(
        "openssl s_client -connect {address} -servername {name} -alpn http/1.1 \
         </dev/null 2>/dev/null | openssl x509 -noout -issuer -serial 2>/dev/null || true"
    );
    tool_says("sh", &["-c", &script])
}

/// A program of the tests, ended with them.
#[derive(Debug)]
struct PebbleProgram(Child);

impl PebbleProgram {
    fn start(mut command: Command, log: &Path) -> Self {
        let log = File::create(log).expect("the folder is ours");
        let errors = log.try_clone().expect("the file is open");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn();
        Self(child.expect("the package pebble is installed by the set-up"))
    }
}

impl Drop for PebbleProgram {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
